"""Requests: exactly the next version is asked for, and only an exclusive owner is asked."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from tests.sim.scene import NUM_HOSTS, Scene
from tests.support.memory import ERROR, LOST, Fault, fail_at
from vmlockctl.errors import RequestPending, StorageError, WrongRequestMagic, WrongRequestVersion
from vmlockctl.lease.request import Asked, clear_request, hosts_asking, pending_request, request
from vmlockctl.ondisk import bitmap
from vmlockctl.ondisk.geometry import REQUEST_SECTOR
from vmlockctl.ondisk.request import FORCE, GRACEFUL, Request


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


def asking(scene: Scene, *, force: bool = False, **task: Any) -> Optional[Asked]:
    asked = scene.run(2, request(scene.claimant(2), scene.resource, force=force), **task)
    assert asked is None or isinstance(asked, Asked)
    return asked


def record(scene: Scene) -> Request:
    return Request.from_bytes(scene.sector(scene.area, REQUEST_SECTOR))


def put_record(scene: Scene, **fields: int) -> None:
    scene.put(scene.area, REQUEST_SECTOR, Request(**fields).to_bytes())


@pytest.fixture(autouse=True)
def may_write_the_request(scene: Scene) -> None:
    """The request record is the one sector that every host may write."""
    ordinary = scene.check_write
    scene.sim._on_write = lambda host, step: (
        None if (step.area.path, step.sector) == ("/disk", REQUEST_SECTOR) else ordinary(host, step)
    )


@pytest.mark.parametrize(("force", "mode"), [(False, GRACEFUL), (True, FORCE)])
def test_the_next_version_is_requested(scene: Scene, force: bool, mode: int) -> None:
    """Never a later one: a sanlock daemon that shares the lease would kill its process group (12.2-i)."""
    held = scene.acquire(1)
    assert asking(scene, force=force) == Asked(held.leader.lver + 1, mode, 1, 1)
    assert scene.last.sequence == "r0 r1 w1 r1"
    assert record(scene) == Request(lver=2, force_mode=mode)
    assert scene.leader() == held.leader


def test_nobody_is_asked_for_a_lease_that_nobody_holds(scene: Scene) -> None:
    before = scene.snapshot()
    assert asking(scene) is None
    assert scene.snapshot() == before
    scene.acquire(1, shared=True)
    before = scene.snapshot()
    assert asking(scene, force=True) is None, "a shared holder cannot be asked"
    assert scene.snapshot() == before


def test_a_request_is_raised_and_never_lowered(scene: Scene) -> None:
    scene.acquire(1)
    asking(scene)
    asking(scene, force=True)
    assert record(scene).force_mode == FORCE
    asking(scene)
    assert record(scene).force_mode == FORCE
    assert scene.last.sequence == "r0 r1"


def test_a_request_for_a_later_version_stands(scene: Scene) -> None:
    """-273."""
    scene.acquire(1)
    put_record(scene, lver=9, force_mode=GRACEFUL)
    with pytest.raises(RequestPending) as caught:
        asking(scene)
    assert caught.value.sanlk_rv == -273
    assert record(scene).lver == 9


def test_an_old_request_is_over(scene: Scene) -> None:
    scene.acquire(1)
    asking(scene)
    scene.release(1, scene.acquire(1))
    scene.acquire(3)
    assert asking(scene) == Asked(4, GRACEFUL, 3, 1)


def test_a_request_is_taken_back(scene: Scene) -> None:
    claimant = scene.claimant(2)
    assert not scene.run(2, clear_request(claimant, scene.resource))
    assert scene.last.sequence == "r0 r1"
    scene.acquire(1)
    asking(scene, force=True)
    assert scene.run(2, clear_request(claimant, scene.resource))
    assert record(scene) == Request()


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"magic": 1}, WrongRequestMagic), ({"version": 0x00020001}, WrongRequestVersion)],
)
def test_a_damaged_record_is_left_alone(scene: Scene, fields: dict[str, int], error: type[Exception]) -> None:
    scene.acquire(1)
    put_record(scene, **fields)
    before = scene.snapshot()
    for procedure in (
        request(scene.claimant(2), scene.resource, force=True),
        clear_request(scene.claimant(2), scene.resource),
        pending_request(scene.claimant(1), scene.resource, lver=1),
    ):
        with pytest.raises(error, match=r"^/disk:4608: "):
            scene.run(2, procedure)
    assert scene.snapshot() == before


def test_a_minor_version_that_we_do_not_know_stays(scene: Scene) -> None:
    scene.acquire(1)
    put_record(scene, version=0x00010007)
    asking(scene)
    assert record(scene) == Request(version=0x00010007, lver=2, force_mode=GRACEFUL)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_error_is_told(scene: Scene, number: int) -> None:
    scene.acquire(1)
    with pytest.raises(StorageError):
        asking(scene, faults=fail_at(number, Fault(ERROR)))
    assert record(scene) == Request()


def test_a_write_that_is_lost_is_told(scene: Scene) -> None:
    scene.acquire(1)
    with pytest.raises(StorageError, match="found a request for version 0, mode 0"):
        asking(scene, faults=fail_at(3, Fault(LOST)))
    asking(scene)
    with pytest.raises(StorageError, match="found a request for version 2, mode 2"):
        scene.run(2, clear_request(scene.claimant(2), scene.resource), faults=fail_at(3, Fault(LOST)))


@pytest.mark.parametrize(
    ("lver", "force_mode", "heeded"),
    [(0, 0, False), (2, 0, False), (1, FORCE, False), (2, FORCE, True), (2, GRACEFUL, True), (9, 7, True)],
)
def test_what_the_owner_heeds(scene: Scene, lver: int, force_mode: int, heeded: bool) -> None:
    scene.acquire(1)
    put_record(scene, lver=lver, force_mode=force_mode)
    found = scene.run(1, pending_request(scene.claimant(1), scene.resource, lver=1))
    assert (found is not None) == heeded


def test_whose_bit_is_set(scene: Scene) -> None:
    size = scene.space.geometry.sector_size
    for host_id, bits in {2: [1], 3: [1, 2], 4: [3], 1: [1]}.items():
        record = scene.put_delta(host_id)
        data = record.to_bytes().ljust(bitmap.BITMAP_OFFSET, b"\0") + bitmap.to_bytes(bits)
        scene.put(scene.space, host_id - 1, data.ljust(size, b"\0"))
    image = scene.storage.image(scene.space)
    assert hosts_asking(scene.space, image, 1) == [2, 3]
    assert hosts_asking(scene.space, image, 2) == [3]
    assert hosts_asking(scene.space, image, 4) == []
