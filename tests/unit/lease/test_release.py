"""Giving back: the order that survives a co-committer, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import pytest

from tests.sim.scene import NOW, NUM_HOSTS, Scene, seen_live
from tests.support.memory import ERROR, ERROR_LANDED, TIMEOUT, Fault, Faults, Io, fail_at
from vmlockctl.errors import LeaseLost, StorageError
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Held, names_us, read_note, verify_held, write_note
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.dblock import FLAG_RELEASED, Dblock, ModeBlock
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD

# r0 leader, r1 own sector, w2 own sector (RELEASED), r3 leader, w4 leader.
RELEASE = "r0 r2 w2 r0 w0"


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


@pytest.fixture
def held(scene: Scene) -> Held:
    return scene.acquire(1)


def before(number: int, action: Callable[[], object]) -> Faults:
    def faults(count: int, io: Io) -> Optional[Fault]:
        if count == number:
            action()
        return None

    return faults


def releasing(scene: Scene, held: Held, **options: Any) -> None:
    scene.run(1, release(scene.claimant(1), scene.resource, lver=held.leader.lver), **options)


def retracting(scene: Scene, **options: Any) -> None:
    scene.run(1, retract(scene.claimant(1), scene.resource), **options)


# -- release ----------------------------------------------------------------------------------------------


def test_a_release(scene: Scene, held: Held) -> None:
    ballot = scene.dblock(1)
    releasing(scene, held)
    assert scene.last.sequence == RELEASE
    assert scene.dblock(1) == ballot._replace(flags=FLAG_RELEASED), "never zeros (12.1-5)"
    leader = scene.leader()
    assert leader == held.leader._replace(timestamp=0, write_timestamp=NOW).sealed()
    assert (leader.owner, leader.lver) == ((1, 1), 1)


def test_short_hold_goes_with_the_release(scene: Scene, held: Held) -> None:
    scene.put_leader(flags=held.leader.flags | FLAG_SHORT_HOLD)
    releasing(scene, held)
    assert not scene.leader().flags & FLAG_SHORT_HOLD


def test_a_leader_that_a_co_committer_wrote_is_left_alone(scene: Scene, held: Held) -> None:
    """Section 4.4: to write it could overwrite a newer one; the RELEASED flag says the rest."""
    leader = scene.put_leader(write_id=3)
    releasing(scene, held)
    assert scene.leader() == leader
    assert scene.dblock(1).is_released
    assert scene.last.sequence == "r0 r2 w2 r0"
    assert scene.acquire(2, observations={1: seen_live(1, NOW)}).leader.lver == 2


def test_a_co_committers_leader_that_was_taken_over_at_once_is_a_release(scene: Scene, held: Held) -> None:
    """Between our RELEASED flag and our look at the leader, the next host may take what we gave up.

    "T.write_id != H: done, success" (section 4.4, 12.1-10): nothing was lost while we held it.
    """
    scene.put_leader(write_id=3)

    def next_owner() -> None:
        scene.put_own(2, Dblock(4002, 4002, 2, 1, NOW, 2).sealed())
        scene.put_leader(owner_id=2, lver=2, write_id=2)

    leader_before = scene.leader()
    releasing(scene, held, faults=before(4, next_owner))
    assert scene.leader().owner == (2, 1)
    assert leader_before.owner == (1, 1)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"lver": 2}, "lver 2 owner 1:1"),
        ({"owner_id": 2, "write_id": 2}, "lver 1 owner 2:1"),
        ({"owner_generation": 2}, "lver 1 owner 1:2"),
        ({"timestamp": 0}, "lver 1 free"),
    ],
)
def test_what_is_not_ours_is_not_freed(scene: Scene, held: Held, fields: dict[str, int], found: str) -> None:
    leader = scene.put_leader(**fields)
    with pytest.raises(LeaseLost) as caught:
        releasing(scene, held)
    assert scene.leader() == leader
    assert caught.value.message == (
        f"/disk:4096: the lease is no longer ours, found {found}, expected lver 1 owner 1:1"
    )
    assert caught.value.sanlk_rv == -251


def test_a_version_that_we_do_not_hold_any_more_does_not_release_the_one_that_we_do(
    scene: Scene, held: Held
) -> None:
    """A stale record of an earlier possession: our RELEASED flag would give the present one away."""
    scene.put_leader(write_id=3, lver=2)
    scene.put_own(1, Dblock(2001, 2001, 1, 1, NOW, 2).sealed())
    with pytest.raises(LeaseLost):
        releasing(scene, held)
    assert not scene.dblock(1).is_released


def test_a_release_may_be_repeated_after_an_error(scene: Scene, held: Held) -> None:
    for number in range(1, 6):
        for kind in (ERROR, ERROR_LANDED):
            again = scene.acquire(1)
            with pytest.raises(StorageError):
                releasing(scene, again, faults=fail_at(number, Fault(kind)))
            scene.verify_area()
            if not scene.leader().is_free:
                releasing(scene, again)
            assert scene.leader().is_free
            assert scene.dblock(1).is_released


@pytest.mark.parametrize("lands_after", [None, 0.5, 5.0])
@pytest.mark.parametrize("number", [3, 5])
def test_a_release_whose_write_timed_out(
    scene: Scene, held: Held, number: int, lands_after: Optional[float]
) -> None:
    with pytest.raises(StorageError):
        releasing(scene, held, faults=fail_at(number, Fault(TIMEOUT, lands_after)))
    scene.sim.run()
    retracting(scene)
    assert scene.leader().is_free
    assert scene.acquire(2).leader.lver == 2


def test_a_damaged_own_dblock_stays_and_the_leader_is_freed(scene: Scene, held: Held) -> None:
    damaged = scene.dblock(1)._replace(checksum=1)
    scene.put_own(1, damaged)
    releasing(scene, held)
    assert scene.leader().is_free
    assert scene.own(1).startswith(damaged.to_bytes())


# -- retract ----------------------------------------------------------------------------------------------


def test_retract_where_nothing_was_done(scene: Scene) -> None:
    before = scene.snapshot()
    retracting(scene)
    assert scene.snapshot() == before
    assert scene.last.sequence == "r0 r2 r0"


def test_retract_after_a_release_does_nothing(scene: Scene, held: Held) -> None:
    releasing(scene, held)
    before = scene.snapshot()
    retracting(scene)
    assert scene.snapshot() == before


@pytest.mark.parametrize("bal", [0, 2001])
def test_retract_a_ballot(scene: Scene, bal: int) -> None:
    dblock = Dblock(2001, bal, 1 if bal else 0, 1 if bal else 0, NOW if bal else 0, 1).sealed()
    scene.put_own(1, dblock)
    leader = scene.leader()
    retracting(scene)
    assert scene.dblock(1) == dblock._replace(flags=FLAG_RELEASED)
    assert scene.leader() == leader
    assert scene.last.sequence == "r0 r2 w2 r0"


def test_retract_a_commit(scene: Scene, held: Held) -> None:
    retracting(scene)
    assert scene.leader().is_free
    assert scene.dblock(1).is_released


def test_retract_a_shared_mark(scene: Scene) -> None:
    scene.put_own(1, Dblock(), ModeBlock.shared(1))
    retracting(scene)
    assert scene.mode(1) == ModeBlock()
    assert scene.dblock(1).never_used
    assert scene.dblock(1).is_released


def test_retract_leaves_a_later_owner_alone(scene: Scene, held: Held) -> None:
    leader = scene.put_leader(owner_id=2, lver=7, write_id=2)
    retracting(scene)
    assert scene.leader() == leader


def test_retract_leaves_a_co_committers_leader_alone(scene: Scene, held: Held) -> None:
    leader = scene.put_leader(write_id=3)
    retracting(scene)
    assert scene.leader() == leader
    assert scene.acquire(2, observations={1: seen_live(1, NOW)}).leader.lver == 2


def test_retract_loses_nothing_when_the_next_owner_is_quick(scene: Scene, held: Held) -> None:
    """A co-committer's leader names us, our flag is set, and the next host takes it between two looks."""
    scene.put_leader(write_id=3)

    def next_owner() -> None:
        scene.put_own(2, Dblock(4002, 4002, 2, 1, NOW, 2).sealed())
        scene.put_leader(owner_id=2, lver=2, write_id=2)

    retracting(scene, faults=before(5, next_owner))
    assert scene.leader().owner == (2, 1) or scene.last.sequence.count("r") == 3


