"""The resource index: which resource is where on a device (sanlock-format.md section 2.8).

    OFFSET  SIZE  FIELD OF THE HEADER (first sector)
         0     4  magic            0x01042018
         4     4  version          0x00010002
         8     4  flags            align: 1, 2, 4, 8 = 1M, 2M, 4M, 8M (not the leader's values)
        12     4  sector_size      512 or 4096
        16     4  max_resources    4096 by default
        20     4  unused           preserved
        24     8  rx_offset        byte offset of this header on its device
        32    48  space_name       NUL padded, may be full

    OFFSET  SIZE  FIELD OF AN ENTRY (entry i at byte sector_size + 64 * i of the area)
         0     8  offset           byte offset of the resource; 0 = free
         8     4  flags            preserved
        12     4  unused           preserved
        16    48  name             NUL padded, may be full; empty = free

The area after the index holds a paxos lease named ``rindex_lease``; the resource of entry i is the area
after that and i more. 64 divides every sector size, so an entry never straddles two sectors, and a write of
one sector changes it as a whole. Nothing has a checksum: that an entry names its own place is the only
thing that can be checked, and ``verify_entry`` does.
"""

from __future__ import annotations

from struct import Struct

from vmlockctl.errors import (
    WrongGeometry,
    WrongRindexEntry,
    WrongRindexLockspace,
    WrongRindexMagic,
    WrongRindexOffset,
    WrongRindexVersion,
    WrongSectorSize,
)
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ondisk.leader import NAME_LEN, name_field, same_name
from vmlockctl.records import NamedTuple
from vmlockctl.text import decode_name, safe
from vmlockctl.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

HEADER = Struct("<6I Q 48s")
ENTRY = Struct("<Q 2I 48s")
RINDEX_MAGIC = 0x01042018
RINDEX_VERSION = 0x00010002
RINDEX_LEASE = "rindex_lease"
DEFAULT_MAX_RESOURCES = 4096
ALIGN_FLAGS = {1 * MIB: 1, 2 * MIB: 2, 4 * MIB: 4, 8 * MIB: 8}

assert HEADER.size == 80
assert ENTRY.size == 64
assert all(geometry.sector_size % ENTRY.size == 0 for geometry in ALL_GEOMETRIES)
assert all(
    geometry.sector_size + DEFAULT_MAX_RESOURCES * ENTRY.size <= geometry.align_size
    for geometry in ALL_GEOMETRIES
)

_FREE_NAME = bytes(NAME_LEN)


class Header(NamedTuple):
    """The header; the field order is the struct's, the name is the raw 48-byte field."""

    magic: int
    version: int
    flags: int
    sector_size: int
    max_resources: int
    unused: int
    rx_offset: int
    space_name: bytes

    @classmethod
    def from_bytes(cls, sector: bytes) -> Header:
        """Decode without judging; ``verify_header`` judges."""
        return cls._make(HEADER.unpack_from(sector))

    def to_bytes(self) -> bytes:
        return HEADER.pack(*self)

    @property
    def space(self) -> str:
        return decode_name(self.space_name)

    @property
    def geometry(self) -> Geometry:
        """The sizes that the header states, the smallest of several align flags, as for a leader.

        Raises ``WrongSectorSize`` and ``WrongGeometry``. sanlock believes them unseen, and without an align
        flag takes the index itself for a resource, or crashes.
        """
        if self.sector_size not in (512, 4096):
            raise WrongSectorSize(
                "wrong sector size in the resource index", found=self.sector_size, expected="512 or 4096"
            )
        for align_size, flag in ALIGN_FLAGS.items():
            geometry = Geometry(self.sector_size, align_size)
            if self.flags & flag:
                if geometry in ALL_GEOMETRIES:
                    return geometry
                break
        raise WrongGeometry(
            "sector size and align flag of the resource index do not go together",
            found=f"{self.sector_size} with flags {self.flags:#x}",
            expected="512 with 1, or 4096 with 1, 2, 4 or 8",
        )

    @property
    def max_entries(self) -> int:
        """Entries that count: as many as the header says (0: sanlock's default) and the area can hold."""
        room = (self.geometry.align_size - self.sector_size) // ENTRY.size
        return min(self.max_resources or DEFAULT_MAX_RESOURCES, room)

    @property
    def table_sectors(self) -> int:
        """Sectors of the header and all the entries that count."""
        return 1 + (self.max_entries * ENTRY.size + self.sector_size - 1) // self.sector_size

    @property
    def lease_offset(self) -> int:
        """Byte offset of the internal lease on the device."""
        return self.rx_offset + self.geometry.align_size

    def resource_offset(self, index: int) -> int:
        """Byte offset of the resource of an entry on the device."""
        assert 0 <= index < self.max_entries, index
        return self.rx_offset + (2 + index) * self.geometry.align_size

    def index_of(self, resource_offset: int) -> int:
        """The entry of the resource at a byte offset. Raises ``WrongRindexOffset`` (-277)."""
        align_size = self.geometry.align_size
        index, rest = divmod(resource_offset - self.rx_offset - 2 * align_size, align_size)
        if rest or not 0 <= index < self.max_entries:
            last = self.resource_offset(self.max_entries - 1)
            raise WrongRindexOffset(
                "this offset is no place of a resource of the index",
                found=resource_offset,
                expected=f"{self.resource_offset(0)} to {last} in steps of {align_size}",
            )
        return index

    def resources_within(self, device_size: int) -> int:
        """How many of the index's resources lie wholly on a device of so many bytes."""
        areas = (device_size - self.rx_offset) // self.geometry.align_size - 2
        return max(0, min(areas, self.max_entries))

    def entry_sector(self, index: int) -> tuple[int, int]:
        """The sector of the area that holds an entry, and the entry's first byte there."""
        assert 0 <= index < self.max_entries, index
        sector, start = divmod(index * ENTRY.size, self.sector_size)
        return 1 + sector, start


