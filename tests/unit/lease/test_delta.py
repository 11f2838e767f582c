"""Join, renew and leave: what is read and written, in which order, and what each refusal leaves behind."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from tests.sim.scene import IO_TIMEOUT, NOW, SPACE, Scene, host_name
from tests.support.memory import ERROR, LOST, TIMEOUT, Fault, fail_at
from tests.unit.ondisk.examples import EXAMPLES
from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.errors import (
    HostIdBusy,
    HostLeaseLost,
    IoTimeout,
    NoSuchArea,
    OnDiskError,
    StorageError,
    UsageError,
    WrongChecksum,
    WrongField,
    WrongLockspaceName,
    WrongMagic,
    WrongSectorSize,
    WrongVersion,
)
from vmlockctl.lease.delta import (
    HostLease,
    check_host_id,
    identify_lockspace,
    join,
    leave,
    occupied_records,
    read_record,
    renew,
)
from vmlockctl.lease.steps import Wait
from vmlockctl.ondisk import bitmap
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import Leader, name_field
from vmlockctl.units import MIB


def joining(scene: Scene, host_id: int, *, gone: bool = False, **options: Any) -> Any:
    values = {"host_name": host_name(host_id), "io_timeout": scene.io_timeout, **options}
    return join(scene.lockspace, host_id=host_id, earlier_instance_gone=gone, **values)


def joined(scene: Scene, host_id: int = 2) -> HostLease:
    lease = scene.run(host_id, joining(scene, host_id))
    assert isinstance(lease, HostLease)
    return lease


def waited(scene: Scene) -> float:
    return sum(wait.seconds for wait in scene.last.waits)


# -- finding a lockspace ----------------------------------------------------------------------------


@each_geometry
def test_identify(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry, io_timeout=7)
    for name in (SPACE, None):
        found = scene.run(1, identify_lockspace("/space", scene.space.offset, space_name=name))
        assert found == scene.lockspace
        assert scene.last.ios[0].kind == "r"
        assert {io.kind for io in scene.last.ios} == {"r"}


def test_identify_goes_by_the_first_record_only() -> None:
    scene = Scene()
    scene.put(scene.space, 1, b"rubbish")
    assert scene.run(2, identify_lockspace("/space", scene.space.offset, space_name=SPACE)) == scene.lockspace


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"magic": 0x12345678}, WrongMagic),
        ({"version": 0x00040000}, WrongVersion),
        ({"space_name": name_field("other")}, WrongLockspaceName),
        ({"sector_size": 1024}, WrongSectorSize),
        ({"sector_size": 0}, WrongSectorSize),
    ],
)
def test_identify_refuses(fields: dict[str, Any], error: type[OnDiskError]) -> None:
    scene = Scene()
    record = Leader.from_bytes(scene.sector(scene.space, 0))._replace(**fields)
    scene.put(scene.space, 0, record.sealed().to_bytes())
    with pytest.raises(error, match="^/space:4096: "):
        scene.run(1, identify_lockspace("/space", scene.space.offset, space_name=SPACE))


def test_the_damaged_record_of_host_1_keeps_only_host_1_out() -> None:
    """Section 1.7: for the sizes the checksum is not asked; faults.md: peers' slots are still used."""
    scene = Scene()
    scene.put_delta(1, sealed=False)
    with pytest.raises(WrongChecksum):
        scene.delta(1)
    found = scene.run(2, identify_lockspace("/space", scene.space.offset, space_name=SPACE))
    assert found.area == scene.space
    assert scene.run(2, joining(scene, 2)).generation == 1
    with pytest.raises(WrongChecksum):
        scene.run(1, joining(scene, 1))


def test_identify_a_resource() -> None:
    scene = Scene()
    with pytest.raises(WrongMagic, match="^/disk:4096: "):
        scene.run(1, identify_lockspace("/disk", scene.area.offset, space_name=None))


def test_identify_what_is_not_there() -> None:
    with pytest.raises(NoSuchArea):
        Scene().run(1, identify_lockspace("/none", 0, space_name=None))


def test_an_insane_io_timeout_on_the_disk_is_not_believed() -> None:
    scene = Scene()
    scene.put_delta(1, io_timeout=0xFFFF)
    assert scene.run(2, identify_lockspace("/space", scene.space.offset, space_name=None)).io_timeout == 10


