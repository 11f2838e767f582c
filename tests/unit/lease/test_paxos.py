"""Exclusive acquire: the documented I/Os, who is respected, what is committed, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import pytest

from tests.sim.scene import DISK, NOW, NUM_HOSTS, SPACE, Scene, seen_live, seen_silent
from tests.support.memory import LOST, Fault, Faults, Host, Io, fail_at
from tests.unit.ondisk.examples import EXAMPLES
from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.errors import (
    ClearedResource,
    LeaseHeld,
    LverMoved,
    NoSuchArea,
    OnDiskError,
    RaceLost,
    StorageError,
    WrongChecksum,
    WrongDblock,
    WrongField,
    WrongLockspaceName,
    WrongMagic,
    WrongNumHosts,
    WrongResourceName,
)
from vmlockctl.lease.liveness import Instance, Observation
from vmlockctl.lease.paxos import BALLOT_RETRIES, MAX_VERSIONS_BACK, acquire
from vmlockctl.lease.release import release
from vmlockctl.lease.resource import Held, Resource, foreign_owner
from vmlockctl.lease.steps import WriteSector
from vmlockctl.ondisk.area import resource_area
from vmlockctl.ondisk.dblock import FLAG_RELEASED, MAX_MBAL, Dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD, PAXOS_CLEARED_MAGIC, Leader, name_field
from vmlockctl.units import MIB

# r0 leader, r1 whole area, w1 r2 w3 r4 ballot, w5 leader, r6 leader (sectors; host 1's own is 2).
ALONE = "r0 r0+2048 w2 r0+8 w2 r0+8 w0 r0"


@pytest.fixture
def scene() -> Scene:
    """Hosts 1 to 4 have joined; host 2's record says NOW - 5."""
    scene = Scene()
    for host_id in range(1, NUM_HOSTS + 1):
        scene.put_delta(host_id)
    return scene


def own(scene: Scene, host_id: int, **fields: Any) -> Leader:
    """Make a host the exclusive owner of version 4."""
    values = {
        "owner_id": host_id,
        "owner_generation": 1,
        "lver": 4,
        "timestamp": 900,
        "write_id": host_id,
        **fields,
    }
    return scene.put_leader(**values)


def before(number: int, action: Callable[[], object]) -> Faults:
    """Do something to the storage just before an I/O of a task begins."""

    def faults(count: int, io: Io) -> Optional[Fault]:
        if count == number:
            action()
        return None

    return faults


def on_write(scene: Scene, action: Callable[[WriteSector], object]) -> None:
    def watch(host: Host, step: WriteSector) -> None:
        scene.check_write(host, step)
        action(step)

    scene.sim._on_write = watch


def writes(scene: Scene) -> list[Io]:
    return [io for io in scene.sim.ios if io.kind == "w"]


def refused(scene: Scene, error: type[Exception], host_id: int = 1, **options: Any) -> Any:
    """Acquire; it must raise, and not have written a byte."""
    before = scene.snapshot()
    with pytest.raises(error) as caught:
        scene.acquire(host_id, **options)
    assert not writes(scene)
    assert scene.snapshot() == before
    return caught.value


# -- free, or ours -----------------------------------------------------------------------------------


def test_a_free_lease(scene: Scene) -> None:
    held = scene.acquire(1)
    assert scene.last.sequence == ALONE
    assert [io.path for io in scene.last.ios] == ["/disk"] * 8
    assert held == Held(scene.area, scene.leader(), shared=False)
    assert held.leader.owner == (1, 1)
    assert (held.leader.lver, held.leader.timestamp, held.leader.flags & FLAG_SHORT_HOLD) == (1, NOW, 0)
    assert held.leader[-3:] == (1, 1, NOW)
    scene.verify_area()


def test_the_bytes_are_sanlocks() -> None:
    """E8, E9, E7a; E10 and E7b by the release."""
    scene = Scene(num_hosts=2000)
    lockspace = scene.lockspace._replace(space_name="specls")
    scene.storage.write(
        scene.area, 0, resource_area(DEFAULT_GEOMETRY, space_name="specls", resource_name="resA")
    )
    claimant = scene.claimant(1)._replace(lockspace=lockspace)
    resource = Resource("/disk", scene.area.offset, "resA")
    host = Host(1, clock_offset=2624 - NOW)
    written: list[tuple[int, bytes]] = []
    on_write(scene, lambda step: written.append((step.sector, step.data)))
    held = scene.sim.run_one(host, acquire(claimant, resource))
    assert written == [(2, EXAMPLES["E8"]), (2, EXAMPLES["E9"]), (0, EXAMPLES["E7a"])]
    written.clear()
    scene.sim.run_one(host, release(claimant, resource, lver=held.leader.lver))
    assert written == [(2, EXAMPLES["E10"]), (0, EXAMPLES["E7b"])]
    # Host 2 takes it shared, as version 2.
    claimant = scene.claimant(2)._replace(lockspace=lockspace)
    host = Host(2, clock_offset=2624 - NOW)
    scene.sim.run_one(host, acquire(claimant, resource, shared=True))
    assert scene.own(2) == EXAMPLES["E11"]


