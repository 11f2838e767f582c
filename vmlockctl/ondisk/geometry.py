"""Sector and area sizes, and where in an area each host's records are (sections 1.1 and 2.1).

The only place where a host_id becomes a sector number.

    SECTOR   ALIGN   MAX_HOSTS   FLAG
       512      1M        2000   0x10
      4096      1M         250   0x10
      4096      2M         500   0x20
      4096      4M        1000   0x40
      4096      8M        2000   0x80
"""

from __future__ import annotations

from vmlockctl.errors import UsageError, WrongGeometry, WrongSectorSize
from vmlockctl.records import NamedTuple
from vmlockctl.units import MIB, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

ALIGN_FLAGS = {1 * MIB: 0x10, 2 * MIB: 0x20, 4 * MIB: 0x40, 8 * MIB: 0x80}
ALIGN_MASK = 0xF0
_MAX_HOSTS = {
    (512, 1 * MIB): 2000,
    (4096, 1 * MIB): 250,
    (4096, 2 * MIB): 500,
    (4096, 4 * MIB): 1000,
    (4096, 8 * MIB): 2000,
}

LEADER_SECTOR = 0
REQUEST_SECTOR = 1
LVB_SECTOR = 2002  # fixed, whatever the geometry (section 2.6)
PROBE_SIZE = 4096  # read at the start of an area whose sizes are not known yet
NOTE_SIZE = 4096  # the last bytes of a paxos lease area, used by no sanlock record in any geometry


class Geometry(NamedTuple):
    """One of the five valid pairs of sector size and align size, in bytes."""

    sector_size: int
    align_size: int

    @property
    def max_hosts(self) -> int:
        return _MAX_HOSTS[self]

    @property
    def align_flag(self) -> int:
        return ALIGN_FLAGS[self.align_size]

    @property
    def sectors(self) -> int:
        return self.align_size // self.sector_size

    def delta_sector(self, host_id: int) -> int:
        """The sector of a host's delta lease in a lockspace area."""
        assert 1 <= host_id <= self.max_hosts, host_id
        return host_id - 1

    def dblock_sector(self, host_id: int) -> int:
        """The sector of a host's dblock and mode block in a paxos lease area."""
        assert 1 <= host_id <= self.max_hosts, host_id
        return host_id + 1

    def ballot_sectors(self, num_hosts: int) -> int:
        """Sectors that a ballot reads: a power of two that holds every dblock (section 4.2)."""
        return int(min(self.sectors, 1 << (num_hosts + 1).bit_length()))

    @property
    def lvb_sector(self) -> Optional[int]:
        """The sector of the lock value block; None where it would lie in another lease (12.2-d).

        It is after the last dblock and before the owner note in both geometries that have room for it.
        """
        return LVB_SECTOR if self.sectors > LVB_SECTOR else None

    def note_sectors(self) -> tuple[int, int]:
        """First sector and count of the owner note."""
        count = max(1, NOTE_SIZE // self.sector_size)
        return self.sectors - count, count


ALL_GEOMETRIES = tuple(Geometry(*sizes) for sizes in _MAX_HOSTS)
DEFAULT_GEOMETRY = Geometry(512, 1 * MIB)


def choose(sector_size: int, align_size: Optional[int] = None) -> Geometry:
    """The geometry an administrator asked for; sanlock's default area where none is named."""
    if align_size is None:
        align_size = 1 * MIB if sector_size == 512 else 8 * MIB
    geometry = Geometry(sector_size, align_size)
    if geometry not in _MAX_HOSTS:
        valid = ", ".join(f"{g.sector_size}/{format_size(g.align_size)}" for g in ALL_GEOMETRIES)
        raise UsageError(
            f"sector size {sector_size} with align size {format_size(align_size)} is not a valid "
            f"geometry, expected one of {valid}"
        )
    return geometry


def from_leader_fields(sector_size: int, flags: int) -> Geometry:
    """The geometry that a leader record states. Raises ``WrongSectorSize``, ``WrongGeometry``.

    Without an align flag (minor versions below 4) 512 means 1M and 4096 means 8M; of several flags
    the smallest counts (section 1.2).
    """
    if sector_size not in (512, 4096):
        raise WrongSectorSize("wrong sector size in the leader", found=sector_size, expected="512 or 4096")
    align_size = 1 * MIB if sector_size == 512 else 8 * MIB
    for size, flag in ALIGN_FLAGS.items():
        if flags & flag:
            align_size = size
            break
    geometry = Geometry(sector_size, align_size)
    if geometry not in _MAX_HOSTS:
        raise WrongGeometry(
            "sector size and align size do not go together",
            found=f"{sector_size}/{format_size(align_size)}",
            expected="512/1M or 4096/1M, 2M, 4M, 8M",
        )
    return geometry
