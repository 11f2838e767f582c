"""Records of the run directory are read back as they were written, or not at all.

A file that is damaged is as good as none: one bad claim must not keep the daemon from stopping the processes
of the others. The shape of a record is the annotations of its class.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, TypeGuard

_MAX_WHOLE = 2**64 - 1  # what a field on the disk holds
_PID_MAX = 2**31 - 1
_HOSTS_MAX = 2000
_IO_TIMEOUT_MAX = 255


def is_text(value: object) -> bool:
    """Text that can be a path: no NUL, no surrogate but those of undecodable bytes."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_WHOLE


def is_number(value: object) -> bool:
    """Finite: JSON as Python reads it has NaN and Infinity."""
    return is_whole(value) or (isinstance(value, float) and value - value == 0)


def is_pid(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _PID_MAX


def is_host_id(text: str) -> bool:
    """A host id as a key of a JSON object."""
    return text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= _HOSTS_MAX


def is_io_timeout(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _IO_TIMEOUT_MAX


_FIELDS: dict[str, Callable[[object], bool]] = {"pid": is_pid, "io_timeout": is_io_timeout}
_KINDS: dict[str, Callable[[object], bool]] = {
    "str": is_text,
    "int": is_whole,
    "float": is_number,
    "Optional[str]": lambda value: value is None or is_text(value),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(map(is_text, value)),
    "tuple[int, ...]": lambda value: isinstance(value, list) and all(map(is_whole, value)),
}


def fits(record: object, kind: type, *, apart_from: Collection[str] = ()) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON object has every field of a record class, each of its type.

    ``apart_from`` names the fields that the caller looks at itself; they must be there, too.
    """
    return isinstance(record, dict) and all(
        field in record and (field in apart_from or (_FIELDS.get(field) or _KINDS[annotation])(record[field]))
        for field, annotation in kind.__annotations__.items()
    )


def fits_row(row: object, kind: type, *, apart_from: Collection[str] = ()) -> TypeGuard[list[Any]]:
    """The same for a record that was written as a list."""
    fields = kind.__annotations__
    if not isinstance(row, list) or len(row) != len(fields):
        return False
    return fits(dict(zip(fields, row)), kind, apart_from=apart_from)