@each_geometry
def test_every_geometry(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry, num_hosts=geometry.max_hosts)
    last = geometry.max_hosts
    held = scene.acquire(last)
    assert held.area.geometry == geometry
    assert scene.last.ios[1].count == geometry.sectors
    assert scene.last.ios[2].sector == last + 1
    scene.release(last, held)
    assert scene.leader().is_free
    scene.storage.check_guards()


def test_a_resource_and_a_lockspace_of_different_sizes() -> None:
    """A mixture works (section 2.1)."""
    scene = Scene(geometry=DEFAULT_GEOMETRY, lockspace_geometry=Geometry(4096, 8 * MIB))
    for host_id in (1, 2):
        scene.put_delta(host_id)
    held = scene.acquire(1)
    refused_by(scene, 2, {1: seen_live(1, NOW)})
    scene.release(1, held)
    assert scene.acquire(2).leader.lver == 2


def refused_by(scene: Scene, host_id: int, rows: dict[int, Observation]) -> LeaseHeld:
    with pytest.raises(LeaseHeld) as caught:
        scene.acquire(host_id, observations=rows)
    return caught.value


def test_flags_and_versions_that_we_do_not_know_stay(scene: Scene) -> None:
    scene.put_leader(flags=0xFFFF0011, version=0x00060009, unused1=77)
    held = scene.acquire(1)
    assert held.leader.flags == 0xFFFF0010
    assert (held.leader.version, held.leader.unused1) == (0x00060009, 77)
    scene.release(1, held)
    assert scene.leader().flags == 0xFFFF0010


@pytest.mark.parametrize("generation", [1, 2])
def test_a_lease_that_is_ours_already_or_was(scene: Scene, generation: int) -> None:
    """Of this generation, or left over from an earlier one: the ballot decides, at once."""
    own(scene, 1)
    held = scene.acquire(1, generation=generation)
    assert scene.last.sequence == ALONE
    assert (held.leader.lver, held.leader.owner) == (5, (1, generation))


def test_a_lease_of_our_later_generation_is_not_ours(scene: Scene) -> None:
    scene.put_delta(1, owner_generation=3)
    own(scene, 1, owner_generation=3)
    with pytest.raises(LeaseHeld):
        scene.acquire(1, generation=2)
    assert not writes(scene)


def test_every_acquire_takes_the_next_version(scene: Scene) -> None:
    for round_ in range(1, 6):
        host_id = 1 + round_ % 3
        held = scene.acquire(host_id)
        assert held.leader.lver == round_
        assert scene.dblock(host_id).lver == round_
        scene.release(host_id, held)


def test_ballot_numbers_grow_over_all_dblocks(scene: Scene) -> None:
    scene.put_own(3, Dblock(mbal=6003, lver=0).sealed())
    scene.acquire(1)
    assert scene.dblock(1).mbal == 8001


# -- an owner ----------------------------------------------------------------------------------------


def test_a_live_owner(scene: Scene) -> None:
    own(scene, 2, flags=0x10)
    error = refused(scene, LeaseHeld, observations={2: seen_live(2, NOW)})
    assert scene.last.sequence == "r0 r0+2048 r1"
    assert scene.last.ios[2].path == "/space"
    assert error.message == "the lease disk is held by host 'hostB'"
    assert error.details == {
        "owners": [{"host_id": 2, "generation": 1, "host_name": "hostB", "io_timeout": 1}],
        "lver": 4,
        "mode": "exclusive",
        "state": "live",
        "short_hold": False,
    }


def test_an_owner_whose_record_has_changed_since(scene: Scene) -> None:
    own(scene, 2)
    error = refused(scene, LeaseHeld, observations={2: seen_silent(2, NOW, 500, timestamp=1)})
    assert error.details["state"] == "live"


def test_a_silent_owner(scene: Scene) -> None:
    own(scene, 2)
    error = refused(scene, LeaseHeld, observations={2: seen_silent(2, NOW, 50)})
    assert error.details["state"] == "fail"
    assert error.details["takeover_in"] == 18
    assert "which is silent" in error.message


