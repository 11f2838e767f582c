"""The owner note: which VM and process hold a lease, for people (our one addition to the area).

    OFFSET  SIZE  FIELD
         0     8  magic     "VMLKNOTE"
         8     4  version   1
        12     4  length    bytes of JSON that follow the header
        16     4  crc32c    standard CRC-32C over bytes 0..15 and the JSON
        20     -  JSON      UTF-8 object, then zeros up to 4096 bytes

It fills the last 4096 bytes of a paxos lease area, which no sanlock record uses in any geometry.
It is advice, never evidence: ignored if its CRC fails, and stale unless its host_id, generation and
lver equal the leader's. A CRC is no signature, so what is read is plain texts and numbers, whoever
wrote it. It holds no command-line arguments: they can hold secrets.
"""

from __future__ import annotations

from struct import Struct

from vmlockctl.fastjson import dumps, loads
from vmlockctl.ondisk.checksum import crc32c
from vmlockctl.ondisk.geometry import NOTE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Optional

    from vmlockctl.ondisk.leader import Leader

HEADER = Struct("<8s 3I")
MAGIC = b"VMLKNOTE"
VERSION = 1
_CRC_OFFSET = 16
_JSON_MAX = NOTE_SIZE - HEADER.size
_TEXTS = frozenset(("disk", "vm", "uuid", "host_name", "program", "acquired_at", "boot_id"))
_NUMBERS = frozenset(("pid", "host_id", "generation", "lver", "start_time"))

assert HEADER.size == 20


def to_bytes(note: Mapping[str, Any]) -> bytes:
    """The 4096 bytes of the area's tail; long texts are cut so that it always fits."""
    longest = _JSON_MAX
    body = dumps(note).encode()
    while len(body) > _JSON_MAX:
        longest //= 2
        cut = {key: value[:longest] if isinstance(value, str) else value for key, value in note.items()}
        body = dumps(cut).encode()
    head = HEADER.pack(MAGIC, VERSION, len(body), 0)[:_CRC_OFFSET]
    return (head + crc32c(head + body).to_bytes(4, "little") + body).ljust(NOTE_SIZE, b"\0")


def from_bytes(data: bytes) -> Optional[dict[str, Any]]:
    """The note, or None where there is none that can be trusted to be one.

    A field that is not of its kind is left out, and so is an unknown one that is not plain, and text that no
    path and no name can be: half of a surrogate pair.
    """
    magic, version, length, crc = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or length > _JSON_MAX:
        return None
    body = data[HEADER.size : HEADER.size + length]
    if crc32c(data[:_CRC_OFFSET] + body) != crc:
        return None
    try:
        note = loads(body.decode())
    except ValueError:
        return None
    if not isinstance(note, dict):
        return None
    return {key: value for key, value in note.items() if _is_plain(key, value)}


def _is_plain(key: str, value: object) -> bool:
    if isinstance(value, str):
        return key not in _NUMBERS and _is_text(value)
    if key in _TEXTS:
        return False
    if key in _NUMBERS:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor an infinity, which are no JSON
    return value is None or isinstance(value, int)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def is_current(note: Mapping[str, Any], leader: Leader) -> bool:
    """Whether the note speaks of the possession that the leader names."""
    possession = (note.get("host_id"), note.get("generation"), note.get("lver"))
    return possession == (leader.owner_id, leader.owner_generation, leader.lver)
