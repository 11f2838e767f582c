"""dump-leases of a resource index: its header and every entry in use, as far as they can be read."""

from __future__ import annotations

from vmlockctl.errors import OnDiskError
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.rindex import (
    HEADER,
    RINDEX_MAGIC,
    RINDEX_VERSION,
    Header,
    entries_in,
    new_header,
    verify_entry,
    verify_header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional


def is_rindex(head: bytes, offset: int) -> bool:
    """By its magic; where that is damaged, by the version and the place that it states."""
    if len(head) < HEADER.size:
        return False
    header = Header.from_bytes(head)
    return header.magic == RINDEX_MAGIC or (header.version, header.rx_offset) == (RINDEX_VERSION, offset)


def rindex_geometry(head: bytes) -> Optional[Geometry]:
    """The sizes that the header states; None where they cannot be."""
    try:
        return Header.from_bytes(head).geometry
    except OnDiskError:
        return None


def rindex_dict(
    image: bytes, offset: int, geometry: Geometry
) -> tuple[dict[str, Any], list[tuple[int, OnDiskError]]]:
    """Header and entries, and what is wrong with them: (byte offset, condition).

    ``geometry`` is the header's own, or of the areas around it where that one is damaged; the entries are
    judged by the place where the index is.
    """
    header = Header.from_bytes(image)
    damage: list[tuple[int, OnDiskError]] = []
    try:
        verify_header(image[: geometry.sector_size], rx_offset=offset)
    except OnDiskError as error:
        damage.append((offset, error))
    sound = new_header(geometry, rx_offset=offset, space_name="-", max_resources=header.max_resources)
    entries = []
    for number, entry in entries_in(sound, image):
        sector, start = sound.entry_sector(number)
        try:
            verify_entry(sound, number, entry)
        except OnDiskError as error:
            damage.append((offset + sector * sound.sector_size + start, error))
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