def test_an_owner_that_we_know_nothing_of(scene: Scene) -> None:
    own(scene, 2)
    error = refused(scene, LeaseHeld)
    assert error.details["state"] == "unknown"
    assert error.details["takeover_in"] == 68


@pytest.mark.parametrize(
    "row",
    [
        seen_silent(2, NOW, 500, generation=9),  # another possession of that host id
        seen_silent(2, NOW, 500, last_check=0),
        Observation(
            2, 1, NOW - 5, "hostB", 1, first_check=NOW - 500, last_check=NOW
        ),  # no change was ever seen
    ],
    ids=["another generation", "no look", "no change"],
)
def test_a_row_that_does_not_speak_of_the_owner(scene: Scene, row: Observation) -> None:
    own(scene, 2)
    assert refused(scene, LeaseHeld, observations={2: row}).details["state"] == "unknown"


@pytest.mark.parametrize(
    ("n", "silent", "taken"), [(1, 68, False), (1, 69, True), (10, 140, False), (10, 141, True)]
)
def test_a_dead_owner(scene: Scene, n: int, silent: float, taken: bool) -> None:
    """Strictly more than 8N + 60 of the *owner's* io_timeout."""
    scene.put_delta(2, io_timeout=n)
    own(scene, 2)
    rows = {2: seen_silent(2, NOW, silent, io_timeout=n)}
    if not taken:
        refused(scene, LeaseHeld, observations=rows)
        return
    held = scene.acquire(1, observations=rows)
    assert scene.last.sequence == "r0 r0+2048 r1 r0 w2 r0+8 w2 r0+8 w0 r0"
    assert held.leader.lver == 5


@pytest.mark.parametrize(
    ("n", "silent", "taken"), [(1, 8, False), (1, 9, True), (10, 80, False), (10, 81, True)]
)
def test_an_owner_that_a_person_knows_to_be_dead(scene: Scene, n: int, silent: float, taken: bool) -> None:
    """Strictly more than 8N, and for that very instance only."""
    scene.put_delta(2, io_timeout=n)
    own(scene, 2)
    rows = {2: seen_silent(2, NOW, silent, io_timeout=n)}
    for vouched in (Instance(2, 2), Instance(1, 1), Instance(3, 1)):
        refused(scene, LeaseHeld, observations=rows, vouched=vouched)
    if not taken:
        error = refused(scene, LeaseHeld, observations=rows, vouched=Instance(2, 1))
        assert error.details["takeover_in"] == 0
        return
    assert scene.acquire(1, observations=rows, vouched=Instance(2, 1)).leader.lver == 5


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {2: seen_live(2, NOW)},
        {2: seen_silent(2, NOW, 500, timestamp=1)},
        {2: seen_silent(2, NOW, 500, generation=9)},
        {2: seen_silent(2, NOW, 500, last_check=NOW - 500)},
    ],
    ids=["never seen", "renews", "renewed since", "another generation", "not looked at again"],
)
def test_no_vouch_stands_in_for_the_silence(scene: Scene, rows: dict[int, Observation]) -> None:
    own(scene, 2)
    refused(scene, LeaseHeld, observations=rows, vouched=Instance(2, 1))


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"timestamp": 0}, True),
        ({"timestamp": 0}, False),
        ({"owner_generation": 2}, True),
        ({"owner_generation": 2}, False),
        ({"owner_id": 3}, False),
    ],
)
def test_an_owner_that_has_left_or_joined_again(scene: Scene, fields: dict[str, Any], row: bool) -> None:
    own(scene, 2)
    scene.put_delta(2, **fields)
    held = scene.acquire(1, observations={2: seen_live(2, NOW)} if row else {})
    assert held.leader.owner == (1, 1)


def test_a_record_of_an_earlier_generation_is_respected(scene: Scene) -> None:
    """A lockspace that was made anew under a lease: nothing is certain, so it is held."""
    own(scene, 2, owner_generation=5)
    refused(scene, LeaseHeld)


def test_an_owner_whose_record_is_damaged(scene: Scene) -> None:
    own(scene, 2)
    scene.put(scene.space, 1, b"rubbish")
    refused(scene, WrongMagic, observations={2: seen_silent(2, NOW, 500)})


def test_an_owner_with_an_io_timeout_that_cannot_be(scene: Scene) -> None:
    own(scene, 2)
    for stored in (0, 0x8000):
        scene.put_delta(2, io_timeout=stored)
        assert refused(scene, LeaseHeld).details["takeover_in"] == 68


