"""The delta lease: one host's timed claim on a host id (sanlock-format.md section 3).

Safe by time alone (Chockler and Malkhi, "Light-weight leases for storage-centric coordination"):
a host that read the record before our write has, ``join_settle_seconds`` after it, either written
over it or given up, because each of its I/Os takes at most io_timeout; so what we read back is
final. A held record is taken only when it did not change for ``host_dead_seconds`` of *its* holder.

One rule is stricter than sanlock's. A record that carries our own name skips the long wait there;
here only when the caller knows that every process of the earlier instance is gone, and the record did
not change while we watched it (faults.md finding 9).

I/Os of a join: 1 probe, 2 read, 3 write, 4 read back. Of a renewal: 1 read area, 2 write.
"""

from __future__ import annotations

from vmlockctl.errors import HostIdBusy, HostLeaseLost, OnDiskError, UsageError, WrongField, WrongMagic
from vmlockctl.lease.steps import (
    Area,
    Journal,
    Procedure,
    now,
    read_sectors,
    wait,
    write_sectors,
)
from vmlockctl.lease.timeouts import (
    DEFAULT_IO_TIMEOUT,
    host_dead_seconds,
    id_renewal_seconds,
    join_settle_seconds,
    own_record_watch_seconds,
    read_timeout_seconds,
    renewal_write_timeout_seconds,
    sane_io_timeout,
    write_timeout_seconds,
)
from vmlockctl.ondisk import bitmap
from vmlockctl.ondisk.geometry import PROBE_SIZE, Geometry
from vmlockctl.ondisk.leader import (
    DELTA_MAGIC,
    DELTA_VERSION,
    PAXOS_MAGIC,
    Leader,
    first_record,
    name_field,
    verify_delta,
)
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Optional

_NO_OWNER = bytes(8)
_PROBE_GEOMETRY = Geometry(PROBE_SIZE, 1 << 20)


class Lockspace(NamedTuple):
    """What the first record of a lockspace says of the whole."""

    area: Area
    space_name: str
    io_timeout: int


class HostLease(NamedTuple):
    """A delta lease that we hold: who we are in a lockspace, and the record we last wrote."""

    lockspace: Lockspace
    host_id: int
    generation: int
    host_name: str
    io_timeout: int
    record: Leader

    @property
    def area(self) -> Area:
        return self.lockspace.area


def probe(path: str, offset: int, timeout_seconds: float) -> Procedure[bytes]:
    """Read the first 4096 bytes of an area whose sizes are not known yet."""
    return (yield from read_sectors(Area(path, offset, _PROBE_GEOMETRY), 0, 1, timeout_seconds))


def identify_lockspace(
    path: str, offset: int, *, space_name: Optional[str], io_timeout: int = DEFAULT_IO_TIMEOUT
) -> Procedure[Lockspace]:
    """Find the sizes of a lockspace from its first record (section 1.7).

    Its checksum is not asked: that record is host 1's own, and damage to it keeps nobody else out.
    ``space_name`` None takes the name that is there. Raises ``OnDiskError`` leaves.
    """
    head = yield from probe(path, offset, read_timeout_seconds(io_timeout))
    try:
        if int.from_bytes(head[:4], "little") == PAXOS_MAGIC:
            raise WrongMagic("not a lockspace", found="a resource", expected="a lockspace")
        leader = first_record(head, space_name=space_name)
        geometry = leader.geometry
    except OnDiskError as error:
        raise error.at(path, offset) from None
    area = Area(path, offset, geometry)
    # A file that was cut short has a first record like any other: see that its end is there too.
    yield from read_sectors(area, geometry.sectors - 1, 1, read_timeout_seconds(io_timeout))
    return Lockspace(area, leader.space, sane_io_timeout(leader.io_timeout, DEFAULT_IO_TIMEOUT))


def read_record(lockspace: Lockspace, host_id: int, io_timeout: int) -> Procedure[Leader]:
    """Read and verify the delta record of one host id; ``io_timeout`` is our own."""
    area = lockspace.area
    if not 1 <= host_id <= area.geometry.max_hosts:
        raise WrongField(
            "this lockspace has no such host id", found=host_id, expected=f"1 to {area.geometry.max_hosts}"
        ).at(area.path, area.offset)
    sector = area.geometry.delta_sector(host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(io_timeout))
    try:
        return verify_delta(data, space_name=lockspace.space_name)
    except OnDiskError as error:
        raise error.at(area.path, area.byte_offset(sector)) from None


