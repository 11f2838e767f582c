"""Conversions: from exclusive to shared and back, never without the lease in between."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.scene import NOW, NUM_HOSTS, Scene, seen_live, seen_silent
from tests.support.memory import CRASH, CRASH_AFTER, ERROR, ERROR_LANDED, LOST, Fault, fail_at
from vmlockctl.errors import (
    ContentionError,
    LeaseHeld,
    LeaseLost,
    LverMoved,
    SharedLeaseHeld,
    StorageError,
    WrongDblock,
)
from vmlockctl.lease.convert import back_to_shared, to_exclusive, to_shared
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release
from vmlockctl.lease.resource import Held
from vmlockctl.ondisk.dblock import Dblock, ModeBlock

LIVE = {host_id: seen_live(host_id, NOW) for host_id in range(1, NUM_HOSTS + 1)}
MARK = ModeBlock.shared(1)


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


def sharing(scene: Scene, host_id: int, *, lver: int, **task: Any) -> None:
    scene.run(host_id, to_shared(scene.claimant(host_id), scene.resource, lver=lver), **task)


def excluding(scene: Scene, host_id: int, *, task: Any = None, **options: Any) -> Held:
    claimant = scene.claimant(host_id, observations=LIVE)
    held = scene.run(host_id, to_exclusive(claimant, scene.resource, **options), **task or {})
    assert isinstance(held, Held)
    return held


def test_to_shared(scene: Scene) -> None:
    """4.7: dblock RELEASED and the mark in one write, then the leader; the version stays."""
    held = scene.acquire(1)
    ballot = scene.dblock(1)
    sharing(scene, 1, lver=1)
    assert scene.last.sequence == "r0 r2 w2 r2 r0 w0"
    assert scene.dblock(1) == ballot._replace(flags=1)
    assert scene.mode(1) == MARK
    assert scene.leader().is_free
    assert scene.leader().lver == held.leader.lver
    assert scene.acquire(2, shared=True, observations=LIVE).shared
    with pytest.raises(SharedLeaseHeld):
        scene.acquire(3, observations=LIVE)


def test_to_exclusive(scene: Scene) -> None:
    """4.7: the mark stands through the ballot; the version grows by one."""
    first = scene.acquire(1, shared=True)
    modes: list[ModeBlock] = []

    def look(host: Any, step: Any) -> None:
        scene.check_write(host, step)
        if step.sector == 2:
            modes.append(ModeBlock.from_bytes(step.data))

    scene.sim._on_write = look
    held = excluding(scene, 1)
    assert modes == [MARK, MARK, ModeBlock()]
    assert held.leader.lver == first.leader.lver + 1
    assert not held.shared
    assert scene.leader() == held.leader
    assert scene.mode(1) == ModeBlock()
    assert not scene.dblock(1).is_released
    with pytest.raises(LeaseHeld):
        scene.acquire(2, observations=LIVE)
    scene.release(1, held)
    assert scene.leader().is_free


def test_other_live_holders_keep_it_shared(scene: Scene) -> None:
    """4.7: only the leader is given back, with RELEASED in our dblock (12.2-m)."""
    for host_id in (1, 2):
        scene.acquire(host_id, shared=True, observations=LIVE)
    with pytest.raises(SharedLeaseHeld) as caught:
        excluding(scene, 1)
    assert [owner["host_id"] for owner in caught.value.details["owners"]] == [2]
    assert scene.mode(1) == MARK
    assert scene.dblock(1).is_released
    assert scene.leader().is_free
    scene.run(2, release(scene.claimant(2), scene.resource, lver=2, shared=True))
    assert excluding(scene, 1).leader.owner == (1, 1)


def test_a_dead_holder_is_erased(scene: Scene) -> None:
    for host_id in (1, 2):
        scene.acquire(host_id, shared=True, observations=LIVE)
    scene.may_clear.add(2)
    rows = {**LIVE, 2: seen_silent(2, NOW, 69)}
    claimant = scene.claimant(1, observations=rows)
    held = scene.run(1, to_exclusive(claimant, scene.resource))
    assert held.leader.owner == (1, 1)
    assert not any(scene.own(2))


def test_only_a_holder_converts(scene: Scene) -> None:
    """Section 4.7: not held, -2; here it is told as what it is, a lease that is not ours."""
    before = scene.snapshot()
    with pytest.raises(LeaseLost):
        excluding(scene, 1)
    with pytest.raises(LeaseLost):
        sharing(scene, 1, lver=1)
    held = scene.acquire(2)
    with pytest.raises(LeaseLost):
        sharing(scene, 1, lver=held.leader.lver)
    assert scene.own(1) == before[1][1024:1536]


def test_a_mark_of_an_earlier_generation_is_no_mark(scene: Scene) -> None:
    scene.acquire(1, shared=True, generation=1)
    claimant = scene.claimant(1, generation=2)
    with pytest.raises(LeaseLost, match="our shared mark is gone"):
        scene.run(1, to_exclusive(claimant, scene.resource))


def test_expect_lver(scene: Scene) -> None:
    held = scene.acquire(1, shared=True)
    with pytest.raises(LverMoved):
        excluding(scene, 1, expect_lver=0)
    assert scene.mode(1) == MARK
    assert excluding(scene, 1, expect_lver=held.leader.lver).leader.lver == 2


def test_a_damaged_own_dblock_is_not_converted(scene: Scene) -> None:
    scene.acquire(1)
    damaged = scene.dblock(1)._replace(checksum=1)
    scene.put_own(1, damaged)
    with pytest.raises(WrongDblock):
        sharing(scene, 1, lver=1)
    assert scene.own(1).startswith(damaged.to_bytes())
    assert not scene.leader().is_free


def test_a_leader_that_went_back_does_not_keep_from_sharing(scene: Scene) -> None:
    first = scene.acquire(1)
    scene.release(1, first)
    held = scene.acquire(1)
    scene.put_leader(**{**first.leader._asdict(), "write_id": 3})
    sharing(scene, 1, lver=held.leader.lver)
    assert scene.mode(1) == MARK
    assert scene.dblock(1).is_released


def test_a_leader_that_another_host_wrote_for_us_stays(scene: Scene) -> None:
    """Our RELEASED flag lets others have it, and our mark keeps them from writing the disk."""
    scene.acquire(1)
    scene.put_leader(write_id=3)
    sharing(scene, 1, lver=1)
    assert scene.leader().owner == (1, 1)
    with pytest.raises(SharedLeaseHeld):
        scene.acquire(2, observations=LIVE)
    assert excluding(scene, 1).leader.lver > 1


@pytest.mark.parametrize("direction", ["to shared", "to exclusive"])
@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED, CRASH, CRASH_AFTER])
def test_failure_at_every_step(direction: str, kind: str) -> None:
    """Whatever fails, our sector or the leader keeps others out; afterwards the lease is shared again."""
    number = 0
    while True:
        number += 1
        scene = Scene()
        for host_id in range(1, NUM_HOSTS + 1):
            scene.put_delta(host_id)
        claimant = scene.claimant(1, observations=LIVE)
        held = scene.acquire(1, shared=direction == "to exclusive", observations=LIVE)

        def kept(host: Any, step: Any, scene: Scene = scene) -> None:
            scene.check_write(host, step)
            if step.area.path == "/disk":
                leader = scene.leader()
                assert scene.mode(1).is_shared or (leader.owner == (1, 1) and not leader.is_free)

        scene.sim._on_write = kept
        procedure: Any = (
            to_exclusive(claimant, scene.resource)
            if held.shared
            else to_shared(claimant, scene.resource, lver=held.leader.lver)
        )
        task = scene.start(1, procedure, faults=fail_at(number, Fault(kind)))
        scene.sim.run()
        scene.verify_area()
        if len(task.ios) < number:
            break
        with pytest.raises(ContentionError):
            scene.run(2, acquire(scene.claimant(2, observations=LIVE), scene.resource))
        if scene.hosts[1].crashed:
            continue
        assert isinstance(task.error, StorageError)
        scene.run(1, back_to_shared(claimant, scene.resource))
        scene.verify_area()
        assert scene.mode(1) == MARK
        assert scene.acquire(3, shared=True, observations=LIVE).shared
    assert number == {"to shared": 7, "to exclusive": 13}[direction]


def test_a_conversion_that_was_retracted_may_be_tried_again(scene: Scene) -> None:
    scene.acquire(1, shared=True)
    claimant = scene.claimant(1, observations=LIVE)
    with pytest.raises(StorageError):
        excluding(scene, 1, task={"faults": fail_at(9, Fault(ERROR_LANDED))})
    scene.run(1, back_to_shared(claimant, scene.resource))
    held = excluding(scene, 1)
    assert held.leader.owner == (1, 1)
    assert scene.mode(1) == ModeBlock()


def test_a_dblock_that_was_never_used_can_carry_the_mark_back(scene: Scene) -> None:
    """After sanlock blanked it (12.2-f): the mark alone is the lease."""
    scene.put_own(1, Dblock(), MARK)
    claimant = scene.claimant(1)
    scene.run(1, back_to_shared(claimant, scene.resource))
    assert scene.mode(1) == MARK


def test_nothing_is_settled_beside_a_lease_that_was_lost(scene: Scene) -> None:
    """Somebody overwrote our mark, and took the lease: a new mark would be a second owner."""
    scene.acquire(1, shared=True)
    scene.put_own(1, Dblock(), ModeBlock())
    scene.acquire(2, observations=LIVE)
    before = scene.snapshot()
    with pytest.raises(LeaseLost):
        scene.run(1, back_to_shared(scene.claimant(1), scene.resource))
    assert scene.snapshot() == before


def test_a_mark_of_an_earlier_generation_settles_nothing(scene: Scene) -> None:
    scene.acquire(1, shared=True, generation=1)
    with pytest.raises(LeaseLost):
        scene.run(1, back_to_shared(scene.claimant(1, generation=2), scene.resource))


@pytest.mark.parametrize("settling", [False, True])
def test_the_leader_is_not_freed_when_the_mark_was_lost(scene: Scene, settling: bool) -> None:
    """Else nothing would keep the next owner from writing under whoever reads."""
    held = scene.acquire(1)
    claimant = scene.claimant(1)
    procedure: Any = back_to_shared if settling else to_shared
    lver = {} if settling else {"lver": held.leader.lver}
    lost = fail_at(5 if settling else 3, Fault(LOST))
    with pytest.raises(StorageError, match="lost a write"):
        scene.run(1, procedure(claimant, scene.resource, **lver), faults=lost)
    assert scene.last.ios[-2].kind == "w"
    assert scene.leader() == held.leader
    scene.run(1, back_to_shared(claimant, scene.resource))
    assert scene.mode(1) == MARK
    assert scene.leader().is_free