@pytest.mark.parametrize("write_id", [2, 3])
@pytest.mark.parametrize("flags", [0, FLAG_RELEASED])
def test_a_release_that_a_co_committer_overwrote(scene: Scene, write_id: int, flags: int) -> None:
    """12.1-5: leader owned, owner alive, but another host wrote it and the owner's dblock says RELEASED."""
    own(scene, 2, write_id=write_id)
    scene.put_own(2, Dblock(2002, 2002, 2, 1, 900, 4).sealed()._replace(flags=flags))
    rows = {2: seen_live(2, NOW)}
    if write_id == 3 and flags:
        held = scene.acquire(1, observations=rows)
        assert held.leader.lver == 5
        assert scene.last.sequence == "r0 r0+2048 r1 r3 r0 w2 r0+8 w2 r0+8 w0 r0"
    else:
        refused(scene, LeaseHeld, observations=rows)


def test_a_release_of_an_earlier_version_says_nothing_of_this_one(scene: Scene) -> None:
    """It is an old read, as a cache shows it: the owner released that version before it won this one."""
    own(scene, 2, write_id=3)
    scene.put_own(2, Dblock(2002, 2002, 2, 1, 900, 3).sealed()._replace(flags=FLAG_RELEASED))
    refused(scene, LeaseHeld, observations={2: seen_live(2, NOW)})


def test_a_blanked_dblock_with_the_flag_is_a_release_too(scene: Scene) -> None:
    """12.2-f."""
    own(scene, 2, write_id=3)
    scene.put_own(2, Dblock().sealed()._replace(flags=FLAG_RELEASED))
    assert scene.acquire(1, observations={2: seen_live(2, NOW)}).leader.lver == 5


# -- waiting for a dead owner ------------------------------------------------------------------------


def waiting(scene: Scene, **options: Any) -> Any:
    return scene.start(
        1, acquire(scene.claimant(1, **options), scene.resource, wait_for_dead_owner=True), name="waiter"
    )


def test_waiting_until_it_is_dead(scene: Scene) -> None:
    own(scene, 2)
    task = waiting(scene)
    scene.sim.run(until=NOW + 68)
    assert not writes(scene)
    scene.sim.run()
    assert task.outcome().leader.lver == 5
    assert NOW + 68 < scene.sim.now <= NOW + 70
    assert task.sequence.startswith("r0 r0+2048 r1 r0 r1 r0 ")


def test_waiting_counts_what_was_seen_before(scene: Scene) -> None:
    own(scene, 2)
    waiting(scene, observations={2: seen_silent(2, NOW, 60)})
    scene.sim.run(until=NOW + 8)
    assert not writes(scene)
    scene.sim.run()
    assert scene.leader().owner == (1, 1)
    assert scene.sim.now <= NOW + 10


def test_waiting_ends_with_a_sign_of_life(scene: Scene) -> None:
    own(scene, 2)
    task = waiting(scene)
    scene.sim.run(until=NOW + 30)
    scene.put_delta(2, timestamp=NOW + 30)
    scene.sim.run()
    with pytest.raises(LeaseHeld):
        task.outcome()
    assert scene.sim.now <= NOW + 31
    assert not writes(scene)


def test_waiting_ends_when_it_is_released(scene: Scene) -> None:
    own(scene, 2)
    task = waiting(scene)
    scene.sim.run(until=NOW + 30)
    scene.put_leader(timestamp=0)
    scene.sim.run()
    assert task.outcome().leader.lver == 5
    assert scene.sim.now <= NOW + 31


def test_waiting_ends_when_the_owner_leaves(scene: Scene) -> None:
    own(scene, 2)
    task = waiting(scene)
    scene.sim.run(until=NOW + 30)
    scene.put_delta(2, timestamp=0)
    scene.sim.run()
    assert task.outcome().leader.lver == 5


# -- the version that the caller expects -------------------------------------------------------------


def test_the_expected_version(scene: Scene) -> None:
    own(scene, 2, timestamp=0)
    assert scene.acquire(1, expect_lver=4).leader.lver == 5


@pytest.mark.parametrize("expected", [0, 3, 5])
def test_another_version(scene: Scene, expected: int) -> None:
    own(scene, 2, timestamp=0)
    error = refused(scene, LverMoved, expect_lver=expected)
    assert error.details == {"lver": 4, "expected": expected}
    assert error.sanlk_rv == -240


