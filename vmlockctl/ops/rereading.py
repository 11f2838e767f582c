"""Reading a lockspace and its leases again and again, for people who watch: what did not change costs little.

The first look reads everything. After it a look reads the sectors of the hosts that are known and, of each
lease, the leader and the dblocks of hosts that are in the lockspace: nobody acquires, shares or releases a
lease without writing one of these (sanlock-format.md section 4), so where none of them changed the area is
what it was. A host that is new shows when the whole lockspace is read again, which is more often than hosts
with the usual io_timeout renew, and before such a host has even joined.
"""

from __future__ import annotations

from vmlockctl import clock
from vmlockctl.errors import NoSuchArea
from vmlockctl.lease.delta import Lockspace, identify_lockspace, occupied_records
from vmlockctl.lease.steps import read_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ops.dump_leases import AreaDump, dump
from vmlockctl.records import NamedTuple
from vmlockctl.storage.driver import Driver
from vmlockctl.storage.patience import is_there
from vmlockctl.storage.reader import read_pieces
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Optional

    from vmlockctl.ondisk.leader import Leader
    from vmlockctl.specs import Target

WHOLE_LOCKSPACE_SECONDS = 10.0
# The owner note is written after the leader: a lease that changed is read whole for so long.
_NOTE_SECONDS = 5.0


def _runs(sectors: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring sectors as (first, count): one read for each."""
    first = count = 0
    for sector in sorted(sectors):
        if count and sector == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = sector, 1
    if count:
        yield first, count


class HostRecords:
    """The delta records of one lockspace; ``always_whole``: also of hosts that join in this moment."""

    def __init__(self, target: Target, *, always_whole: bool = False) -> None:
        self._target = target
        self._always_whole = always_whole
        self._driver = Driver(writable=False)
        self._known: list[int] = []
        self._read_whole_at: Optional[float] = None
        self.lockspace: Optional[Lockspace] = None

    def read(self) -> tuple[Lockspace, list[tuple[int, Leader]]]:
        """The records that were ever acquired. Raises ``OnDiskError`` and ``StorageError`` leaves."""
        try:
            lockspace, image = self._whole() if self._is_whole_due() else self._known_sectors()
        finally:
            self._driver.close()  # the next look opens by path: a replaced file shows
        records = occupied_records(lockspace.area, image)
        self._known = [host_id for host_id, _ in records]
        return lockspace, records

    def _is_whole_due(self) -> bool:
        at = self._read_whole_at
        return self._always_whole or at is None or clock.monotonic() - at >= WHOLE_LOCKSPACE_SECONDS

    def _whole(self) -> tuple[Lockspace, bytes]:
        target = self._target
        lockspace = self._driver.run(identify_lockspace(target.path, target.offset, space_name=target.name))
        area = lockspace.area
        image = self._driver.run(read_sectors(area, 0, area.geometry.sectors, lockspace.io_timeout))
        self.lockspace, self._read_whole_at = lockspace, clock.monotonic()
        return lockspace, image

    def _known_sectors(self) -> tuple[Lockspace, bytes]:
        assert self.lockspace is not None
        area, size = self.lockspace.area, self.lockspace.area.geometry.sector_size
        image = bytearray(area.geometry.align_size)
        for first, count in _runs(map(area.geometry.delta_sector, self._known)):
            data = self._driver.run(read_sectors(area, first, count, self.lockspace.io_timeout))
            image[first * size : (first + count) * size] = data
        return self.lockspace, bytes(image)

    def close(self) -> None:
        self._driver.close()


class _Remembered(NamedTuple):
    sectors: list[bytes]  # as they were just before the area was read
    areas: list[AreaDump]
    changed_at: float


class LeaseAreas:
    """The areas of lease files."""

    def __init__(self) -> None:
        self._worker = Worker("leases")
        self._remembered: dict[str, _Remembered] = {}

    def read(
        self, paths: Sequence[str], lockspace: Lockspace, *, joined: Sequence[int], highest: int
    ) -> Iterator[AreaDump]:
        """The areas of ``paths``. ``joined``: the hosts in the lockspace; ``highest``: of all ever in it."""
        geometry, seconds = lockspace.area.geometry, read_timeout_seconds(lockspace.io_timeout)
        wanted = _telling_pieces(geometry, joined)
        self._remembered = {path: self._remembered[path] for path in paths if path in self._remembered}
        for path in paths:
            try:
                sectors = read_pieces(path, wanted, timeout_seconds=seconds, worker=self._worker).pieces
                yield from self._areas(path, sectors, geometry, highest)
            except NoSuchArea:
                if is_there(path):
                    raise
                # Removed since the directory was listed.

    def _areas(self, path: str, sectors: list[bytes], geometry: Geometry, highest: int) -> list[AreaDump]:
        known, now = self._remembered.get(path), clock.monotonic()
        if known is None or known.sectors != sectors:
            changed_at = now
        elif _is_settled(known, geometry, now):
            return known.areas
        else:
            changed_at = known.changed_at
        areas = list(dump([path], hosts=highest))
        self._remembered[path] = _Remembered(sectors, areas, changed_at)
        return areas

    def close(self) -> None:
        self._worker.close()


def _telling_pieces(geometry: Geometry, host_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Offset and size of the leader and of these hosts' dblocks."""
    size = geometry.sector_size
    return [
        (first * size, count * size) for first, count in _runs([0, *map(geometry.dblock_sector, host_ids)])
    ]


def _is_settled(known: _Remembered, geometry: Geometry, now: float) -> bool:
    """Whether nothing but the sectors that tell can have changed since: no damage, no note on its way."""
    area = known.areas[0]
    if len(known.areas) != 1 or area.leader is None or area.damage:
        return False
    if (area.sector_size, area.align_size) != geometry:
        return False  # other sectors would tell
    is_noted = area.owner_note is not None and area.owner_note["current"]
    return is_noted or area.leader["timestamp"] == 0 or now - known.changed_at > _NOTE_SECONDS