# -- looking again ------------------------------------------------------------------------------------------


def test_what_is_held_is_held(scene: Scene, held: Held) -> None:
    scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=1))
    assert scene.last.sequence == "r0"
    assert scene.run(1, names_us(scene.claimant(1), scene.resource)) == held.leader
    scene.put_leader(write_id=3)
    scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=1))


@pytest.mark.parametrize("fields", [{"lver": 2}, {"owner_id": 2}, {"owner_generation": 2}, {"timestamp": 0}])
def test_what_was_taken_is_lost(scene: Scene, held: Held, fields: dict[str, int]) -> None:
    scene.put_leader(**fields)
    with pytest.raises(LeaseLost, match="no longer ours"):
        scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=1))
    found = scene.run(1, names_us(scene.claimant(1), scene.resource))
    assert (found is None) == ("lver" not in fields)


def test_a_leader_that_went_back_is_put_right(scene: Scene) -> None:
    """A slow co-committer is no successor: the VM goes on, and others find the owner again."""
    first = scene.acquire(1)
    scene.release(1, first)
    held = scene.acquire(1)
    scene.put_leader(**{**first.leader._asdict(), "write_id": 3})
    scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=held.leader.lver))
    assert scene.last.sequence == "r0 r0+8 w0"
    assert scene.leader() == held.leader