class Entry(NamedTuple):
    offset: int = 0
    flags: int = 0
    unused: int = 0
    name: bytes = _FREE_NAME

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Decode without judging; ``verify_entry`` judges."""
        return cls._make(ENTRY.unpack_from(data))

    def to_bytes(self) -> bytes:
        return ENTRY.pack(*self)

    @property
    def is_free(self) -> bool:
        return self.offset == 0 and self.name[0] == 0

    @property
    def resource(self) -> str:
        return decode_name(self.name)

    def names(self, resource_name: str) -> bool:
        return same_name(self.name, resource_name)


def verify_header(sector: bytes, *, rx_offset: int, space_name: Optional[str] = None) -> Header:
    """Decode a header with sanlock's checks in its order (-274 to -277), then the sizes.

    ``space_name`` None takes the name that is there.
    """
    header = Header.from_bytes(sector)
    if header.magic != RINDEX_MAGIC:
        found = f"{header.magic:#010x}" if any(sector) else "only zeros"
        raise WrongRindexMagic(
            "no resource index (wrong magic)", found=found, expected=f"{RINDEX_MAGIC:#010x}"
        )
    if header.version >> 16 != RINDEX_VERSION >> 16:
        raise WrongRindexVersion(
            "unsupported major version of the resource index",
            found=header.version >> 16,
            expected=RINDEX_VERSION >> 16,
        )
    if space_name is not None and not same_name(header.space_name, space_name):
        raise WrongRindexLockspace(
            "wrong lockspace name in the resource index",
            found=repr(safe(header.space)),
            expected=repr(safe(space_name)),
        )
    if header.rx_offset != rx_offset:
        raise WrongRindexOffset(
            "the resource index says that it is elsewhere", found=header.rx_offset, expected=rx_offset
        )
    _ = header.geometry
    return header


def verify_entry(header: Header, index: int, entry: Entry) -> None:
    """Raise ``WrongRindexEntry`` (-278) where an entry is neither free nor names its own place.

    sanlock reckons the offset of such an entry from its place and never looks at the one it holds.
    """
    if entry.is_free:
        return
    if entry.name[0] == 0:
        raise WrongRindexEntry(
            f"entry {index} of the resource index has no name",
            found=f"offset {entry.offset}",
            expected="a name, or offset 0",
        )
    expected = header.resource_offset(index)
    if entry.offset != expected:
        raise WrongRindexEntry(
            f"entry {index} of the resource index names a wrong offset", found=entry.offset, expected=expected
        )


def entries_in(header: Header, table: bytes) -> Iterator[tuple[int, Entry]]:
    """The entries of an image of the area that are not free, with their number; as far as it goes."""
    end = min(len(table), header.sector_size + header.max_entries * ENTRY.size)
    usual = bytes(ENTRY.size)
    for start in range(header.sector_size, end - ENTRY.size + 1, ENTRY.size):
        data = table[start : start + ENTRY.size]
        if data != usual:
            entry = Entry.from_bytes(data)
            if not entry.is_free:
                yield (start - header.sector_size) // ENTRY.size, entry


def new_header(
    geometry: Geometry, *, rx_offset: int, space_name: str, max_resources: int = DEFAULT_MAX_RESOURCES
) -> Header:
    return Header(
        magic=RINDEX_MAGIC, version=RINDEX_VERSION, flags=ALIGN_FLAGS[geometry.align_size],
        sector_size=geometry.sector_size, max_resources=max_resources, unused=0, rx_offset=rx_offset,
        space_name=name_field(space_name),
    )  # fmt: skip


def new_entry(header: Header, index: int, resource_name: str) -> Entry:
    return Entry(offset=header.resource_offset(index), name=name_field(resource_name))


def rindex_area(header: Header) -> bytes:
    """A whole index area without entries: what ``format`` writes."""
    return header.to_bytes().ljust(header.geometry.align_size, b"\0")
