"""The records of a resource index and of its resources, as procedures read, judge and write them.

``rindex.py`` puts these together under the lease of the index.
"""

from __future__ import annotations

from vmlockctl.errors import NoSuchArea, OnDiskError, RaceLost, WrongField, WrongRindexEntry
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.steps import Area, Procedure, now, read_sectors, write_sectors
from vmlockctl.lease.timeouts import INIT_IO_SECONDS, read_timeout_seconds, write_timeout_seconds
from vmlockctl.ondisk.area import cleared_leader, resource_area
from vmlockctl.ondisk.checksum import checksum
from vmlockctl.ondisk.geometry import LEADER_SECTOR, REQUEST_SECTOR, Geometry
from vmlockctl.ondisk.leader import LEADER_CHECKSUM_LEN, PAXOS_CLEARED_MAGIC, Leader, verify_paxos
from vmlockctl.ondisk.rindex import ENTRY, Entry, Header, verify_entry
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

HEADER_SECTOR = 0


class Index(NamedTuple):
    """A resource index by place and lockspace, as sanlock's ``LOCKSPACE:PATH:OFFSET``."""

    path: str
    offset: int
    space_name: str


class Table(NamedTuple):
    """What an index said at one moment."""

    area: Area
    header: Header
    entries: dict[int, Entry]  # those that are not free, by number

    def find(self, name: str) -> Optional[tuple[int, Entry]]:
        """The first entry of a name, as sanlock looks it up."""
        return next(((index, entry) for index, entry in self.entries.items() if entry.names(name)), None)

    def resource(self, index: int) -> Area:
        return Area(self.area.path, self.header.resource_offset(index), self.area.geometry)


def existing_number(table: Table, name: str, offset: Optional[int]) -> int:
    found = table.find(name)
    if found is None:
        raise NoSuchArea(
            f"{table.area.path}:{table.area.offset}: the resource index has no resource {safe(name)}",
            hint="'vmlockctl dump-leases' shows what it has",
        )
    number, _entry = found
    place = table.header.resource_offset(number)
    if offset not in (None, place):
        raise WrongRindexEntry(
            f"the resource {safe(name)} is elsewhere", found=f"offset {place}", expected=f"offset {offset}"
        ).at(table.area.path, table.area.offset)
    return number


def existing(table: Table, name: str, offset: Optional[int]) -> tuple[int, Entry]:
    """The entry of a name, and that it is in order. Raises ``NoSuchArea``, ``WrongRindexEntry``."""
    number = existing_number(table, name, offset)
    entry = table.entries[number]
    try:
        verify_entry(table.header, number, entry)
    except WrongRindexEntry as error:
        sector, start = table.header.entry_sector(number)
        raise error.at(table.area.path, table.area.byte_offset(sector) + start) from None
    return number, entry


def write_entry(claimant: Claimant, table: Table, number: int, entry: Entry) -> Procedure[None]:
    """Change one entry, if it is still what the table said; the others of its sector stay as they are now."""
    area = table.area
    sector, start = table.header.entry_sector(number)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    present = Entry.from_bytes(data[start:])
    if (Entry() if present.is_free else present) != table.entries.get(number, Entry()):
        raise RaceLost(
            f"{area.path}:{area.byte_offset(sector) + start}: somebody changed entry {number} of the "
            "resource index without its lease",
            hint="that is what 'sanlock client update' and 'sanlock direct' do; try again",
        )
    data = data[:start] + entry.to_bytes() + data[start + ENTRY.size :]
    name = f"enter {safe(entry.resource)}" if not entry.is_free else "free"
    yield from write_sectors(
        area, sector, data, write_timeout_seconds(claimant.io_timeout), what=f"{name} in entry {number}"
    )


def read_leader(area: Area, space_name: str, name: str, io_timeout: int) -> Procedure[Leader]:
    """The leader of the resource of an entry, which must be that resource in the index's own sizes."""
    data = yield from read_sectors(area, LEADER_SECTOR, 1, read_timeout_seconds(io_timeout))
    try:
        leader = verify_paxos(data, space_name=space_name, resource_name=name)
        if leader.geometry != area.geometry:
            raise WrongField("the resource has other sizes than the index", found=leader.geometry)
    except OnDiskError as error:
        raise error.at(area.path, area.offset) from None
    return leader


def is_gone(area: Area, io_timeout: int) -> Procedure[bool]:
    """Whether the place of an entry was cleared (by a delete that was cut off) or never used."""
    data = yield from read_sectors(area, LEADER_SECTOR, 1, read_timeout_seconds(io_timeout))
    return not any(data) or is_cleared(data)


def read_whole(area: Area) -> Procedure[bytes]:
    return (yield from read_sectors(area, LEADER_SECTOR, area.geometry.sectors, INIT_IO_SECONDS))


def is_cleared(sector: bytes) -> bool:
    leader = Leader.from_bytes(sector)
    return leader.magic == PAXOS_CLEARED_MAGIC and leader.checksum == checksum(sector[:LEADER_CHECKSUM_LEN])


def is_vacant(image: bytes, geometry: Geometry) -> bool:
    """Whether an area may be overwritten: only zeros, or a cleared resource, whatever is behind it."""
    return is_cleared(image[: geometry.sector_size]) or not any(image)


def is_made(image: bytes, geometry: Geometry, space_name: str, name: str) -> bool:
    """Whether an area is exactly a new resource of this name; padding that sanlock leaves undefined aside."""
    wanted = resource_area(geometry, space_name=space_name, resource_name=name)
    padding = REQUEST_SECTOR * geometry.sector_size + 20
    return image[:padding] == wanted[:padding] and image[padding + 4 :] == wanted[padding + 4 :]


def clear_resource(area: Area, space_name: str, name: str) -> Procedure[None]:
    """Mark the leader as cleared, then empty the rest, so that the rest is never part of a valid lease."""
    size = area.geometry.sector_size
    leader = cleared_leader(
        area.geometry, space_name=space_name, resource_name=name, timestamp=(yield from now())
    )
    empty = resource_area(area.geometry, space_name=space_name, resource_name=name)
    what = f"clear the resource {safe(name)}"
    yield from write_sectors(area, LEADER_SECTOR, leader.sector(size), INIT_IO_SECONDS, what=what)
    yield from write_sectors(area, LEADER_SECTOR + 1, empty[size:], INIT_IO_SECONDS, what=what)


def make_resource(area: Area, space_name: str, name: str) -> Procedure[None]:
    yield from clear_resource(area, space_name, name)
    leader = resource_area(area.geometry, space_name=space_name, resource_name=name)[
        : area.geometry.sector_size
    ]
    what = f"make the resource {safe(name)}"
    yield from write_sectors(area, LEADER_SECTOR, leader, INIT_IO_SECONDS, what=what)
