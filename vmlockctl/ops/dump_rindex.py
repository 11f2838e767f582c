"""dump-leases of a resource index: its header and every entry in use, as far as they can be read."""

from __future__ import annotations

from vmlockctl.errors import OnDiskError
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.rindex import HEADER, RINDEX_MAGIC, Header, entries_in, verify_entry, verify_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional


def is_rindex(head: bytes) -> bool:
    return len(head) >= HEADER.size and int.from_bytes(head[:4], "little") == RINDEX_MAGIC


def rindex_geometry(head: bytes) -> Optional[Geometry]:
    """The sizes that the header states; None where they cannot be."""
    try:
        return Header.from_bytes(head).geometry
    except OnDiskError:
        return None


def rindex_dict(image: bytes, offset: int) -> tuple[dict[str, Any], list[tuple[int, OnDiskError]]]:
    """Header and entries, and what is wrong with them: (byte offset, condition)."""
    header = Header.from_bytes(image)
    damage: list[tuple[int, OnDiskError]] = []
    try:
        verify_header(image[: header.sector_size], rx_offset=offset)
    except OnDiskError as error:
        damage.append((offset, error))
    entries = []
    for number, entry in entries_in(header, image):
        sector, start = header.entry_sector(number)
        try:
            verify_entry(header, number, entry)
        except OnDiskError as error:
            damage.append((offset + sector * header.sector_size + start, error))
        entries.append(
            {"entry": number, "name": entry.resource, "offset": entry.offset, "flags": entry.flags}
        )
    return {
        "version": header.version,
        "flags": header.flags,
        "space_name": header.space,
        "max_resources": header.max_resources,
        "rx_offset": header.rx_offset,
        "entries": entries,
    }, damage
