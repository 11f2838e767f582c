"""explain ERROR: what a number, a name, or a pasted line of sanlock, libvirt, QEMU or vmlockctl means.

The tables are ``messages/``. A line may hold several conditions, one inside the other ("Unable to add
lockspace X: Lease host ID is being used by another host"): all that match are told, the most specific first.
"""

from __future__ import annotations

import errno
import os
import re

from vmlockctl.ops.messages import libvirt, ours, qemu, sanlock
from vmlockctl.ops.messages.entry import OURS, SANLOCK, Message
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

# Whose words are the more specific: libvirt wraps what sanlock says.
MESSAGES = (*libvirt.MESSAGES, *qemu.MESSAGES, *sanlock.MESSAGES, *ours.MESSAGES)

_NUMBER = re.compile(
    r"^(?:(?:error|code|rv|exit|status|exit code|exit status)[ =:]*)?(-?\d{1,3})$", re.IGNORECASE
)
_NUMBER_IN_LINE = re.compile(
    r"(?:error|rv|done|ret|result|failed|_token|corrupt)[ =:]+(-\d{1,3})\b", re.IGNORECASE
)
_NAME = re.compile(r"^(?:SANLK_)?[A-Z][A-Z_]{2,}$")
_DISK = re.compile(r"(?:image \[|disk |: )(/[^\]:'\"]+)")


class Explained(NamedTuple):
    """A condition as it applies to the text: its commands name the disk where the text does."""

    message: Message
    number: Optional[int]
    disk: Optional[str]


def explain_error(text: str) -> list[Explained]:
    """Every condition that ``text`` tells, the most specific first; empty where none is known."""
    text = text.strip()
    number = _NUMBER.match(text)
    if number is not None:
        return [_applied(message, int(number[1]), "") for message in _with_number(int(number[1]))]
    if _NAME.match(text):
        return [_applied(message, None, "") for message in _with_name(text)]
    found = [message for message in MESSAGES if _told_in(message, text)]
    if not found:
        in_line = _NUMBER_IN_LINE.search(text)
        found = list(_with_number(int(in_line[1]))) if in_line else [m for m in MESSAGES if m.name == text]
    return [_applied(message, None, text) for message in found]


def _with_number(number: int) -> Iterator[Message]:
    """Positive numbers below 200 are exit codes of vmlockctl first; sanlock's numbers are negative."""
    own = [message for message in ours.MESSAGES if number in message.numbers]
    theirs = [m for m in MESSAGES if m.layer != OURS and -abs(number) in m.numbers]
    yield from own
    yield from theirs
    if not own and not theirs and abs(number) in errno.errorcode:
        yield _errno(abs(number))


def _with_name(name: str) -> Iterator[Message]:
    wanted = name if name.startswith("SANLK_") else f"SANLK_{name}"
    yield from (message for message in sanlock.MESSAGES if message.name == wanted)
    number = next((number for number, known in errno.errorcode.items() if known == name), None)
    if number is not None:
        yield from _with_number(-number)


def _errno(number: int) -> Message:
    name = errno.errorcode[number]
    return Message(
        name, SANLOCK, f"the system's own error: {os.strerror(number)}",
        ("what stands before it in the line says what was tried",), numbers=(-number,),
    )  # fmt: skip


def _told_in(message: Message, text: str) -> bool:
    return any(re.search(pattern, text) for pattern in message.patterns)


def _applied(message: Message, number: Optional[int], text: str) -> Explained:
    disk = None
    for pattern in (*message.patterns, _DISK.pattern):
        match = re.search(pattern, text)
        if match is not None:
            groups = match.groupdict().get("disk") or (match[1] if pattern == _DISK.pattern else None)
            disk = disk or groups
    return Explained(message, number, disk)


def commands_of(explained: Explained) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What to look at, what to do, and what not to do, with the disk's name in its place."""
    message, disk = explained.message, explained.disk or "DISK"

    def named(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            text.replace("{disk}", disk).replace("explain DISK", f"explain {disk}") for text in texts
        )

    return named(message.look), named(message.do), named(message.dont)
