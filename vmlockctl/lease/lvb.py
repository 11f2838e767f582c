"""The lock value block: one raw sector that the holders of a lease hand on to each other (section 2.6).

No header and no checksum, so what was torn or never written cannot be told from data; the bytes belong to
whoever holds the lease. Its sector number is fixed, and in three geometries lies in *another* lease, which
sanlock then reads and overwrites (12.2-d): there is none for us.

I/Os of a read: r1 the sector. Of a write: r1 leader, w2 the sector.
"""

from __future__ import annotations

from vmlockctl.errors import NotHeld, UsageError
from vmlockctl.lease.resource import Claimant, Held, Resource, verify_held
from vmlockctl.lease.steps import Procedure, read_sectors, write_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds, write_timeout_seconds
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.units import format_size


def read_lvb(claimant: Claimant, held: Held) -> Procedure[bytes]:
    """Read the whole sector. Raises ``UsageError`` where the geometry has none."""
    sector = _sector(held.area.geometry)
    return (yield from read_sectors(held.area, sector, 1, read_timeout_seconds(claimant.io_timeout)))


def write_lvb(claimant: Claimant, held: Held, data: bytes) -> Procedure[None]:
    """Write ``data``, zeros behind it, as the whole sector, for a lease that is held exclusively.

    Raises ``UsageError`` (no such sector, or too much data: sanlock's -7), ``NotHeld`` for a shared lease,
    and ``LeaseLost`` before anything is written if another host has taken it since.
    """
    geometry = held.area.geometry
    sector = _sector(geometry)
    if len(data) > geometry.sector_size:
        raise UsageError(
            f"the lock value block has {geometry.sector_size} bytes, found {len(data)} to write",
            hint="shorten it",
        )
    if held.shared:
        raise NotHeld(
            f"{held.area.path}:{held.area.offset}: the lease is held shared, and its lock value block is "
            "written under an exclusive one",
            hint="acquire it exclusively first",
        )
    resource = Resource(held.area.path, held.area.offset, held.leader.resource)
    yield from verify_held(claimant, resource, lver=held.leader.lver)  # r1
    yield from write_sectors(
        held.area,
        sector,
        data.ljust(geometry.sector_size, b"\0"),
        write_timeout_seconds(claimant.io_timeout),
        what=f"lock value block of lver {held.leader.lver}",
    )  # w2


def _sector(geometry: Geometry) -> int:
    sector = geometry.lvb_sector
    if sector is None:
        raise UsageError(
            f"a lease with {geometry.sector_size}-byte sectors in {format_size(geometry.align_size)} "
            "has no lock value block, expected 512/1M or 4096/8M",
            hint="format the resource with one of these sizes",
        )
    return sector