@pytest.mark.parametrize(("geometry", "last"), [(DEFAULT_GEOMETRY, 2000), (Geometry(4096, MIB), 250)])
def test_host_ids_of_a_lockspace(geometry: Geometry, last: int) -> None:
    check_host_id(geometry, 1)
    check_host_id(geometry, last)
    for outside in (-1, 0, last + 1):
        with pytest.raises(UsageError, match=f"expected 1 to {last}"):
            check_host_id(geometry, outside)


# -- join -------------------------------------------------------------------------------------------


def test_join_writes_what_sanlock_writes() -> None:
    """E1 to E2, E4: io_timeout 10 at init, 1 at join, clock 2623."""
    scene = Scene(num_hosts=2, io_timeout=10)
    first = Leader.from_bytes(EXAMPLES["E1"])
    scene.put(scene.space, 1, first.to_bytes())
    scene.hosts[2].clock_offset = 2623 - NOW
    lockspace = scene.lockspace._replace(space_name="specls")
    lease = scene.run(
        2, join(lockspace, host_id=2, host_name="hostB", io_timeout=1, earlier_instance_gone=False)
    )
    assert scene.sector(scene.space, 1) == EXAMPLES["E2"]
    assert waited(scene) == 20  # 2N of whoever wrote the record before: section 3.2
    # The event of E3 was put there by a sanlock tool; leaving keeps it and clears the bit.
    event = lease.record._replace(write_id=7, write_generation=0x1234, write_timestamp=0x5678)
    scene.put(scene.space, 1, event.to_bytes().ljust(256, b"\0") + bitmap.to_bytes([1]))
    scene.run(2, leave(lease, expected=[event.to_bytes()]))
    assert scene.sector(scene.space, 1) == EXAMPLES["E4"]


def test_a_free_host_id() -> None:
    scene = Scene()
    lease = joined(scene)
    assert scene.last.sequence == "r1 w1 r1"
    assert waited(scene) == 2 * IO_TIMEOUT
    assert (lease.host_id, lease.generation, lease.host_name) == (2, 1, "hostB")
    assert lease.record == scene.delta(2)
    assert scene.last.journal == [lease.record.to_bytes()]
    assert (lease.record.timestamp, lease.record.io_timeout) == (NOW, IO_TIMEOUT)


def test_the_claim_is_journalled_before_it_is_written() -> None:
    scene = Scene()
    task = scene.start(2, joining(scene, 2), faults=fail_at(2, Fault(ERROR)))
    scene.sim.run()
    assert task.journal
    assert scene.delta(2).owner_id == 0
    assert isinstance(task.error, StorageError)


def test_the_generation_goes_up_and_old_fields_stay() -> None:
    scene = Scene()
    scene.put_delta(
        2, timestamp=0, owner_generation=41, write_id=7, write_generation=8, write_timestamp=9, unused1=5,
        flags=0xABCD0010, version=0x00030009,
    )  # fmt: skip
    record = joined(scene).record
    assert record.owner_generation == 42
    assert (record.write_id, record.write_generation, record.write_timestamp) == (7, 8, 9)
    assert (record.unused1, record.flags, record.version) == (5, 0xABCD0010, 0x00030009)


def test_a_clock_at_zero_writes_no_zero() -> None:
    """0 means free (12.2-q)."""
    scene = Scene()
    scene.hosts[2].clock_offset = -NOW
    assert joined(scene).record.timestamp == 1


@pytest.mark.parametrize("host_id", [0, 2001, -1])
def test_a_host_id_outside(host_id: int) -> None:
    scene = Scene()
    with pytest.raises(UsageError):
        scene.run(1, joining(scene, host_id, host_name="x"))
    assert not scene.last.ios


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"magic": 0x12345678}, WrongMagic),
        ({"version": 0x00070004}, WrongVersion),
        ({"space_name": name_field("other")}, WrongLockspaceName),
        ({"owner_id": 5}, WrongField),
    ],
)
def test_a_corrupt_record_is_never_overwritten(fields: dict[str, Any], error: type[OnDiskError]) -> None:
    scene = Scene()
    scene.put_delta(2, **{"timestamp": 0, **fields})
    before = scene.snapshot()
    with pytest.raises(error, match="^/space:4608: "):
        scene.run(2, joining(scene, 2, gone=True))
    assert scene.snapshot() == before


def test_a_record_with_a_wrong_checksum_is_never_overwritten() -> None:
    scene = Scene()
    scene.put_delta(2, timestamp=0, sealed=False)
    before = scene.snapshot()
    with pytest.raises(WrongChecksum):
        scene.run(2, joining(scene, 2, gone=True))
    assert scene.snapshot() == before