def test_the_version_is_judged_before_the_owner(scene: Scene) -> None:
    """Section 4.10."""
    own(scene, 2)
    refused(scene, LverMoved, expect_lver=3, observations={2: seen_live(2, NOW)})


def test_version_0_is_a_version(scene: Scene) -> None:
    assert scene.acquire(1, expect_lver=0).leader.lver == 1


# -- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"magic": 1}, WrongMagic),
        ({"magic": PAXOS_CLEARED_MAGIC}, ClearedResource),
        ({"space_name": name_field("other")}, WrongLockspaceName),
        ({"resource_name": name_field("other")}, WrongResourceName),
        ({"num_hosts": 0}, WrongNumHosts),
        ({"max_hosts": 8}, WrongField),
        ({"owner_id": 2001}, WrongField),
    ],
)
def test_a_damaged_leader(scene: Scene, fields: dict[str, Any], error: type[OnDiskError]) -> None:
    scene.put_leader(**fields)
    assert refused(scene, error).message.startswith("/disk:4096: ")


def test_a_leader_with_a_wrong_checksum(scene: Scene) -> None:
    scene.put_leader(lver=9, sealed=False)
    refused(scene, WrongChecksum)


def test_a_host_that_the_lease_has_no_room_for() -> None:
    scene = Scene(num_hosts=2)
    with pytest.raises(WrongNumHosts):
        scene.sim.run_one(Host(3), acquire(scene.claimant(3), scene.resource))


def test_no_such_resource(scene: Scene) -> None:
    with pytest.raises(NoSuchArea):
        scene.run(1, acquire(scene.claimant(1), Resource("/none", 0, DISK)))


@pytest.mark.parametrize(
    ("dblock", "told"),
    [
        (Dblock(mbal=3, lver=1, checksum=1), "wrong checksum"),
        (Dblock(mbal=MAX_MBAL + 1, lver=1).sealed(), "absurd ballot number"),
        (Dblock(mbal=2**64 - 1, lver=1).sealed(), "absurd ballot number"),
        (Dblock(mbal=3, lver=MAX_VERSIONS_BACK + 1).sealed(), "absurd lver"),
        (Dblock(mbal=3, lver=1 << 62).sealed(), "absurd lver"),
    ],
)
@pytest.mark.parametrize("host_id", [1, 3])
def test_a_damaged_dblock_is_named_before_anything_is_written(
    scene: Scene, host_id: int, dblock: Dblock, told: str
) -> None:
    """12.2-j; our own is no exception."""
    scene.put_own(host_id, dblock)
    error = refused(scene, WrongDblock)
    place = scene.area.byte_offset(host_id + 1)
    assert error.message.startswith(f"/disk:{place}: the dblock of host id {host_id} has ")
    assert told in error.message
    assert "found" in error.message
    assert "expected" in error.message
    assert scene.last.sequence == "r0 r0+2048"


@pytest.mark.parametrize("mbal", [MAX_MBAL, MAX_MBAL - 1, MAX_MBAL - 1000])
def test_a_ballot_number_that_leaves_no_room_is_named(scene: Scene, mbal: int) -> None:
    """We would have to write one that every reader takes for damage, and that no rival would count."""
    scene.put_own(3, Dblock(mbal=mbal, lver=1).sealed())
    assert "host id 3" in refused(scene, WrongDblock).message


@pytest.mark.parametrize(
    "dblock",
    [
        Dblock(mbal=2003, bal=2003, inp=2001, inp2=1, inp3=5, lver=1).sealed(),
        Dblock(mbal=2003, bal=2003, inp=2**64 - 1, inp2=1, inp3=5, lver=1).sealed(),
    ],
    ids=["2001", "2**64-1"],
)
def test_a_proposed_owner_that_cannot_be_is_never_committed(scene: Scene, dblock: Dblock) -> None:
    """It would make the leader unreadable for every host, by our own hand."""
    scene.put_own(3, dblock)
    refused(scene, WrongDblock)
    scene.leader()


@pytest.mark.parametrize("read", [acquire, foreign_owner])
def test_an_owned_leader_without_an_owner(scene: Scene, read: Any) -> None:
    """A valid checksum around owner_id 0: the world's mistake, not ours."""
    own(scene, 0, owner_generation=0, write_id=0)
    with pytest.raises(OnDiskError):
        scene.run(1, read(scene.claimant(1), scene.resource))
    assert not writes(scene)


