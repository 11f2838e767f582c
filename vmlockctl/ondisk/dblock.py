"""A host's sector in a paxos lease: its ballot record and its mode block (section 2.5).

    OFFSET  SIZE  FIELD
         0     8  mbal         highest ballot number this host has started
         8     8  bal          ballot number in which it entered phase 2
        16     8  inp          proposed owner's host_id
        24     8  inp2         its generation
        32     8  inp3         its timestamp (the proposer's monotonic seconds)
        40     8  lver         lease version this ballot is for
        48     4  checksum     over bytes 0..47
        52     4  flags        0x1 RELEASED; not covered by the checksum
       128     4  mode_flags   0x1 SHARED
       132     4  (padding)
       136     8  mode_generation

One sector, two structures, one writer function (pitfalls 12.1-6 and 12.1-7): whoever writes one
rewrites the other. Bytes 56..127 and from 144 are written as zeros and ignored on reading.
"""

from __future__ import annotations

from struct import Struct

from vmlockctl.errors import WrongDblock
from vmlockctl.ondisk.checksum import checksum
from vmlockctl.records import NamedTuple

DBLOCK = Struct("<6Q 2I")
MODE_BLOCK = Struct("<I 4x Q")
DBLOCK_CHECKSUM_LEN = 48
MODE_BLOCK_OFFSET = 128
USED_LEN = MODE_BLOCK_OFFSET + MODE_BLOCK.size

assert DBLOCK.size == 56
assert MODE_BLOCK.size == 16

FLAG_RELEASED = 0x1
MODE_SHARED = 0x1

# No honest host gets here in the life of the universe, and from here every host can still go on
# for millions of ballots: a larger number is damage.
MAX_MBAL = 1 << 62


class Dblock(NamedTuple):
    """One ballot record; the field order is the struct's."""

    mbal: int = 0
    bal: int = 0
    inp: int = 0
    inp2: int = 0
    inp3: int = 0
    lver: int = 0
    checksum: int = 0
    flags: int = 0

    @classmethod
    def from_bytes(cls, sector: bytes) -> Dblock:
        """Decode without judging."""
        return cls._make(DBLOCK.unpack_from(sector))

    def to_bytes(self) -> bytes:
        return DBLOCK.pack(*self)

    def sealed(self) -> Dblock:
        return self._replace(checksum=checksum(self.to_bytes()[:DBLOCK_CHECKSUM_LEN]))

    @property
    def is_released(self) -> bool:
        return bool(self.flags & FLAG_RELEASED)

    @property
    def never_used(self) -> bool:
        return not (self.checksum or self.mbal or self.bal or self.inp or self.lver)


class ModeBlock(NamedTuple):
    """The shared-mode record of one host."""

    flags: int = 0
    generation: int = 0

    @classmethod
    def from_bytes(cls, sector: bytes) -> ModeBlock:
        return cls._make(MODE_BLOCK.unpack_from(sector, MODE_BLOCK_OFFSET))

    @classmethod
    def shared(cls, generation: int) -> ModeBlock:
        return cls(MODE_SHARED, generation)

    @property
    def is_shared(self) -> bool:
        """Generation 0 is no holder: no host ever has it (section 4.6)."""
        return bool(self.flags & MODE_SHARED) and self.generation != 0


NO_MODE = ModeBlock()


def verify_dblock(sector: bytes, *, host_id: int, num_hosts: int = 0) -> Dblock:
    """Decode a dblock and check its sum. Raises ``WrongDblock``, which names the host id.

    ``num_hosts`` also bounds the owner that it proposes: a host that cannot be is never committed.
    """
    dblock = Dblock.from_bytes(sector)
    if dblock.never_used:
        return dblock
    computed = checksum(sector[:DBLOCK_CHECKSUM_LEN])
    if dblock.checksum != computed:
        raise WrongDblock(
            f"the dblock of host id {host_id} has a wrong checksum",
            found=f"{dblock.checksum:#010x}",
            expected=f"{computed:#010x}",
        )
    if dblock.mbal > MAX_MBAL:
        raise WrongDblock(
            f"the dblock of host id {host_id} has an absurd ballot number",
            found=dblock.mbal,
            expected=f"at most {MAX_MBAL}",
        )
    if num_hosts and dblock.inp > num_hosts:
        raise WrongDblock(
            f"the dblock of host id {host_id} proposes an owner that cannot be",
            found=dblock.inp,
            expected=f"at most {num_hosts}",
        )
    return dblock


def own_sector(dblock: Dblock, mode: ModeBlock, sector_size: int) -> bytes:
    """The whole sector of a host: the only writer of either structure."""
    head = dblock.to_bytes().ljust(MODE_BLOCK_OFFSET, b"\0")
    return (head + MODE_BLOCK.pack(*mode)).ljust(sector_size, b"\0")
