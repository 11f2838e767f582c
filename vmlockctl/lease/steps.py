"""What a procedure asks of whoever runs it.

A procedure is a generator. It yields one of the steps below and is sent the result, or is thrown a
``StorageError``. It never opens, sleeps or asks the time, so the same code runs on devices
(``storage/driver.py``), under a virtual clock with injected faults, and under exhaustive
interleaving: its state is exactly the results it has been told.

    STEP           RESULT
    ReadSectors    bytes, exactly sector_count sectors
    WriteSector    None, when the sectors are on the storage
    Wait           None
    Clock          int, whole monotonic seconds of this host, at least 1
    Random         float in [0, 1)
    Journal        None, when what is about to be written is remembered (delta lease only)
"""

from __future__ import annotations

from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeVar, Union


class Area(NamedTuple):
    """One lease area: a path, a byte offset on it, and its sizes."""

    path: str
    offset: int
    geometry: Geometry

    def byte_offset(self, sector: int) -> int:
        """Bytes from the start of the device to a sector of this area."""
        return self.offset + sector * self.geometry.sector_size


class ReadSectors(NamedTuple):
    area: Area
    sector: int
    sector_count: int
    timeout_seconds: float


class WriteSector(NamedTuple):
    """Write whole sectors that start at ``sector``; ``what`` is for the log line of this write."""

    area: Area
    sector: int
    data: bytes
    timeout_seconds: float
    what: str


class Wait(NamedTuple):
    """Let time pass; ``left_seconds`` is what the whole wait still takes if nothing happens."""

    seconds: float
    why: str
    left_seconds: float = 0.0


class Clock(NamedTuple):
    pass


class Random(NamedTuple):
    pass


class Journal(NamedTuple):
    record: bytes


if TYPE_CHECKING:
    Step = Union[ReadSectors, WriteSector, Wait, Clock, Random, Journal]
    Outcome = Union[bytes, int, float, None]

    T = TypeVar("T")
    Procedure = Generator[Step, Outcome, T]
else:
    Step = Outcome = Procedure = object  # names for annotations, which nobody evaluates


def read_sectors(area: Area, sector: int, sector_count: int, timeout_seconds: float) -> Procedure[bytes]:
    data = yield ReadSectors(area, sector, sector_count, timeout_seconds)
    assert isinstance(data, bytes)
    assert len(data) == sector_count * area.geometry.sector_size
    return data


def write_sectors(
    area: Area, sector: int, data: bytes, timeout_seconds: float, *, what: str
) -> Procedure[None]:
    assert len(data) % area.geometry.sector_size == 0
    yield WriteSector(area, sector, data, timeout_seconds, what)


def wait(seconds: float, why: str, *, left_seconds: float = 0.0) -> Procedure[None]:
    yield Wait(seconds, why, max(seconds, left_seconds))


def now() -> Procedure[int]:
    seconds = yield Clock()
    assert isinstance(seconds, int)
    assert seconds > 0  # 0 means free on disk (sanlock-format.md 12.2-q)
    return seconds


def random_wait(why: str) -> Procedure[None]:
    """Back off for uniform(0, 1) seconds, so that hosts do not retry in lockstep (12.1-11)."""
    fraction = yield Random()
    assert isinstance(fraction, float)
    yield Wait(fraction, why)
