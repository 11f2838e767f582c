"""Reading and changing the resource index (sanlock-format.md section 2.8).

Changes are made under the internal lease ``rindex_lease``, held exclusively, as sanlock daemons do; looks
take no lease, for an entry is in one sector. That lease says nothing between two processes of *one* host: the
caller lets one of them in at a time, and lets none acquire a resource while it is deleted.

What holds at every moment, so that a crash between any two writes leaves an index that works:

* *An entry that is there names a resource area that is there, or one that was cleared.* ``create``
  makes the area before it writes the entry, and ``delete`` clears the area before it frees the entry. Cut
  off, the first has made a resource that nobody can look up, and the same ``create`` takes it; the second
  has left the name of a cleared resource, which nobody can acquire, and the same ``delete`` ends it.
  (sanlock frees the entry first: cut off, ``rebuild`` brings the deleted resource back.)
* *A leader is valid only while the rest of its area is in order*: it is marked as cleared before the
  rest is written, and made valid after that. A ballot of an earlier resource at the same place is never
  found beside a new leader.
* The header of a new index appears last.

Nothing is overwritten that is not understood: a resource is made only where there are zeros, a cleared
resource or just what would be written; a resource that somebody holds is not deleted (sanlock
deletes it); ``rebuild`` leaves the entry of an area that it cannot judge as it is. Each change of the table
reads the sector again and refuses if the entry is not what it was: ``sanlock client update`` takes no lease.

I/Os of every change: r1 header, r2 table, [acquire], r3 header, r4 table, then those below, [release].
Of ``create``: r5 area, w6 leader (cleared), w7 rest, w8 leader, r9 entry, w10 entry.
Of ``delete``: r5 leader, r6 leader, r7 own sector, [acquire of the resource], w8 leader (cleared), w9 rest,
r10 entry, w11 entry.
"""

from __future__ import annotations

from vmlockctl.errors import (
    CannotCreate,
    HeldLocally,
    LeaseHeld,
    OnDiskError,
    RaceLost,
    TruncatedArea,
    UsageError,
    VmlockctlError,
    WrongField,
    WrongRindexEntry,
)
from vmlockctl.lease.delta import probe
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Claimant, Held, Resource, is_ours
from vmlockctl.lease.rindexrecords import (
    HEADER_SECTOR,
    Index,
    Table,
    clear_resource,
    existing,
    existing_number,
    is_cleared,
    is_gone,
    is_made,
    is_vacant,
    make_resource,
    read_leader,
    read_whole,
    write_entry,
)
from vmlockctl.lease.steps import Area, Procedure, random_wait, read_sectors, write_sectors
from vmlockctl.lease.timeouts import (
    DEFAULT_IO_TIMEOUT,
    INIT_IO_SECONDS,
    SHARED_RETRIES,
    read_timeout_seconds,
)
from vmlockctl.ondisk.dblock import ModeBlock
from vmlockctl.ondisk.geometry import LEADER_SECTOR, Geometry
from vmlockctl.ondisk.leader import Leader, verify_paxos
from vmlockctl.ondisk.rindex import (
    RINDEX_LEASE,
    Entry,
    Header,
    entries_in,
    new_entry,
    new_header,
    rindex_area,
    verify_header,
)
from vmlockctl.records import NamedTuple
from vmlockctl.specs import check_name
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional, TypeVar

    T = TypeVar("T")


class Rebuilt(NamedTuple):
    """What a rebuild did: entries written and freed, and areas that it could not judge."""

    added: list[int]
    freed: list[int]
    doubtful: dict[int, OnDiskError]


# -- looking -----------------------------------------------------------------------------------------


def read_table(index: Index, *, io_timeout: int) -> Procedure[Table]:
    """Read header and entries. Raises ``OnDiskError`` leaves (-274 to -277) with the place."""
    seconds = read_timeout_seconds(io_timeout)
    head = yield from probe(index.path, index.offset, seconds)
    try:
        header = verify_header(head, rx_offset=index.offset, space_name=index.space_name)
    except OnDiskError as error:
        raise error.at(index.path, index.offset) from None
    area = Area(index.path, index.offset, header.geometry)
    table = yield from read_sectors(area, HEADER_SECTOR, header.table_sectors, seconds)
    return Table(area, header, dict(entries_in(header, table)))