@pytest.mark.parametrize("read", [acquire, foreign_owner])
def test_an_owner_that_the_lockspace_has_no_record_of(read: Any) -> None:
    scene = Scene(geometry=DEFAULT_GEOMETRY, lockspace_geometry=Geometry(4096, MIB))
    own(scene, 251, owner_generation=1)
    with pytest.raises(OnDiskError):
        scene.run(1, read(scene.claimant(1), scene.resource))
    assert not writes(scene)


def test_a_newer_dblock_that_was_only_a_torn_look(scene: Scene) -> None:
    """A host between its ballot and its leader write."""
    leader = own(scene, 2, timestamp=0)
    scene.put_own(2, Dblock(mbal=2002, lver=6).sealed()._replace(flags=FLAG_RELEASED))
    held = scene.acquire(1, task={"faults": before(3, lambda: scene.put_leader(lver=leader.lver + 2))})
    assert held.leader.lver == 7
    assert scene.last.sequence.startswith("r0 r0+2048 r0 r0 r0+2048 w2")


@pytest.mark.parametrize(
    ("sizes", "later"),
    [(DEFAULT_GEOMETRY, Geometry(4096, MIB)), (Geometry(4096, MIB), DEFAULT_GEOMETRY)],
    ids=["512 to 4096", "4096 to 512"],
)
def test_sizes_that_change_between_two_looks(sizes: Geometry, later: Geometry) -> None:
    """Section 4.1: "sizes used != sizes stored: use those, RESTART"; never a write at the old places."""
    scene = Scene(geometry=sizes)
    other = resource_area(later, space_name=SPACE, resource_name=DISK)
    wrong: list[WriteSector] = []

    def watch(host: Host, step: WriteSector) -> None:
        if step.area.geometry == sizes:
            wrong.append(step)

    scene.sim._on_write = watch
    try:
        held = scene.acquire(1, task={"faults": before(2, lambda: scene.storage.write(scene.area, 0, other))})
    except OnDiskError:
        pass
    else:
        assert held.area.geometry == later
    assert not wrong


# -- contention --------------------------------------------------------------------------------------


def test_a_ballot_that_never_ends_is_given_up_and_named(scene: Scene) -> None:
    def outbid(step: WriteSector) -> None:
        mine = Dblock.from_bytes(step.data)
        scene.put_own(3, Dblock(mbal=mine.mbal + 2, lver=mine.lver).sealed())

    on_write(scene, outbid)
    with pytest.raises(RaceLost) as caught:
        scene.acquire(1)
    assert len([io for io in scene.last.ios if io.kind == "w"]) == BALLOT_RETRIES
    place = scene.area.byte_offset(4)
    assert caught.value.message.startswith(f"/disk:{place}: the dblock of host id 3 kept a larger ballot")
    assert caught.value.details == {"host_id": 3}
    assert all(0 <= wait.seconds < 1 for wait in scene.last.waits)
    mbals = [int(io.what.split()[1]) for io in scene.last.ios if io.kind == "w"]
    assert [later - sooner for sooner, later in zip(mbals, mbals[1:])] == [2000] * (BALLOT_RETRIES - 1)


def test_a_newer_version_that_never_reaches_the_leader(scene: Scene) -> None:
    """Whatever version we go for, somebody is in a later one: given up in the end, and nothing is granted."""

    def one_later(step: WriteSector) -> None:
        scene.put_own(3, Dblock(mbal=3, lver=Dblock.from_bytes(step.data).lver + 1).sealed())

    on_write(scene, one_later)
    with pytest.raises(RaceLost, match=f"changed hands {BALLOT_RETRIES} times"):
        scene.acquire(1)
    assert scene.leader().is_free


# -- a leader that went back -------------------------------------------------------------------------


def test_the_newest_version_among_the_dblocks_is_voted_on(scene: Scene) -> None:
    """faults.md 3b: sanlock retries for ever here (-212). Nobody had chosen anything for it: it is ours."""
    scene.put_own(3, Dblock(mbal=3, lver=7).sealed())
    held = scene.acquire(1)
    assert (held.leader.lver, held.leader.owner) == (7, (1, 1))
    assert scene.last.sequence == "r0 r0+2048 r0 w2 r0+8 w2 r0+8 w0 r0"


def test_what_the_newest_version_has_decided_stands(scene: Scene) -> None:
    scene.put_own(3, Dblock(2003, 2003, 3, 1, 990, 7).sealed())
    with pytest.raises(RaceLost, match="host id 3 won"):
        scene.acquire(1)
    assert (scene.leader().owner, scene.leader().lver) == ((3, 1), 7)
    refused_by(scene, 1, {3: seen_live(3, NOW)})


