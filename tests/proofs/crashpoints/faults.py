"""What is done to an I/O call, which calls it can befall, and the exit code that must come of it.

A call that fails is answered without being made, as strace's ``:error=`` and ``:retval=`` do; a command
that is killed is killed before the call. Two faults last: from the chosen call on, every further one that
they can befall fails as well. A local run directory neither goes stale nor loses a write: those befall the
lease directory only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, Optional

from tests.support.systemcalls import KILL, Answer, Call, Decision

LEASE, RUN = "lease", "run"

DATA, NO_SUCH, NOT_JOINED, EXISTS, STORAGE, BUSY, LOST, PERMISSION = 65, 66, 69, 73, 74, 75, 76, 77

_CREATING = frozenset({"mkdir", "mkdirat", "link", "linkat", "rename", "renameat", "renameat2", "symlink",
                       "symlinkat", "creat"})  # fmt: skip
_REMOVING = frozenset({"unlink", "unlinkat", "rmdir"})
_CHANGING = frozenset({"chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown", "utimensat"})
_ALLOCATING = frozenset({"fallocate", "ftruncate", "truncate", "fsync", "fdatasync"})


def changes(call: Call) -> bool:
    """Whether the state of the files may be another one after this call than before it."""
    return (
        call.is_write
        or bool(call.flags & (os.O_CREAT | os.O_TRUNC))
        or call.name in _CREATING | _REMOVING | _CHANGING | _ALLOCATING
    )


def _needs_room(call: Call) -> bool:
    return call.is_write or bool(call.flags & os.O_CREAT) or call.name in _CREATING | _ALLOCATING


def _needs_writable(call: Call) -> bool:
    if call.name in ("open", "openat", "creat"):
        return bool(call.flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return call.name in _CREATING | _REMOVING | _CHANGING


def _transfers(call: Call) -> bool:
    return call.place == LEASE and (call.is_write or call.is_read)


class Fault(NamedTuple):
    """``codes``: what a command may exit with; 0 besides them, where its effect is on the disk."""

    name: str
    applies: Callable[[Call], bool]
    answer: Callable[[Call], Decision]
    codes: frozenset[int]
    lasts: bool = False


def _error(number: int) -> Callable[[Call], Decision]:
    return lambda _call: Answer(error=number)


def _everywhere(_call: Call) -> bool:
    return True


def _on_storage(call: Call) -> bool:
    return call.place == LEASE


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", _everywhere, lambda _call: KILL, frozenset()),
        Fault("EIO", _everywhere, _error(errno.EIO), frozenset({STORAGE})),
        Fault("ENOSPC", _needs_room, _error(errno.ENOSPC), frozenset({EXISTS})),
        Fault("EROFS", _needs_writable, _error(errno.EROFS), frozenset({PERMISSION})),
        Fault("ESTALE", _on_storage, _error(errno.ESTALE), frozenset({STORAGE})),
        Fault("short", _transfers, lambda call: Answer(call.size // 2), frozenset({DATA, STORAGE})),
        # Acknowledged and not stored: whatever is said, it is never that the effect is there.
        Fault("lost", lambda call: _transfers(call) and call.is_write, lambda call: Answer(call.size),
              frozenset({DATA, NO_SUCH, STORAGE, BUSY, LOST})),
        Fault("gone", _on_storage, _error(errno.EIO), frozenset({STORAGE}), lasts=True),
        Fault("full", _needs_room, _error(errno.ENOSPC), frozenset({EXISTS}), lasts=True),
    )
}  # fmt: skip


class Point:
    """The ``number``-th call that a fault can befall; the judge that the supervisor asks."""

    def __init__(self, fault: Fault, number: int, *, only: Callable[[Call], bool] = _everywhere) -> None:
        self.fault, self.number = fault, number
        self.hit: Optional[Call] = None
        self._only = only
        self._count = 0

    def __call__(self, _number: int, call: Call) -> Decision:
        if not self.fault.applies(call) or not self._only(call):
            return None
        self._count += 1
        if self._count < self.number or (self._count > self.number and not self.fault.lasts):
            return None
        self.hit = self.hit or call
        return self.fault.answer(call)