def lookup(
    index: Index, name: str, *, offset: Optional[int] = None, io_timeout: int = DEFAULT_IO_TIMEOUT
) -> Procedure[int]:
    """The byte offset of a resource; with ``offset``, only if it is that one (-278).

    Raises ``NoSuchArea`` (-2) for a name that is not in the index.
    """
    table = yield from read_table(index, io_timeout=io_timeout)
    number, _entry = existing(table, name, offset)
    return table.header.resource_offset(number)


# -- making ------------------------------------------------------------------------------------------


def format_rindex(index: Index, geometry: Geometry, *, max_resources: int = 0) -> Procedure[Header]:
    """Write an empty index and its lease, where both areas hold only zeros or a cleared resource.

    There is no lease to take yet: like every init this is uncoordinated, and one person's to do. I/Os: r1
    index, r2 lease, w3 w4 w5 lease, w6 the rest of the index, w7 its header. An index cut off before w7 is
    none, and can be formatted again.
    """
    check_name(index.space_name, "lockspace name")
    if index.offset % geometry.sector_size:
        raise UsageError(f"offset {index.offset} is not a multiple of the sector size {geometry.sector_size}")
    header = new_header(geometry, rx_offset=index.offset, space_name=index.space_name)
    if max_resources:
        header = header._replace(max_resources=max_resources)
        if header.max_entries != max_resources:
            raise UsageError(f"the index has room for {header.max_entries} resources, found {max_resources}")
    area = Area(index.path, index.offset, geometry)
    lease = Area(index.path, header.lease_offset, geometry)
    image = yield from read_whole(area)
    if not is_vacant(image, geometry):
        raise CannotCreate(f"{area.path}:{area.offset}: cannot make a resource index, found other data there")
    image = yield from read_whole(lease)
    if not is_made(image, geometry, index.space_name, RINDEX_LEASE):
        if not is_vacant(image, geometry):
            raise CannotCreate(
                f"{lease.path}:{lease.offset}: cannot make the lease of a resource index, "
                "found other data there"
            )
        yield from make_resource(lease, index.space_name, RINDEX_LEASE)
    image = rindex_area(header)
    rest = image[geometry.sector_size :]
    yield from write_sectors(area, HEADER_SECTOR + 1, rest, INIT_IO_SECONDS, what="clear the resource index")
    head = image[: geometry.sector_size]
    yield from write_sectors(area, HEADER_SECTOR, head, INIT_IO_SECONDS, what="header of the resource index")
    return header


def create(claimant: Claimant, index: Index, name: str, *, device_size: int) -> Procedure[int]:
    """Make a resource at the first free place of a device of ``device_size`` bytes; return its offset.

    Raises ``CannotCreate`` where the name exists already (sanlock makes a second one) or no place is free.
    """
    check_name(name, "resource name")

    def work(table: Table) -> Procedure[int]:
        found = table.find(name)
        if found is not None:
            place = table.header.resource_offset(found[0])
            raise CannotCreate(f"{index.path}: the resource {safe(name)} exists already, at offset {place}")
        number = yield from _place_for(table, index, name, device_size)
        yield from write_entry(claimant, table, number, new_entry(table.header, number, name))
        return table.header.resource_offset(number)

    return (yield from _locked(claimant, index, work))


def _place_for(table: Table, index: Index, name: str, device_size: int) -> Procedure[int]:
    """Make the resource in the first place that may be overwritten, or find it made already."""
    doubtful = 0
    for number in range(table.header.resources_within(device_size)):
        if number in table.entries:
            continue
        area = table.resource(number)
        image = yield from read_whole(area)
        if is_made(image, area.geometry, index.space_name, name):
            return number  # by a create that was cut off before its entry
        if is_vacant(image, area.geometry):
            yield from make_resource(area, index.space_name, name)
            return number
        doubtful += 1
    raise CannotCreate(
        f"{index.path}:{index.offset}: no place is free for the resource {safe(name)}, "
        f"found {len(table.entries)} entries and {doubtful} places without one that hold other data",
        hint="rebuild the index, delete a resource, or make the device larger",
    )


