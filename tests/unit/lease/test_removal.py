"""The end of a lease whose file is gone: whoever still has it open finds no lease there."""

from __future__ import annotations

import pytest

from tests.sim.scene import NUM_HOSTS, Scene
from vmlockctl.errors import ClearedResource, LeaseLost
from vmlockctl.lease.removal import void_removed


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


def test_nobody_acquires_what_was_cleared(scene: Scene) -> None:
    held = scene.acquire(1)
    scene.run(1, void_removed(scene.claimant(1), scene.resource, lver=held.leader.lver))
    for host_id in (1, 2):
        with pytest.raises(ClearedResource):
            scene.acquire(host_id)


@pytest.mark.parametrize("field", ["owner_id", "owner_generation", "lver", "timestamp"])
def test_what_is_not_ours_is_left_alone(scene: Scene, field: str) -> None:
    held = scene.acquire(1)
    value = 0 if field == "timestamp" else getattr(held.leader, field) + 1
    scene.put_leader(**{field: value})
    before = scene.snapshot()
    with pytest.raises(LeaseLost):
        scene.run(1, void_removed(scene.claimant(1), scene.resource, lver=held.leader.lver))
    assert scene.snapshot() == before