def check_host_id(geometry: Geometry, host_id: int) -> None:
    if not 1 <= host_id <= geometry.max_hosts:
        raise UsageError(
            f"host id {host_id} is outside this lockspace, expected 1 to {geometry.max_hosts}",
            details={"max_hosts": geometry.max_hosts},
        )


def join(
    lockspace: Lockspace, *, host_id: int, host_name: str, io_timeout: int, earlier_instance_gone: bool
) -> Procedure[HostLease]:
    """Acquire the delta lease of ``host_id``; return it with its new generation.

    ``earlier_instance_gone``: every process of an earlier instance of this host is known to be gone.
    Raises ``HostIdBusy``, ``UsageError`` (range), ``OnDiskError`` leaves, ``StorageError`` leaves.
    """
    check_host_id(lockspace.area.geometry, host_id)
    area = lockspace.area
    sector = area.geometry.delta_sector(host_id)

    while True:
        record = yield from read_record(lockspace, host_id, io_timeout)  # 2
        if record.owner_id not in (0, host_id):
            raise WrongField(
                "the delta record is another host's", found=f"owner_id {record.owner_id}", expected=host_id
            ).at(area.path, area.byte_offset(sector))
        holder_timeout = sane_io_timeout(record.io_timeout, io_timeout)
        if record.is_free:
            break
        if earlier_instance_gone and record.resource_name == name_field(host_name):
            seconds = own_record_watch_seconds(holder_timeout)
            why = f"watching our own record of host id {host_id} for a live clone of this host"
        else:
            seconds = host_dead_seconds(holder_timeout)
            why = f"host id {host_id} is held by {safe(record.resource)}: watching for a sign of life"
        if (yield from _stays_the_same(lockspace, record, host_id, seconds, io_timeout, why)):
            break

    generation = record.owner_generation + 1
    claim = record._replace(
        timestamp=(yield from now()),
        io_timeout=io_timeout,
        owner_id=host_id,
        owner_generation=generation,
        resource_name=name_field(host_name),
    ).sealed()
    yield Journal(claim.to_bytes())
    yield from write_sectors(
        area,
        sector,
        claim.sector(area.geometry.sector_size),
        write_timeout_seconds(io_timeout),
        what=f"join host id {host_id} generation {generation}",
    )  # 3
    # A rival that read this sector before our write has by now either written over it or given up,
    # so what we read back is final. Its I/Os take at most the io_timeout that the record stated.
    yield from wait(join_settle_seconds(holder_timeout), "letting the claim on the host id settle")
    settled = yield from read_record(lockspace, host_id, io_timeout)  # 4
    if settled != claim:
        raise _busy(host_id, settled, "was claimed at the same time")
    return HostLease(lockspace, host_id, generation, host_name, io_timeout, claim)


def _stays_the_same(
    lockspace: Lockspace, record: Leader, host_id: int, seconds: int, io_timeout: int, why: str
) -> Procedure[bool]:
    """Watch a held record; True if it is frozen for ``seconds``, False if it was freed meanwhile.

    Looking in between, which sanlock does not do, can only end the wait sooner: with "busy" at the
    first sign of life, or because the host id was given back.
    """
    pause = id_renewal_seconds(sane_io_timeout(record.io_timeout, io_timeout))
    remaining = seconds + 1  # strictly more than, on a clock of whole seconds
    while remaining > 0:
        yield from wait(min(pause, remaining), why, left_seconds=remaining)
        remaining -= pause
        again = yield from read_record(lockspace, host_id, io_timeout)
        if again.is_free:
            return False
        if again != record:
            raise _busy(host_id, again, "is being renewed")
    return True


def _busy(host_id: int, record: Leader, how: str) -> HostIdBusy:
    return HostIdBusy(
        f"host id {host_id} {how} by host {safe(record.resource)!r} (generation {record.owner_generation})",
        hint="choose another host id, or let 'add-host --host-id auto' choose a free one",
        details={
            "host_id": host_id,
            "host_name": record.resource,
            "generation": record.owner_generation,
        },
    )


