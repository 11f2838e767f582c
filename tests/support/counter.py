"""The oracle of every contest for a lease: one sector that nothing but the lease protects.

After sanlock's devcount: an exclusive holder reads the count, writes the next one, and finds what it wrote
still there when it lets go; a shared holder finds the same count all along. Two owners at once lose an
update, or see the other's. O_DIRECT, so that nobody reads a cache.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple, Optional

from tests.support.disk import SECTOR, read_direct, write_direct

_SECTOR = struct.Struct("<3Q16s16s")


class Count(NamedTuple):
    """What the sector says: how often it was counted up, and by whom last."""

    value: int = 0
    handovers: int = 0  # how often the last one to count was of another kind than the one before
    nonce: int = 0
    kind: bytes = b""
    name: bytes = b""

    def __str__(self) -> str:
        return f"{self.value} by {self.name.decode()}"


class Counter:
    """A counter on the disk, used under a lease that the caller holds."""

    def __init__(self, path: Path, *, kind: str, name: str) -> None:
        self._path, self._kind, self._name = path, kind.encode(), name.encode()
        self._last: Optional[Count] = None
        self.wrong: list[str] = []

    @staticmethod
    def create(path: Path) -> None:
        path.write_bytes(bytes(8 * SECTOR))

    def read(self) -> Count:
        value, handovers, nonce, kind, name = _SECTOR.unpack_from(read_direct(self._path, 0, SECTOR))
        return Count(value, handovers, nonce, kind.rstrip(b"\0"), name.rstrip(b"\0"))

    def increment(self, hold_seconds: float) -> bool:
        """Count up under an exclusive lease. True if the last one to count was of another kind."""
        before = self._look("as an exclusive lease began")
        passes = before.kind not in (b"", self._kind)
        nonce = int.from_bytes(os.urandom(8), "little")
        after = Count(before.value + 1, before.handovers + passes, nonce, self._kind, self._name)
        write_direct(self._path, 0, _SECTOR.pack(*after).ljust(SECTOR, b"\0"))
        self._last = after
        self._stand_still(hold_seconds, "under an exclusive lease")
        return passes

    def watch(self, hold_seconds: float) -> None:
        """See under a shared lease that nobody counts."""
        self._last = self._look("as a shared lease began")
        self._stand_still(hold_seconds, "under a shared lease")

    def let_go(self) -> None:
        """The lease is given back: from now on others may count."""
        self._last = None

    def _stand_still(self, hold_seconds: float, when: str) -> None:
        time.sleep(hold_seconds)
        self._look(when)

    def _look(self, when: str) -> Count:
        """Read; what was last seen under the lease that is still held must be there, converted or not."""
        found = self.read()
        if self._last is not None and found != self._last:
            self.wrong.append(f"{self._name.decode()}: changed {when}: was {self._last}, found {found}")
        return found