# -- taking away -------------------------------------------------------------------------------------


def delete(claimant: Claimant, index: Index, name: str, *, offset: Optional[int] = None) -> Procedure[int]:
    """Clear a resource that nobody holds, and free its entry; return its offset.

    Raises ``NoSuchArea`` (-2), ``WrongRindexEntry`` where it is not at ``offset``, ``LeaseHeld`` leaves (also
    ``HeldLocally``), and ``OnDiskError`` leaves where the area is not that resource: see ``remove_entry``.
    """

    def work(table: Table) -> Procedure[int]:
        number, _entry = existing(table, name, offset)
        area = table.resource(number)
        if not (yield from is_gone(area, claimant.io_timeout)):
            resource = Resource(area.path, area.offset, name)
            yield from _take_for_good(claimant, table, resource)
        yield from write_entry(claimant, table, number, Entry())
        return table.header.resource_offset(number)

    return (yield from _locked(claimant, index, work))


def _take_for_good(claimant: Claimant, table: Table, resource: Resource) -> Procedure[None]:
    """Acquire a resource, so that nobody else has it, and clear its area while we do."""
    area = Area(resource.path, resource.offset, table.area.geometry)
    leader = yield from read_leader(area, claimant.lockspace.space_name, resource.name, claimant.io_timeout)
    own_sector = area.geometry.dblock_sector(claimant.host_id)
    own = yield from read_sectors(area, own_sector, 1, read_timeout_seconds(claimant.io_timeout))
    if is_ours(claimant, leader) or ModeBlock.from_bytes(own) == ModeBlock.shared(claimant.generation):
        raise HeldLocally(
            f"the lease {safe(resource.name)} is held by this host", hint="release it before it is deleted"
        )
    yield from _acquire(claimant, resource, patient=False)
    try:
        yield from clear_resource(area, claimant.lockspace.space_name, resource.name)
    except VmlockctlError:
        yield from _give_up(claimant, resource)
        raise


# -- repairing ---------------------------------------------------------------------------------------


def update(claimant: Claimant, index: Index, name: str, *, offset: int) -> Procedure[None]:
    """Enter a resource that is there, made outside the index, under its offset. Writes the entry alone."""
    check_name(name, "resource name")

    def work(table: Table) -> Procedure[None]:
        number = table.header.index_of(offset)
        entry = new_entry(table.header, number, name)
        present = table.entries.get(number)
        found = table.find(name)
        if found is not None and found[0] != number:
            place = table.header.resource_offset(found[0])
            raise CannotCreate(f"{index.path}: the resource {safe(name)} exists already, at offset {place}")
        if present is not None and not present.names(name):
            raise WrongRindexEntry(
                f"{index.path}:{index.offset}: the entry for offset {offset} is in use",
                found=repr(safe(present.resource)),
                expected="a free entry",
            )
        yield from read_leader(table.resource(number), index.space_name, name, claimant.io_timeout)
        yield from write_entry(claimant, table, number, entry)

    yield from _locked(claimant, index, work)


def remove_entry(
    claimant: Claimant, index: Index, name: str, *, offset: Optional[int] = None
) -> Procedure[None]:
    """Free an entry and leave the area as it is: for an entry whose resource cannot be understood."""

    def work(table: Table) -> Procedure[None]:
        number = existing_number(table, name, offset)
        yield from write_entry(claimant, table, number, Entry())

    yield from _locked(claimant, index, work)


def rebuild(claimant: Claimant, index: Index, *, device_size: int) -> Procedure[Rebuilt]:
    """Make the entries match the resources that are on the device, entry by entry.

    A resource of this lockspace gets its entry; a place that was cleared or never used loses it. Of any other
    place, damaged, foreign or beyond the device, the entry stays as it is and the reason is returned.
    (sanlock enters all of these by whatever name they hold.)
    """

    def work(table: Table) -> Procedure[Rebuilt]:
        within = table.header.resources_within(device_size)
        wanted, doubtful = yield from _survey(table, index, within, claimant.io_timeout)
        for number in table.entries:
            if number >= within:
                doubtful[number] = _beyond(table, number, device_size)
        rebuilt = Rebuilt([], [], doubtful)
        for number in range(within):
            present, entry = table.entries.get(number, Entry()), wanted.get(number, Entry())
            if number in doubtful or present == entry:
                continue
            yield from write_entry(claimant, table, number, entry)
            (rebuilt.freed if entry.is_free else rebuilt.added).append(number)
        return rebuilt

    return (yield from _locked(claimant, index, work))


