"""Areas of sectors, and what a read may see of them.

An area keeps only the sectors that its few hosts can change; what lies behind them nobody looks at. The
image of a whole resource area states its full length, as the procedures check it, and holds those first
sectors alone. An object that was returned once is returned again until something is written: two looks at an
area are compared by identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from vmlockctl.lease.steps import ReadSectors, WriteSector
from vmlockctl.ondisk.geometry import LEADER_SECTOR, PROBE_SIZE, Geometry

SECTORS_KEPT = 8  # leader, request, and the sectors of hosts 1 to 6: what a ballot of 6 hosts reads
MAX_HOSTS = SECTORS_KEPT - 2

_TIMESTAMP = slice(152, 160)
_FREE = bytes(8)


class _WholeArea(bytes):
    """The first sectors of an area, which says that it is all of it."""

    size: int

    def __len__(self) -> int:
        return self.size


class SmallGeometry(Geometry):
    """A lockspace of a few host ids: the rest of its area is never written and not read."""

    @property
    def max_hosts(self) -> int:
        return SECTORS_KEPT

    @property
    def sectors(self) -> int:
        return SECTORS_KEPT


class DiskArea:
    """One lease area at offset 0 of its path."""

    def __init__(self, path: str, geometry: Geometry, content: bytes) -> None:
        self.path = path
        self.size = geometry.sector_size
        self.align_size = geometry.align_size
        self.is_lockspace = isinstance(geometry, SmallGeometry)
        self.sectors = [content[i * self.size : (i + 1) * self.size] for i in range(SECTORS_KEPT)]
        self.image: Optional[bytes] = None
        self._whole: Optional[_WholeArea] = None
        self.on_free: Optional[Callable[[], None]] = None  # told when the leader is written free

    def look(self, step: ReadSectors) -> bytes:
        """What a read sees of this moment."""
        area, sector, count, _ = step
        if area.geometry.sector_size != self.size:
            assert sector == 0 and count * area.geometry.sector_size == PROBE_SIZE
            return self._joined() if self.size * SECTORS_KEPT == PROBE_SIZE else self.sectors[0]
        if count == 1:
            return self.sectors[sector]
        assert sector == 0
        image = self._joined()
        if count == SECTORS_KEPT:
            return image
        assert count * self.size == self.align_size, step
        if self._whole is None:
            self._whole = _WholeArea(image)
            self._whole.size = self.align_size
        return self._whole

    def _joined(self) -> bytes:
        if self.image is None:
            self.image = b"".join(self.sectors)
        return self.image

    def write(self, step: WriteSector) -> None:
        sector, data = step.sector, step.data
        assert len(data) == self.size and sector < SECTORS_KEPT, step
        self.put(sector, data)
        if sector == LEADER_SECTOR and self.on_free is not None and data[_TIMESTAMP] == _FREE:
            self.on_free()

    def put(self, sector: int, data: bytes) -> None:
        self.sectors[sector] = data
        self.image = self._whole = None

    def mixed(self, before: bytes, after: bytes, coin: Callable[[], float]) -> bytes:
        """A torn read: each sector is whole, as it was at the beginning of the I/O or at its end."""
        size = self.size
        old, new = bytes(before), bytearray(bytes(after))
        for start in range(0, len(new), size):
            if coin() < 0.5:
                new[start : start + size] = old[start : start + size]
        if not isinstance(after, _WholeArea):
            return bytes(new)
        torn = _WholeArea(new)
        torn.size = self.align_size
        return torn
