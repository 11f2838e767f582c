"""Looking at paths without waiting for storage that does not answer: a dead NFS server never does.

A look that takes too long is given up, and so are the next ones in the same directory for a while; the thread
that hangs keeps nobody from ending.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.errors import IoTimeout
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, Union

    T = TypeVar("T")

PATIENCE_SECONDS = 5.0
_SILENT_SECONDS = 15.0  # then somebody who watches asks again

_HINT = "see whether the server or the device of this file system can be reached"

_silent: dict[str, float] = {}  # directories, and when the last look there was given up
_idle: list[Worker] = []


def patiently(path: str, look: Callable[[], T]) -> T:
    """What ``look`` returns or raises (an ``OSError``), soon. Raises ``IoTimeout``."""
    if os.path.dirname(path) in silent_directories():
        raise IoTimeout(f"{path}: its directory did not answer the look before", hint=_HINT)

    def action(_buffer: object) -> Union[T, OSError]:
        try:
            return look()
        except OSError as error:
            return error

    worker = _idle.pop() if _idle else Worker(path)
    try:
        found = worker.call(action, 0, PATIENCE_SECONDS, path)
    except IoTimeout as error:
        give_up(path)
        raise IoTimeout(error.message, hint=_HINT, details=error.details) from None
    finally:
        if worker.hangs:
            worker.close()
        else:
            _idle.append(worker)
    if isinstance(found, OSError):
        raise found
    return found


def give_up(path: str) -> None:
    """Look for a while no more at what is beside a path that did not answer."""
    _silent[os.path.dirname(path)] = clock.monotonic()


def exists(path: str) -> bool:
    """``os.path.exists``. Raises ``IoTimeout``."""
    return patiently(path, lambda: os.path.exists(path))


def is_there(path: str) -> bool:
    """Whether something has that name; storage that does not answer cannot deny it."""
    try:
        return patiently(path, lambda: os.path.lexists(path))
    except IoTimeout:
        return True


def answers(path: str) -> bool:
    """Whether the storage of a path answers, be it with an error."""
    try:
        exists(path)
    except IoTimeout:
        return False
    return True


def real_path(path: str) -> str:
    """``os.path.realpath``, as far as the storage answers."""
    try:
        return patiently(path, lambda: os.path.realpath(path))
    except IoTimeout:
        return path


def names_of(path: str) -> tuple[str, ...]:
    """A path as it is given, and without its links where that is another: a disk has a lease by each."""
    return tuple(dict.fromkeys((path, real_path(path))))


def silent_directories() -> list[str]:
    """Where looks were given up lately."""
    if not _silent:
        return []
    since = clock.monotonic() - _SILENT_SECONDS
    return sorted(directory for directory, at in _silent.items() if at >= since)