def renewing(scene: Scene, host_id: int, every: float, name: str = "renewer") -> None:
    """Something that renews a record for ever."""

    def procedure() -> Any:
        while True:
            record = scene.delta(host_id)
            scene.put_delta(
                host_id,
                timestamp=record.timestamp + 1,
                resource_name=record.resource_name,
                owner_generation=record.owner_generation,
            )
            yield Wait(every, "renewing")

    scene.start(1, procedure(), name=name, delay=every)


def test_a_host_id_held_by_a_live_host() -> None:
    scene = Scene()
    scene.put_delta(2, resource_name=name_field("other\x1b"))
    renewing(scene, 2, 2.0)
    with pytest.raises(HostIdBusy) as caught:
        scene.run(2, joining(scene, 2))
    assert caught.value.message.startswith("host id 2 is being renewed by host 'other")
    assert caught.value.message.isprintable()
    assert caught.value.details == {"host_id": 2, "host_name": "other\x1b", "generation": 1}
    assert caught.value.sanlk_rv == -262
    assert not [io for io in scene.sim.ios if io.kind == "w"]
    assert scene.sim.now - NOW <= 4 * IO_TIMEOUT


@pytest.mark.parametrize(("n", "own"), [(1, 1), (1, 10), (5, 1), (10, 10)])
def test_a_frozen_record_is_taken_after_more_than_host_dead_and_not_before(n: int, own: int) -> None:
    scene = Scene(io_timeout=own)
    scene.put_delta(2, io_timeout=n, resource_name=name_field("other"))
    task = scene.start(2, joining(scene, 2))
    scene.sim.run(until=NOW + 8 * n + 60)
    assert not [io for io in scene.sim.ios if io.kind == "w"]
    assert not task.done
    scene.sim.run()
    [_write] = [io for io in scene.sim.ios if io.kind == "w"]
    assert task.outcome().generation == 2
    assert NOW + 8 * n + 60 < scene.delta(2).timestamp <= NOW + 8 * n + 62
    assert sum(wait.seconds for wait in task.waits[:-1]) == 8 * n + 61
    assert task.waits[-1].seconds == 2 * n, "the settle time is the one of whoever wrote the record before"


def test_a_sign_of_life_at_the_last_moment() -> None:
    scene = Scene()
    scene.put_delta(2, resource_name=name_field("other"))
    renewing(scene, 2, 68.5)
    with pytest.raises(HostIdBusy):
        scene.run(2, joining(scene, 2))
    assert scene.delta(2).owner_generation == 1


def test_an_io_timeout_that_cannot_be_is_ours_instead() -> None:
    """Not covered by the checksum: neither 0 s nor 2**15 s (12.2-r)."""
    for stored in (0, 0x8000):
        scene = Scene(io_timeout=2)
        scene.put_delta(2, io_timeout=stored, resource_name=name_field("other"))
        scene.run(2, joining(scene, 2))
        assert waited(scene) == 8 * 2 + 61 + 4


def test_a_held_record_that_is_given_back_is_taken_at_once() -> None:
    scene = Scene()
    scene.put_delta(2, resource_name=name_field("other"))
    scene.sim.run(until=NOW + 1)
    task = scene.start(2, joining(scene, 2))
    scene.sim.run(until=NOW + 30)
    scene.put_delta(2, resource_name=name_field("other"), timestamp=0)
    scene.sim.run()
    assert task.outcome().generation == 2
    assert scene.sim.now <= NOW + 30 + 2 + 2


def test_our_own_name_alone_skips_nothing() -> None:
    """Stricter than sanlock: the earlier instance's processes may still run (finding 9)."""
    scene = Scene()
    scene.put_delta(2)
    scene.run(2, joining(scene, 2))
    assert waited(scene) == 69 + 2


def test_our_own_name_with_the_earlier_instance_gone() -> None:
    scene = Scene()
    scene.put_delta(2)
    lease = scene.run(2, joining(scene, 2, gone=True))
    assert lease.generation == 2
    assert waited(scene) == 3 * IO_TIMEOUT + 1 + 2 * IO_TIMEOUT


def test_another_name_with_the_earlier_instance_gone() -> None:
    scene = Scene()
    scene.put_delta(2, resource_name=name_field("hostBB"))
    scene.run(2, joining(scene, 2, gone=True))
    assert waited(scene) == 69 + 2


