"""Looking at disks without waiting for storage that does not answer: a dead NFS server never does.

A look that takes too long is given up, and so is every later one in the same directory; the thread that hangs
keeps nobody from ending.
"""

from __future__ import annotations

import os

from vmlockctl.errors import IoTimeout
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, Union

    T = TypeVar("T")

PATIENCE_SECONDS = 5.0

_silent: set[str] = set()


def patiently(path: str, look: Callable[[], T]) -> T:
    """What ``look`` returns or raises (an ``OSError``), soon. Raises ``IoTimeout``."""
    directory = os.path.dirname(path)
    if directory in _silent:
        raise IoTimeout(f"{path}: its directory did not answer before")

    def action(_buffer: object) -> Union[T, OSError]:
        try:
            return look()
        except OSError as error:
            return error

    worker = Worker(path)
    try:
        found = worker.call(action, 0, PATIENCE_SECONDS, f"{path}: look")
    except IoTimeout:
        _silent.add(directory)
        raise
    finally:
        worker.close()
    if isinstance(found, OSError):
        raise found
    return found