def test_a_leader_that_was_formatted_is_lost(scene: Scene, held: Held) -> None:
    """No host ever wrote version 0: that is no slow co-committer."""
    leader = scene.put_leader(lver=0, owner_id=0, owner_generation=0, timestamp=0, write_id=0)
    with pytest.raises(LeaseLost, match="no longer ours"):
        scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=held.leader.lver))
    assert scene.leader() == leader


@pytest.mark.parametrize(
    ("host_id", "dblock"),
    [
        (1, Dblock(4001, 4001, 1, 1, NOW, 2).sealed()._replace(flags=FLAG_RELEASED)),
        (1, Dblock(4001, 4001, 3, 1, NOW, 2).sealed()),
        (1, Dblock(4001, 4001, 1, 2, NOW, 2).sealed()),
        (1, Dblock(4001, 0, 0, 0, 0, 2).sealed()),
        (1, Dblock(2001, 2001, 1, 1, NOW, 1).sealed()),
        (1, Dblock(4001, 4001, 1, 1, NOW, 2, checksum=1)),
        (3, Dblock(6003, 0, 0, 0, 0, 3).sealed()),
        (3, Dblock(6003, 0, 0, 0, 0, 3, checksum=1)),
    ],
    ids=["released", "another's", "another generation", "no value", "older", "damaged", "a newer version",
         "another's damage"],
)  # fmt: skip
def test_a_leader_that_went_back_is_lost_where_the_dblocks_do_not_say_it_is_ours(
    scene: Scene, host_id: int, dblock: Dblock
) -> None:
    first = scene.acquire(1)
    scene.release(1, first)
    scene.acquire(1)
    before = scene.put_leader(**first.leader._asdict())
    scene.put_own(host_id, dblock)
    with pytest.raises(LeaseLost, match="no longer ours"):
        scene.run(1, verify_held(scene.claimant(1), scene.resource, lver=2))
    assert scene.leader() == before


def test_a_release_under_a_leader_that_went_back_is_a_release(scene: Scene) -> None:
    first = scene.acquire(1)
    scene.release(1, first)
    held = scene.acquire(1)
    leader = scene.put_leader(**{**first.leader._asdict(), "write_id": 3})
    releasing(scene, held)
    assert scene.dblock(1).is_released
    assert scene.leader() == leader, "an older version's is not ours to write"
    assert scene.acquire(2, observations={1: seen_live(1, NOW)}).leader.lver > held.leader.lver


def test_a_shared_mark_is_looked_at(scene: Scene) -> None:
    held = scene.acquire(1, shared=True)
    looking = {"lver": held.leader.lver, "shared": True}
    scene.run(1, verify_held(scene.claimant(1), scene.resource, **looking))
    assert scene.last.sequence == "r0 r2"
    for mode in (ModeBlock(), ModeBlock(1, 0), ModeBlock.shared(2), ModeBlock(0, 1)):
        scene.put_own(1, scene.dblock(1), mode)
        with pytest.raises(LeaseLost, match=r"^/disk:5120: our shared mark is gone"):
            scene.run(1, verify_held(scene.claimant(1), scene.resource, **looking))


# -- the note -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ALL_GEOMETRIES)
def test_the_owner_note_is_in_the_area_and_in_nobodys_way(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry, num_hosts=geometry.max_hosts)
    last = geometry.max_hosts
    held = scene.acquire(last)
    note = ownernote.to_bytes({"vm": "web1", "host_id": last, "generation": 1, "lver": 1})
    scene.run(last, write_note(scene.claimant(last), held.area, note))
    assert len(scene.last.ios) == 1
    found = ownernote.from_bytes(scene.run(1, read_note(held.area, 1)))
    assert found is not None
    assert ownernote.is_current(found, scene.leader())
    scene.release(last, held)
    assert not ownernote.is_current(found, scene.run(1, acquire(scene.claimant(1), scene.resource)).leader)
    scene.verify_area()
