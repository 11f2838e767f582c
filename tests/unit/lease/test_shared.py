"""The shared mode: three hosts, both modes, live and dead holders, and those who only pass through."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.sim.scene import NOW, NUM_HOSTS, Scene, seen_live, seen_silent
from tests.support.memory import ERROR, ERROR_LANDED, LOST, Fault, Host, fail_at
from vmlockctl.errors import LeaseHeld, RaceLost, SharedLeaseHeld, StorageError, WrongDblock
from vmlockctl.lease.liveness import Instance
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Held
from vmlockctl.lease.steps import WriteSector
from vmlockctl.lease.timeouts import SHARED_RETRIES
from vmlockctl.ondisk.dblock import FLAG_RELEASED, Dblock, ModeBlock
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD

LIVE = {host_id: seen_live(host_id, NOW) for host_id in range(1, NUM_HOSTS + 1)}


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


def sharing(scene: Scene, host_id: int) -> Held:
    return scene.acquire(host_id, shared=True, observations=LIVE)


def test_a_shared_acquire(scene: Scene) -> None:
    written: list[WriteSector] = []

    def watch(host: Host, step: WriteSector) -> None:
        written.append(step)

    scene.sim._on_write = watch
    held = sharing(scene, 1)
    assert scene.last.sequence == "r0 r0+2048 w2 r0+8 w2 r0+8 w0 r0 r2 w2 r0 w0"
    assert held.shared
    assert held.leader.flags & FLAG_SHORT_HOLD, "whoever meets it waits for a moment (12.1-16)"
    leader = scene.leader()
    assert leader.is_free
    assert leader.lver == held.leader.lver == 1, "a version is consumed (4.5)"
    assert not leader.flags & FLAG_SHORT_HOLD
    assert scene.mode(1) == ModeBlock.shared(1)
    assert scene.dblock(1) == Dblock(1, 1, 1, 1, NOW, 1).sealed()._replace(flags=FLAG_RELEASED)
    marks = [ModeBlock.from_bytes(step.data) for step in written if step.sector == 2]
    assert marks == [ModeBlock(), ModeBlock(), ModeBlock.shared(1)]


def test_a_shared_release(scene: Scene) -> None:
    held = sharing(scene, 1)
    leader = scene.leader()
    scene.release(1, held)
    assert scene.last.sequence == "r0 r2 w2"
    assert scene.leader() == leader
    assert scene.mode(1) == ModeBlock()
    assert scene.dblock(1) == Dblock(1, 1, 1, 1, NOW, 1).sealed()._replace(flags=FLAG_RELEASED)


@pytest.mark.parametrize("modes", list(product(["SH", "EX"], repeat=3)), ids="-".join)
def test_three_hosts_both_modes(scene: Scene, modes: tuple[str, ...]) -> None:
    """Shared holders stand side by side; an exclusive one stands alone."""
    holders: dict[int, str] = {}
    for host_id, mode in enumerate(modes, start=1):
        may = not holders or (mode == "SH" and "EX" not in holders.values())
        try:
            held = scene.acquire(host_id, shared=mode == "SH", observations=LIVE)
        except LeaseHeld as error:
            assert not may
            owners = {owner["host_id"] for owner in error.details["owners"]}
            assert owners == set(holders)
            assert error.details["mode"] == ("exclusive" if "EX" in holders.values() else "shared")
        else:
            assert may
            assert held.shared == (mode == "SH")
            holders[host_id] = mode
    assert {host for host in range(1, 4) if scene.mode(host).is_shared} == {
        host for host, mode in holders.items() if mode == "SH"
    }
    assert scene.leader().is_free == ("EX" not in holders.values())


def test_live_shared_holders_are_respected_and_named(scene: Scene) -> None:
    sharing(scene, 2)
    sharing(scene, 3)
    with pytest.raises(SharedLeaseHeld) as caught:
        scene.acquire(1, observations=LIVE)
    assert caught.value.details["owners"] == [
        {"host_id": 2, "generation": 1, "host_name": "hostB"},
        {"host_id": 3, "generation": 1, "host_name": "hostC"},
    ]
    assert caught.value.sanlk_rv == -11
    assert scene.leader().is_free, "the exclusive lease was given back (section 4.6)"
    assert scene.leader().lver == 3
    assert scene.dblock(1).is_released
    assert scene.mode(2).is_shared
    assert scene.mode(3).is_shared


def test_a_shared_holder_that_we_know_nothing_of_is_alive(scene: Scene) -> None:
    sharing(scene, 2)
    with pytest.raises(SharedLeaseHeld) as caught:
        scene.acquire(1)
    assert caught.value.details["owners"][0]["host_name"] == ""


@pytest.mark.parametrize(
    "row",
    [
        seen_silent(2, NOW, 69),
        seen_live(2, NOW, timestamp=0),
        seen_live(2, NOW, generation=2),
    ],
    ids=["silent", "left", "joined again"],
)
def test_a_dead_shared_holder_is_erased(scene: Scene, row: Any) -> None:
    sharing(scene, 2)
    sharing(scene, 3)
    scene.release(3, Held(scene.area, scene.leader(), shared=True))
    scene.may_clear.add(2)
    held = scene.acquire(1, observations={2: row})
    assert held.leader.lver == 3
    assert not any(scene.own(2)), "its whole sector is zero (section 4.6)"
    assert scene.last.sequence.endswith("w0 r0 r3 w3")
    scene.verify_area()


def test_a_silent_shared_holder_is_respected_until_it_is_certainly_dead(scene: Scene) -> None:
    sharing(scene, 2)
    with pytest.raises(SharedLeaseHeld):
        scene.acquire(1, observations={2: seen_silent(2, NOW, 68)})
    assert scene.mode(2).is_shared


@pytest.mark.parametrize(
    ("silent", "vouched", "taken"),
    [(9, (2, 1), True), (8, (2, 1), False), (9, (2, 2), False), (9, (3, 1), False)],
)
def test_a_shared_holder_that_a_person_knows_to_be_dead(
    scene: Scene, silent: float, vouched: tuple[int, int], taken: bool
) -> None:
    sharing(scene, 2)
    scene.may_clear.add(2)
    terms: dict[str, Any] = {
        "observations": {2: seen_silent(2, NOW, silent)}, "vouched": Instance(*vouched)
    }  # fmt: skip
    if taken:
        assert scene.acquire(1, **terms).leader.owner == (1, 1)
        return
    with pytest.raises(SharedLeaseHeld):
        scene.acquire(1, **terms)
    assert scene.mode(2).is_shared


def test_the_dead_are_erased_even_where_the_living_refuse(scene: Scene) -> None:
    sharing(scene, 2)
    sharing(scene, 3)
    scene.may_clear.add(2)
    with pytest.raises(SharedLeaseHeld) as caught:
        scene.acquire(1, observations={2: seen_silent(2, NOW, 69), 3: LIVE[3]})
    assert [owner["host_id"] for owner in caught.value.details["owners"]] == [3]
    assert not scene.mode(2).is_shared


def test_a_mark_that_went_away_meanwhile(scene: Scene) -> None:
    """12.1-9: read again before it is judged."""
    sharing(scene, 2)

    def goes_away(number: int, io: Any) -> None:
        if (io.kind, io.sector, io.count) == ("r", 3, 1):
            scene.put_own(2, scene.dblock(2))

    held = scene.acquire(1, observations=LIVE, task={"faults": goes_away})
    assert held.leader.lver == 2


def test_our_own_mark_of_an_earlier_life_is_no_obstacle(scene: Scene) -> None:
    sharing(scene, 1)
    held = scene.acquire(1, generation=2, observations=LIVE)
    assert held.leader.owner == (1, 2)
    assert scene.mode(1) == ModeBlock()


def test_our_own_old_mark_that_our_ballot_does_not_wipe_out_is_a_lost_write(scene: Scene) -> None:
    """The first write of the ballot was lost: the mark is still there when the dblocks are read."""
    sharing(scene, 1)
    with pytest.raises(StorageError, match="lost a write"):
        scene.acquire(1, generation=2, task={"faults": fail_at(3, Fault(LOST))})
    assert scene.leader().is_free
    assert scene.acquire(1, generation=2).leader.owner == (1, 2)


def test_a_mark_of_generation_0_is_nobodys(scene: Scene) -> None:
    scene.put_own(2, Dblock(), ModeBlock(1, 0))
    assert scene.acquire(1, observations=LIVE).leader.lver == 1


def test_a_shared_acquire_passes_shared_holders_by(scene: Scene) -> None:
    for host_id in (1, 2, 3, 4):
        sharing(scene, host_id)
        looked_at = {io.sector for io in scene.last.ios if io.count == 1}
        assert looked_at == {0, host_id + 1}, "nobody's mark is looked at"
    assert scene.leader().lver == 4


def test_somebody_who_only_passes_through_is_waited_for(scene: Scene) -> None:
    scene.put_leader(owner_id=2, owner_generation=1, lver=4, timestamp=900, write_id=2, flags=0x11)
    task = scene.start(1, acquire(scene.claimant(1, observations=LIVE), scene.resource, shared=True))
    scene.sim.run(until=NOW)
    assert not task.done
    scene.put_leader(timestamp=0, flags=0x10)
    scene.sim.run()
    assert task.outcome().leader.lver == 5
    assert [0 <= wait.seconds < 1 for wait in task.waits] == [True]


def test_but_not_for_ever(scene: Scene) -> None:
    scene.put_leader(owner_id=2, owner_generation=1, lver=4, timestamp=900, write_id=2, flags=0x11)
    before = scene.snapshot()
    with pytest.raises(LeaseHeld):
        sharing(scene, 1)
    assert len(scene.last.waits) == SHARED_RETRIES == 8
    assert scene.last.sequence.count("r0+2048") == 9
    assert scene.snapshot() == before


def test_an_exclusive_acquire_does_not_wait_for_it(scene: Scene) -> None:
    scene.put_leader(owner_id=2, owner_generation=1, lver=4, timestamp=900, write_id=2, flags=0x11)
    with pytest.raises(LeaseHeld) as caught:
        scene.acquire(1, observations=LIVE)
    assert caught.value.details["short_hold"]
    assert not scene.last.waits


def test_a_shared_acquire_does_not_wait_for_an_exclusive_holder(scene: Scene) -> None:
    scene.acquire(2)
    with pytest.raises(LeaseHeld):
        sharing(scene, 1)
    assert not scene.last.waits


def test_a_race_that_another_shared_acquire_won_is_run_again(scene: Scene) -> None:
    """It is on its way to a shared lease, like us: RaceLost with SHORT_HOLD."""

    def rival(host: Host, step: WriteSector) -> None:
        if step.what == "ballot 1 phase 1 for lver 1":
            scene.put_own(3, Dblock(6003, 6003, 3, 1, 990, 1).sealed()._replace(flags=1), ModeBlock.shared(1))
            scene.put_leader(owner_id=3, owner_generation=1, lver=1, timestamp=990, write_id=3, flags=0x11)

    def frees(number: int, io: Any) -> None:
        if scene.leader().owner_id == 3 and number > 6:
            scene.put_leader(timestamp=0, flags=0x10)

    scene.sim._on_write = rival
    held = scene.acquire(1, shared=True, observations=LIVE, task={"faults": frees})
    assert held.leader.lver == 2
    assert scene.mode(3).is_shared


def test_a_race_lost_for_good(scene: Scene) -> None:
    def rival(host: Host, step: WriteSector) -> None:
        if "phase 1" in step.what:
            scene.put_own(3, Dblock(9_000_003, 9_000_003, 3, 1, 990, 1).sealed())
            scene.put_leader(owner_id=3, owner_generation=1, lver=1, timestamp=990, write_id=3)

    scene.sim._on_write = rival
    with pytest.raises(RaceLost):
        sharing(scene, 1)


@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED])
@pytest.mark.parametrize("number", range(1, 13))
def test_an_error_at_every_step_is_undone_by_retract(scene: Scene, number: int, kind: str) -> None:
    claimant = scene.claimant(1)
    with pytest.raises(StorageError):
        scene.run(1, acquire(claimant, scene.resource, shared=True), faults=fail_at(number, Fault(kind)))
    scene.verify_area()
    scene.run(1, retract(claimant, scene.resource))
    assert not scene.mode(1).is_shared
    try:
        held = scene.acquire(2, observations=LIVE)
    except RaceLost:  # it had to commit our void value first (section 4.8)
        held = scene.acquire(2, observations=LIVE)
    assert held.leader.owner == (2, 1)


def test_it_is_an_error_where_there_is_no_thirteenth_step(scene: Scene) -> None:
    scene.acquire(1, shared=True, task={"faults": fail_at(13, Fault(ERROR))})


def test_a_leader_that_a_co_committer_rewrote_stays_and_is_void(scene: Scene) -> None:
    """Our RELEASED flag stands beside our shared mark: others may take the leader at once."""

    def rewrites(number: int, io: Any) -> None:
        if number == 11:
            scene.put_leader(write_id=3)

    held = scene.acquire(1, shared=True, task={"faults": rewrites})
    assert held.shared
    assert scene.leader().owner == (1, 1)
    assert not scene.leader().is_free
    with pytest.raises(SharedLeaseHeld):
        scene.acquire(2, observations=LIVE)
    assert sharing(scene, 3).shared


def test_our_own_dblock_damaged_between_the_ballot_and_the_mark(scene: Scene) -> None:
    """Nothing is marked shared on top of what we did not write."""

    def damages(number: int, io: Any) -> None:
        if number == 9:
            scene.put_own(1, Dblock(1, 1, 1, 1, NOW, 1, checksum=5))

    with pytest.raises(WrongDblock, match="^/disk:5120: the dblock of host id 1 has a wrong checksum"):
        scene.acquire(1, shared=True, task={"faults": damages})
    assert not scene.mode(1).is_shared


def test_a_shared_release_with_a_damaged_own_sector_is_no_success(scene: Scene) -> None:
    """The mark stays on the disk, so the lease was not released: it must not be told that it was."""
    held = sharing(scene, 1)
    scene.put_own(1, scene.dblock(1)._replace(checksum=5), ModeBlock.shared(1))
    try:
        scene.run(1, release(scene.claimant(1), scene.resource, lver=held.leader.lver, shared=True))
    except WrongDblock:
        return
    assert not scene.mode(1).is_shared