def _survey(
    table: Table, index: Index, within: int, io_timeout: int
) -> Procedure[tuple[dict[int, Entry], dict[int, OnDiskError]]]:
    """The entry that each place calls for, and the places that cannot be judged."""
    wanted: dict[int, Entry] = {}
    doubtful: dict[int, OnDiskError] = {}
    for number in range(within):
        area = table.resource(number)
        sector = yield from read_sectors(area, LEADER_SECTOR, 1, read_timeout_seconds(io_timeout))
        if not any(sector) or is_cleared(sector):
            continue
        name = Leader.from_bytes(sector).resource
        try:
            leader = verify_paxos(sector, space_name=index.space_name, resource_name=name)
            if not name or leader.geometry != area.geometry:
                raise WrongField("no resource of this index", found=repr(safe(name)))
        except OnDiskError as error:
            doubtful[number] = error.at(area.path, area.offset)
            continue
        present = table.entries.get(number)
        wanted[number] = new_entry(table.header, number, name)
        if present is not None and present.names(name):
            wanted[number] = wanted[number]._replace(flags=present.flags, unused=present.unused)
    return wanted, doubtful


def _beyond(table: Table, number: int, device_size: int) -> OnDiskError:
    area = table.resource(number)
    error = TruncatedArea(
        "the device ends before this resource",
        found=f"{device_size} bytes",
        expected=f"at least {area.offset + area.geometry.align_size}",
    )
    return error.at(area.path, area.offset)


# -- the lease of the index --------------------------------------------------------------------------


def _locked(claimant: Claimant, index: Index, work: Callable[[Table], Procedure[T]]) -> Procedure[T]:
    """Do some work on the table under the lease of the index, and give it back whatever comes of the work.

    If giving it back fails as well, the lease stays ours: our next change takes it again and gives it
    back; until then, or until we are dead, other hosts are refused.
    """
    table = yield from read_table(index, io_timeout=claimant.io_timeout)
    lease = Resource(index.path, table.header.lease_offset, RINDEX_LEASE)
    held = yield from _acquire(claimant, lease, patient=True)
    try:
        table = yield from read_table(index, io_timeout=claimant.io_timeout)
        if table.header.lease_offset != lease.offset:
            raise RaceLost(f"{index.path}:{index.offset}: the resource index was formatted anew")
        result = yield from work(table)
    except VmlockctlError:
        yield from _give_up(claimant, lease)
        raise
    yield from release(claimant, lease, lver=held.leader.lver)
    return result


def _acquire(claimant: Claimant, resource: Resource, *, patient: bool) -> Procedure[Held]:
    """Acquire a lease for a moment; ``patient``: changes are short, so their holder is waited for a little.

    A race is lost to a dead host too, whose ballot we finish; the next attempt sees who it is. What a ballot
    that failed may have left is taken back: others could still commit it, and we would own the lease.
    """
    retries_left = SHARED_RETRIES
    while True:
        try:
            return (yield from acquire(claimant, resource))
        except LeaseHeld:
            if not patient or not retries_left:
                raise
        except VmlockctlError as error:
            yield from _give_up(claimant, resource)
            if not isinstance(error, RaceLost) or not retries_left:
                raise
        retries_left -= 1
        yield from random_wait(f"another host has the lease {safe(resource.name)}")


def _give_up(claimant: Claimant, resource: Resource) -> Procedure[None]:
    """Retract what an error left half done. The error is what the caller is to hear of, not a second one.

    A driver lets no I/O pass one that has not come back, so this comes after a write that was late.
    """
    try:
        yield from retract(claimant, resource)
    except VmlockctlError:
        return