def test_a_live_clone_of_this_host() -> None:
    scene = Scene()
    scene.put_delta(2)
    renewing(scene, 2, 2.5)
    with pytest.raises(HostIdBusy, match="is being renewed by host 'hostB'"):
        scene.run(2, joining(scene, 2, gone=True))
    assert scene.delta(2).owner_generation == 1
    assert not [io for io in scene.sim.ios if io.kind == "w"]


def test_a_claim_that_did_not_stand() -> None:
    scene = Scene()
    task = scene.start(2, joining(scene, 2))
    scene.sim.run(until=NOW + 1)
    rival = scene.put_delta(2, timestamp=NOW + 1, resource_name=name_field("rival"))
    scene.sim.run()
    with pytest.raises(HostIdBusy, match="was claimed at the same time by host 'rival'"):
        task.outcome()
    assert scene.delta(2) == rival


def test_a_lost_claim_is_no_claim() -> None:
    scene = Scene()
    with pytest.raises(HostIdBusy):
        scene.run(2, joining(scene, 2), faults=fail_at(2, Fault(LOST)))


def test_a_claim_whose_outcome_is_unknown() -> None:
    scene = Scene()
    with pytest.raises(IoTimeout):
        scene.run(2, joining(scene, 2), faults=fail_at(2, Fault(TIMEOUT, 0.5)))
    assert scene.delta(2).owner_generation == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_storage_error_anywhere(number: int) -> None:
    scene = Scene()
    with pytest.raises(StorageError):
        scene.run(2, joining(scene, 2), faults=fail_at(number, Fault(ERROR)))
    scene.delta(2)
    lease = scene.run(2, joining(scene, 2, gone=True))
    assert lease.generation == (2 if number == 3 else 1)


# -- renew ------------------------------------------------------------------------------------------


def test_a_renewal() -> None:
    scene = Scene()
    lease = joined(scene)
    scene.sim.run(until=NOW + 20)
    renewed, image = scene.run(2, renew(lease, expected=[lease.record.to_bytes()]))
    assert scene.last.sequence == "r0+2048 w1"
    assert image[512:712] == lease.record.to_bytes()
    assert renewed == lease._replace(record=lease.record._replace(timestamp=NOW + 20).sealed())
    assert scene.delta(2) == renewed.record
    assert scene.last.journal == [renewed.record.to_bytes()]
    again, _ = scene.run(2, renew(renewed, expected=[renewed.record.to_bytes()]))
    assert again.generation == lease.generation


@each_geometry
def test_a_renewal_reads_the_whole_area(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry)
    lease = joined(scene)
    _, image = scene.run(2, renew(lease, expected=[lease.record.to_bytes()]))
    assert len(image) == geometry.align_size
    assert scene.last.ios[1].sector == 1


def test_a_renewal_with_bits() -> None:
    scene = Scene(geometry=Geometry(4096, MIB))
    lease = joined(scene)
    scene.run(2, renew(lease, expected=[lease.record.to_bytes()], set_bits=[3, 1]))
    sector = scene.sector(scene.space, 1)
    assert bitmap.host_ids_in(sector) == [1, 3]
    assert not any(sector[512:])
    scene.run(2, renew(lease, expected=[scene.delta(2).to_bytes()]))
    assert bitmap.host_ids_in(scene.sector(scene.space, 1)) == []


def test_a_renewal_keeps_the_event_and_every_unknown_bit() -> None:
    scene = Scene()
    scene.put_delta(2, timestamp=0, flags=0xFFFF0010, write_id=7, write_generation=8, write_timestamp=9)
    lease = joined(scene)
    renewed, _ = scene.run(2, renew(lease, expected=[lease.record.to_bytes()]))
    assert renewed.record.flags == 0xFFFF0010
    assert renewed.record[-3:] == (7, 8, 9)


def test_the_renewal_write_may_take_until_others_may_take_over() -> None:
    scene = Scene()
    lease = joined(scene)
    task = scene.start(
        2, renew(lease, expected=[lease.record.to_bytes()]), faults=fail_at(2, Fault(TIMEOUT, 10.0))
    )
    started = scene.sim.now
    scene.sim.run()
    assert isinstance(task.error, IoTimeout)
    assert scene.sim.now - started == 68


@pytest.mark.parametrize("lands_after", [None, 0.1])
def test_a_renewal_after_one_with_an_unknown_outcome(lands_after: Optional[float]) -> None:
    """Both records are expected then: the last good one, and the one on its way."""
    scene = Scene()
    lease = joined(scene)
    task = scene.start(
        2, renew(lease, expected=[lease.record.to_bytes()]), faults=fail_at(2, Fault(TIMEOUT, lands_after))
    )
    scene.sim.run()
    assert isinstance(task.error, IoTimeout)
    expected = [lease.record.to_bytes(), *task.journal]
    renewed, _ = scene.run(2, renew(lease, expected=expected))
    assert scene.delta(2) == renewed.record
    assert renewed.record.timestamp > lease.record.timestamp


