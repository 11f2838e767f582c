r"""The names people type: lockspace targets, sanlock's colon specs, disks.

A TARGET is a lease directory or sanlock's ``NAME:HOST_ID:PATH:OFFSET``. A colon in a path is written
``\:``. A resource is named by the MD5 of the disk's absolute path *as given*, as libvirt does it, so
that both exclude each other; nothing is canonicalised silently.
"""

from __future__ import annotations

import os

from vmlockctl.errors import UsageError
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe
from vmlockctl.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

LIBVIRT_LOCKSPACE = "__LIBVIRT__DISKS__"
_MD5_HEX_LEN = 32
MAX_NAME_BYTES = 48  # lockspaces and resources
MAX_HOST_NAME_BYTES = 47  # a 48-byte host name never matches its own record in sanlock (12.2-l)


class Target(NamedTuple):
    """Where a lockspace is. ``name`` None: take the one that is there; ``lease_dir`` for libvirt's layout."""

    path: str
    offset: int
    name: Optional[str]
    host_id: int
    lease_dir: Optional[str]


def parse_target(text: str) -> Target:
    """A lease directory or a sanlock lockspace spec. Raises ``UsageError``."""
    fields = split_colons(text)
    if len(fields) == 1 or os.path.isdir(text) or not _looks_like_spec(fields):
        directory = os.path.abspath(text)
        path = os.path.join(directory, LIBVIRT_LOCKSPACE)
        return Target(path, 0, LIBVIRT_LOCKSPACE, 0, directory)
    name, host_id, path = fields[0], parse_host_id(fields[1], allow_none=True), fields[2]
    check_name(name, "lockspace name")
    offset = parse_size(fields[3]) if len(fields) > 3 and fields[3] else 0
    if offset % 512:
        raise UsageError(f"offset {offset} is not a multiple of 512")
    path = os.path.abspath(path)
    lease_dir = None
    if os.path.basename(path) == LIBVIRT_LOCKSPACE and offset == 0:
        lease_dir = os.path.dirname(path)
    return Target(path, offset, name, host_id, lease_dir)


def _looks_like_spec(fields: list[str]) -> bool:
    return len(fields) in (3, 4) and bool(fields[1].isdecimal())


def split_colons(text: str) -> list[str]:
    r"""Split at ``:``, where ``\:`` is a colon of the field."""
    fields, current, escaped = [], "", False
    for character in text:
        if escaped:
            current += character if character == ":" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ":":
            fields.append(current)
            current = ""
        else:
            current += character
    return [*fields, current + ("\\" if escaped else "")]


def parse_host_id(text: str, *, allow_none: bool = False) -> int:
    """A host id from 1 (0 where the caller allows "none") to 2000. Raises ``UsageError``."""
    lowest = 0 if allow_none else 1
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        raise UsageError(f"host id {safe(text)!r} is not a number, expected {lowest} to 2000")
    host_id = int(text)
    if not lowest <= host_id <= 2000:
        raise UsageError(f"host id {host_id} is out of range, expected {lowest} to 2000")
    return host_id


def check_name(name: str, what: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """A name that can be stored: 1 to ``max_bytes`` bytes, no control characters."""
    length = len(name.encode("utf-8", "surrogateescape"))
    if not 0 < length <= max_bytes:
        raise UsageError(
            f"{what} {safe(name)!r} is too long, found {length} bytes, expected 1 to {max_bytes}"
            if length
            else f"{what} is empty, expected 1 to {max_bytes} bytes"
        )
    if safe(name) != name or not name.isprintable():
        raise UsageError(f"{what} {safe(name)!r} has characters that cannot be printed")
    return name


def check_host_name(name: str) -> str:
    return check_name(name, "host name", MAX_HOST_NAME_BYTES)


def is_resource_name(name: str) -> bool:
    """Whether a name is of the shape that ``resource_name`` gives."""
    return len(name) == _MD5_HEX_LEN and not set(name) - set("0123456789abcdef")


def resource_name(disk_path: str) -> str:
    """The lower-case hex MD5 of the path's bytes, without newline or NUL."""
    try:
        from _md5 import md5  # type: ignore[import-not-found]  # OpenSSL's takes 5 ms to load
    except ImportError:
        from hashlib import md5
    digest: str = md5(os.fsencode(disk_path), usedforsecurity=False).hexdigest()
    return digest