def test_the_owner_of_an_old_version_is_respected_all_the_same(scene: Scene) -> None:
    """A dblock may be garbage with a valid sum (12.2-n): the leader's owner must be gone first."""
    own(scene, 2)
    scene.put_own(3, Dblock(mbal=3, lver=7).sealed())
    refused(scene, LeaseHeld, observations={2: seen_live(2, NOW)})
    assert not writes(scene)


def test_an_owner_that_went_on_to_a_later_version_holds_the_old_one_no_more(scene: Scene) -> None:
    own(scene, 2, write_id=4)
    scene.put_own(2, Dblock(4002, 4002, 2, 1, NOW, 5).sealed())
    scene.put_leader(lver=2)
    with pytest.raises(RaceLost, match="host id 2 won"):
        scene.acquire(1, observations={2: seen_live(2, NOW)})
    assert (scene.leader().owner, scene.leader().lver) == ((2, 1), 5)


def test_expect_lver_looks_at_the_dblocks_too(scene: Scene) -> None:
    scene.put_own(3, Dblock(2003, 2003, 3, 1, 990, 7).sealed()._replace(flags=FLAG_RELEASED))
    error = refused(scene, LverMoved, expect_lver=0)
    assert error.details == {"lver": 6, "expected": 0}


# -- a version that we gave up -----------------------------------------------------------------------


def test_a_version_that_we_retracted_is_no_grant_but_the_next_is(scene: Scene) -> None:
    """Another host may have adopted our value, and a third may have read our RELEASED flag."""
    scene.put_own(1, Dblock(2001, 2001, 1, 1, 990, 1).sealed()._replace(flags=FLAG_RELEASED))
    seen: list[tuple[int, bool, int, int]] = []

    def look(step: WriteSector) -> None:
        if step.sector == 2:
            mine = Dblock.from_bytes(step.data)
            seen.append((mine.lver, mine.is_released, mine.bal, mine.inp))

    on_write(scene, look)
    held = scene.acquire(1)
    assert (held.leader.lver, held.leader.owner) == (2, (1, 1))
    assert seen[0] == (1, True, 2001, 1), "its value stays, as in the paper"
    assert seen[1][:2] == (1, True)
    assert [(lver, released) for lver, released, _, _ in seen[2:]] == [(2, False)] * 2


def test_a_retracted_version_that_another_host_committed_for_us_is_no_grant(scene: Scene) -> None:
    own(scene, 2)
    scene.put_own(1, Dblock(2001, 2001, 1, 1, 990, 2).sealed()._replace(flags=FLAG_RELEASED))
    scene.put_delta(2, timestamp=0)

    def committed() -> None:
        scene.put_leader(owner_id=1, owner_generation=1, lver=2, timestamp=990, write_id=3)

    held = scene.acquire(1, task={"faults": before(4, committed)})
    assert (held.leader.lver, held.leader.owner) == (3, (1, 1))


def test_a_lease_that_changes_hands_all_the_time(scene: Scene) -> None:
    count = iter(range(1, 1000))

    def faults(number: int, io: Io) -> Optional[Fault]:
        if io.count == 1 and io.sector == 0 and number > 1:
            scene.put_leader(lver=2 * next(count))
        return None

    own(scene, 2)
    scene.put_delta(2, timestamp=0)
    with pytest.raises(RaceLost, match=f"changed hands {BALLOT_RETRIES} times"):
        scene.acquire(1, task={"faults": faults})
    assert not writes(scene)


def test_another_host_wins_between_our_ballots(scene: Scene) -> None:
    """Aborted in phase 1; the leader that we read then says who won this version."""

    def rival(step: WriteSector) -> None:
        if "phase 1" in step.what:
            scene.put_own(3, Dblock(6003, 6003, 3, 1, 990, 1).sealed())
            scene.put_leader(owner_id=3, owner_generation=1, lver=1, timestamp=990, write_id=3, flags=0x11)

    on_write(scene, rival)
    with pytest.raises(RaceLost, match="host id 3 won the lease disk") as caught:
        scene.acquire(1)
    assert caught.value.details["short_hold"]
    assert caught.value.details["owners"] == [{"host_id": 3, "generation": 1}]
    assert scene.leader().owner == (3, 1)