def test_a_renewal_that_read_nothing_has_written_nothing() -> None:
    scene = Scene()
    lease = joined(scene)
    before = scene.snapshot()
    with pytest.raises(IoTimeout):
        scene.run(2, renew(lease, expected=[lease.record.to_bytes()]), faults=fail_at(1, Fault(TIMEOUT)))
    assert scene.snapshot() == before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"owner_generation": 2}, "found host 'hostB' generation 2"),
        ({"resource_name": name_field("thief\x1b")}, "found host 'thief"),
        ({"owner_id": 1}, "found host 'hostB' generation 1"),
        ({"timestamp": 0}, "found host 'hostB' generation 1, free"),
        ({"timestamp": NOW + 1}, "found host 'hostB' generation 1"),
        ({"io_timeout": 9}, "found host 'hostB' generation 1"),
        ({"write_timestamp": 9}, "found host 'hostB' generation 1"),
        ({"magic": 0}, "no lockspace record"),
        ({"space_name": name_field("other")}, "wrong lockspace name"),
    ],
)
def test_a_record_that_somebody_else_wrote_is_lost(fields: dict[str, Any], told: str) -> None:
    scene = Scene()
    lease = joined(scene)
    expected = [lease.record.to_bytes()]
    scene.put(scene.space, 1, lease.record._replace(**fields).sealed().to_bytes())
    before = scene.snapshot()
    for procedure in (renew(lease, expected=expected), leave(lease, expected=expected)):
        with pytest.raises(HostLeaseLost, match="^/space:4608: ") as caught:
            scene.run(2, procedure)
        assert scene.snapshot() == before, "what is not ours is not touched"
        assert caught.value.sanlk_rv == -260
    with pytest.raises(HostLeaseLost) as caught:
        scene.run(2, renew(lease, expected=expected))
    assert told in caught.value.message
    assert caught.value.message.isprintable()
    assert "expected host 'hostB' generation 1" in caught.value.message


def test_a_lockspace_that_was_made_anew_is_lost() -> None:
    scene = Scene()
    lease = joined(scene)
    scene.put(scene.space, 1, Leader.from_bytes(scene.sector(scene.space, 2)).to_bytes())
    with pytest.raises(HostLeaseLost, match="free"):
        scene.run(2, renew(lease, expected=[lease.record.to_bytes()]))


# -- leave ------------------------------------------------------------------------------------------


def test_leaving() -> None:
    scene = Scene()
    lease = joined(scene)
    scene.run(2, leave(lease, expected=[lease.record.to_bytes()]))
    assert scene.last.sequence == "r1 w1"
    assert scene.delta(2) == lease.record._replace(timestamp=0).sealed()
    assert joined(scene).generation == 2


def test_leaving_with_an_unknown_renewal() -> None:
    scene = Scene()
    lease = joined(scene)
    later = lease.record._replace(timestamp=NOW + 9).sealed()
    scene.put(scene.space, 1, later.to_bytes())
    scene.run(2, leave(lease, expected=[lease.record.to_bytes(), later.to_bytes()]))
    assert scene.delta(2).is_free


# -- reading ----------------------------------------------------------------------------------------


def test_reading_one_record() -> None:
    scene = Scene()
    record = scene.put_delta(3)
    assert scene.run(1, read_record(scene.lockspace, 3, 1)) == record
    assert scene.last.sequence == "r2"
    scene.put(scene.space, 2, b"rubbish")
    with pytest.raises(WrongMagic, match="^/space:5120: "):
        scene.run(1, read_record(scene.lockspace, 3, 1))


@each_geometry
def test_occupied_records(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry)
    last = geometry.max_hosts
    first, second = scene.put_delta(1), scene.put_delta(2, timestamp=0)
    bad_sum = scene.put_delta(4, sealed=False)
    far = scene.put_delta(last, io_timeout=9)
    scene.put_delta(3, magic=0x12345678)
    found = occupied_records(scene.space, scene.storage.image(scene.space))
    assert found == [(1, first), (2, second), (4, bad_sum), (last, far)]


def test_nobody_was_ever_here() -> None:
    scene = Scene()
    assert occupied_records(scene.space, scene.storage.image(scene.space)) == []