def renew(
    lease: HostLease, *, expected: Collection[bytes], set_bits: Collection[int] = ()
) -> Procedure[tuple[HostLease, bytes]]:
    """Renew once; return the lease with its new record, and the image of the whole area.

    ``expected`` holds the records (200 bytes) that may be there: the last good one, and every
    later one whose write has an unknown outcome. Any other record means that somebody took
    our host id or wrote over it. Raises ``HostLeaseLost`` then, and ``StorageError`` leaves, after
    which the outcome of the write is unknown.
    """
    area, geometry = lease.area, lease.area.geometry
    sector = geometry.delta_sector(lease.host_id)
    image = yield from read_sectors(area, 0, geometry.sectors, read_timeout_seconds(lease.io_timeout))  # 1
    check_own_record(lease, image, expected)
    start = sector * geometry.sector_size
    found = Leader.from_bytes(image[start : start + geometry.sector_size])
    record = found._replace(timestamp=(yield from now()), io_timeout=lease.io_timeout).sealed()
    yield Journal(record.to_bytes())
    data = record.to_bytes().ljust(bitmap.BITMAP_OFFSET, b"\0") + bitmap.to_bytes(sorted(set_bits))
    yield from write_sectors(
        area,
        sector,
        data.ljust(geometry.sector_size, b"\0"),
        renewal_write_timeout_seconds(lease.io_timeout),
        what=f"renew host id {lease.host_id} generation {lease.generation}",
    )  # 2
    return lease._replace(record=record), image


def check_own_record(lease: HostLease, image: bytes, expected: Collection[bytes]) -> None:
    """Raise ``HostLeaseLost`` unless our record in the area image is one that we wrote."""
    area = lease.area
    start = area.geometry.delta_sector(lease.host_id) * area.geometry.sector_size
    data = image[start : start + area.geometry.sector_size]
    if any(data.startswith(record) for record in expected):
        return
    place = f"{area.path}:{area.offset + start}"
    try:
        found = verify_delta(data, space_name=lease.lockspace.space_name)
        who = f"host {safe(found.resource)!r} generation {found.owner_generation}"
        if found.is_free:
            who += ", free"
    except OnDiskError as error:
        who = error.message
    raise HostLeaseLost(
        f"{place}: the record of host id {lease.host_id} is not the one we wrote, "
        f"found {who}, expected host {safe(lease.host_name)!r} generation {lease.generation}",
        details={"host_id": lease.host_id, "generation": lease.generation},
    )


def leave(lease: HostLease, *, expected: Collection[bytes]) -> Procedure[None]:
    """Give the host id back. Only when no process relies on a lease of it any more.

    Unlike sanlock we look first: a record that is no longer ours is not ours to free.
    """
    area = lease.area
    sector = area.geometry.delta_sector(lease.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(lease.io_timeout))
    if not any(data.startswith(record) for record in expected):
        raise HostLeaseLost(
            f"{area.path}:{area.byte_offset(sector)}: the record of host id {lease.host_id} "
            "is not the one we wrote; it was left as it is"
        )
    free = Leader.from_bytes(data)._replace(timestamp=0).sealed()
    yield from write_sectors(
        area,
        sector,
        free.sector(area.geometry.sector_size),
        write_timeout_seconds(lease.io_timeout),
        what=f"leave host id {lease.host_id} generation {lease.generation}",
    )


def occupied_records(area: Area, image: bytes) -> list[tuple[int, Leader]]:
    """The delta records of an area image that were ever acquired, as (host_id, record).

    As lax as sanlock's own scan (section 1.7): a record with a bad sum still shows that
    somebody writes there, and a sign of life is never ignored.
    """
    size = area.geometry.sector_size
    found = []
    for host_id in range(1, area.geometry.max_hosts + 1):
        start = (host_id - 1) * size
        if image[start + 32 : start + 40] == _NO_OWNER:
            continue
        record = Leader.from_bytes(image[start : start + size])
        if record.magic == DELTA_MAGIC and record.version >> 16 == DELTA_VERSION >> 16:
            found.append((host_id, record))
    return found