def test_another_host_wins_for_us_between_our_ballots(scene: Scene) -> None:
    """Aborted in phase 2, but the rival had adopted our value: the leader names us."""

    def rival(step: WriteSector) -> None:
        if "phase 2" in step.what:
            scene.put_own(3, Dblock(6003, 6003, 1, 1, NOW, 1).sealed())
            scene.put_leader(owner_id=1, owner_generation=1, lver=1, timestamp=NOW, write_id=3)

    on_write(scene, rival)
    held = scene.acquire(1)
    assert held.leader.write_id == 3
    assert held.leader.owner == (1, 1)
    assert scene.last.sequence == "r0 r0+2048 w2 r0+8 w2 r0+8 r0 r0+8"


def test_the_version_was_won_and_given_back_between_our_ballots(scene: Scene) -> None:
    def rival(step: WriteSector) -> None:
        if step.what == "ballot 1 phase 1 for lver 1":
            scene.put_own(3, Dblock(6003, 6003, 3, 1, 990, 1).sealed()._replace(flags=FLAG_RELEASED))
            scene.put_leader(owner_id=3, owner_generation=1, lver=1, timestamp=0, write_id=3)

    on_write(scene, rival)
    held = scene.acquire(1)
    assert held.leader.lver == 2
    assert held.leader.owner == (1, 1)


def test_the_value_of_another_host_is_committed(scene: Scene) -> None:
    """It went through phase 2 and died before its leader write: it may have won, so it has."""
    scene.put_own(3, Dblock(2003, 2003, 3, 1, 990, 1).sealed())
    with pytest.raises(RaceLost, match="host id 3 won"):
        scene.acquire(1)
    leader = scene.leader()
    assert (leader.owner, leader.lver, leader.timestamp, leader.write_id) == ((3, 1), 1, 990, 1)
    assert scene.last.sequence == "r0 r0+2048 w2 r0+8 w2 r0+8 w0 r4"
    # When host 3 is dead, the next version is there to be had.
    rows = {3: seen_silent(3, NOW, 69)}
    assert scene.acquire(1, observations=rows).leader.lver == 2


def test_the_value_of_our_own_earlier_generation_is_no_grant(scene: Scene) -> None:
    """12.2-e: sanlock reports success here; a third host would take the lease from us at once."""
    scene.put_own(3, Dblock(2003, 2003, 1, 4, 990, 1).sealed())
    held = scene.acquire(1, generation=5)
    assert (held.leader.owner, held.leader.lver) == ((1, 5), 2)


def test_a_leader_of_our_earlier_generation_for_this_version_is_no_grant(scene: Scene) -> None:
    def rival(step: WriteSector) -> None:
        if step.what == "ballot 1 phase 1 for lver 1":
            scene.put_own(3, Dblock(6003, 6003, 1, 4, 990, 1).sealed())
            scene.put_leader(owner_id=1, owner_generation=4, lver=1, timestamp=990, write_id=3)

    on_write(scene, rival)
    try:
        held = scene.acquire(1, generation=5)
    except RaceLost:
        return
    assert held.leader.owner == (1, 5)


def test_a_leader_write_that_was_lost(scene: Scene) -> None:
    with pytest.raises(StorageError, match="the leader that was just written is not there") as caught:
        scene.acquire(1, task={"faults": fail_at(7, Fault(LOST))})
    assert "found lver 0 owner 0:0, expected lver 1 owner 1:1" in caught.value.message
    assert "lost a write" in str(caught.value.hint)
    assert scene.leader().is_free


def test_a_co_committer_that_wrote_the_same_after_us(scene: Scene) -> None:
    """The leader that is there counts, not the one that we wrote."""
    held = scene.acquire(
        1, task={"faults": before(8, lambda: scene.put_leader(write_id=3, write_timestamp=995))}
    )
    assert (held.leader.write_id, held.leader.owner) == (3, (1, 1))


@pytest.mark.parametrize("fields", [{"lver": 2}, {"owner_id": 3}, {"owner_generation": 2}, {"timestamp": 0}])
def test_a_leader_that_is_no_longer_ours_when_we_look_again(scene: Scene, fields: dict[str, int]) -> None:
    with pytest.raises(StorageError, match="is not there"):
        scene.acquire(1, task={"faults": before(8, lambda: scene.put_leader(**fields))})


# -- for messages ------------------------------------------------------------------------------------


def test_foreign_owner(scene: Scene) -> None:
    claimant = scene.claimant(1)
    assert scene.run(1, foreign_owner(claimant, scene.resource)) is None
    own(scene, 1)
    assert scene.run(1, foreign_owner(claimant, scene.resource)) is None
    own(scene, 2)
    owner = scene.run(1, foreign_owner(claimant, scene.resource))
    assert owner == {"host_id": 2, "generation": 1, "host_name": "hostB", "io_timeout": 1}
