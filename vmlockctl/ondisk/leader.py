"""The leader record: who owns a delta lease or a paxos lease (sanlock-format.md section 1.2).

    OFFSET  SIZE  FIELD              DELTA LEASE             PAXOS LEASE
         0     4  magic              0x12212010              0x06152010; 0x11282016 = cleared
         4     4  version            0x00030004              0x00060004
         8     4  flags              align flag              align flag, 0x1 SHORT_HOLD
        12     4  sector_size        512 or 4096             same
        16     8  num_hosts          0                       dblocks in use
        24     8  max_hosts          1                       by geometry
        32     8  owner_id           0 = never used          host_id of the last owner
        40     8  owner_generation   +1 on every acquire     generation of that owner
        48     8  lver               0                       +1 on every commit
        56    48  space_name         NUL padded, may be full
       104    48  resource_name      host name of holder     resource name
       152     8  timestamp          0 = free                0 = free
       160     8  unused1            preserved
       168     4  checksum           over bytes 0..167
       172     2  unused2
       174     2  io_timeout         of the holder           0
       176     8  write_id           event: generation       host_id of the writer
       184     8  write_generation   event number            its generation
       192     8  write_timestamp    event data              its monotonic seconds

Little-endian on every platform. Bytes 168..199 are not covered by the checksum. Two rules follow
from section 1.2: any minor version is readable, and a writer keeps every bit that it does not know,
because it starts from the record that it read. Next: ``dblock.py``, then ``lease/timeouts.py``.
"""

from __future__ import annotations

from struct import Struct

from vmlockctl.errors import (
    ClearedResource,
    WrongChecksum,
    WrongField,
    WrongLockspaceName,
    WrongMagic,
    WrongNumHosts,
    WrongResourceName,
    WrongVersion,
)
from vmlockctl.ondisk.checksum import checksum
from vmlockctl.ondisk.geometry import Geometry, from_leader_fields
from vmlockctl.records import NamedTuple
from vmlockctl.text import decode_name, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

LEADER = Struct("<4I 5Q 48s 48s 2Q I 2H 3Q")
LEADER_CHECKSUM_LEN = 168
NAME_LEN = 48

assert LEADER.size == 200
assert LEADER.size <= 256  # the host_id bitmap starts at byte 256

DELTA_MAGIC = 0x12212010
DELTA_VERSION = 0x00030004
PAXOS_MAGIC = 0x06152010
PAXOS_VERSION = 0x00060004
PAXOS_CLEARED_MAGIC = 0x11282016

FLAG_SHORT_HOLD = 0x1

# No honest host gets here in the life of the universe: a larger lver or generation is damage, and refused
# before the next one overflows its field.
MAX_COUNT = 1 << 62

MAX_IO_TIMEOUT = 255  # masked to 8 bits when a host joins (section 12.2-r)


class Leader(NamedTuple):
    """One leader record; the field order is the struct's, names are raw 48-byte fields."""

    magic: int
    version: int
    flags: int
    sector_size: int
    num_hosts: int
    max_hosts: int
    owner_id: int
    owner_generation: int
    lver: int
    space_name: bytes
    resource_name: bytes
    timestamp: int
    unused1: int
    checksum: int
    unused2: int
    io_timeout: int
    write_id: int
    write_generation: int
    write_timestamp: int

    @classmethod
    def from_bytes(cls, sector: bytes) -> Leader:
        """Decode without judging; ``verify_delta`` and ``verify_paxos`` judge."""
        return cls._make(LEADER.unpack_from(sector))

    def to_bytes(self) -> bytes:
        """Encode the 200 bytes exactly as the fields say, the stored checksum included."""
        return LEADER.pack(*self)

    def sealed(self) -> Leader:
        """The same record with the checksum that its bytes call for."""
        return self._replace(checksum=checksum(self.to_bytes()[:LEADER_CHECKSUM_LEN]))

    def sector(self, sector_size: int) -> bytes:
        """The whole sector to write: the record, then zeros."""
        return self.to_bytes().ljust(sector_size, b"\0")

    @property
    def space(self) -> str:
        return decode_name(self.space_name)

    @property
    def resource(self) -> str:
        """Resource name; in a delta lease the host name of the holder."""
        return decode_name(self.resource_name)

    @property
    def is_free(self) -> bool:
        return self.timestamp == 0

    @property
    def geometry(self) -> Geometry:
        return from_leader_fields(self.sector_size, self.flags)

    @property
    def owner(self) -> tuple[int, int]:
        return self.owner_id, self.owner_generation


def name_field(name: str) -> bytes:
    """``name`` as a NUL-padded field. The caller has checked the length (``specs``)."""
    raw = name.encode("utf-8", "surrogateescape")
    assert 0 < len(raw) <= NAME_LEN, name
    return raw.ljust(NAME_LEN, b"\0")


def same_name(field: bytes, name: str) -> bool:
    """Compare up to the first NUL or 48 bytes, as sanlock does."""
    return field.split(b"\0", 1)[0] == name.encode("utf-8", "surrogateescape")


def verify_delta(sector: bytes, *, space_name: str) -> Leader:
    """Decode a delta record with a reader's checks in sanlock's order (section 1.7), then our own."""
    leader = Leader.from_bytes(sector)
    if leader.magic != DELTA_MAGIC:
        raise WrongMagic(
            "no lockspace record (wrong magic)", found=_found_magic(sector), expected=f"{DELTA_MAGIC:#010x}"
        )
    _check_major(leader, DELTA_VERSION)
    _check_space(leader, space_name)
    _check_sum(leader, sector)
    if leader.owner_generation > MAX_COUNT:
        raise _absurd("generation", leader.owner_generation)
    return leader


def first_record(sector: bytes, *, space_name: Optional[str]) -> Leader:
    """Decode the record that states a lockspace's sizes and name, checked for just these."""
    leader = Leader.from_bytes(sector)
    if leader.magic != DELTA_MAGIC:
        raise WrongMagic(
            "no lockspace record (wrong magic)", found=_found_magic(sector), expected=f"{DELTA_MAGIC:#010x}"
        )
    _check_major(leader, DELTA_VERSION)
    if space_name is not None:
        _check_space(leader, space_name)
    return leader


def verify_paxos(sector: bytes, *, space_name: str, resource_name: str, host_id: int = 0) -> Leader:
    """Decode a paxos leader with a reader's checks in sanlock's order, then our own (section 2.3).

    ``host_id`` 0 is a reader that takes no part in ballots.
    """
    leader = Leader.from_bytes(sector)
    if leader.magic == PAXOS_CLEARED_MAGIC:
        raise ClearedResource(
            "the resource was cleared", found=f"{leader.magic:#010x}", expected=f"{PAXOS_MAGIC:#010x}"
        )
    if leader.magic != PAXOS_MAGIC:
        raise WrongMagic(
            "no resource record (wrong magic)", found=_found_magic(sector), expected=f"{PAXOS_MAGIC:#010x}"
        )
    _check_major(leader, PAXOS_VERSION)
    _check_space(leader, space_name)
    if not same_name(leader.resource_name, resource_name):
        raise WrongResourceName(
            "wrong resource name", found=repr(safe(leader.resource)), expected=repr(safe(resource_name))
        )
    if leader.num_hosts < host_id:
        raise WrongNumHosts(
            f"num_hosts leaves no dblock for host id {host_id}",
            found=leader.num_hosts,
            expected=f"at least {host_id}",
        )
    _check_sum(leader, sector)
    _check_bounds(leader)
    return leader


def _absurd(what: str, found: int) -> WrongField:
    return WrongField(f"an absurd {what}", found=found, expected=f"at most {MAX_COUNT}")


def _found_magic(sector: bytes) -> str:
    if sector == bytes(len(sector)):
        return "only zeros"
    return f"{int.from_bytes(sector[:4], 'little'):#010x}"


def _check_major(leader: Leader, version: int) -> None:
    if leader.version >> 16 != version >> 16:
        raise WrongVersion("unsupported major version", found=leader.version >> 16, expected=version >> 16)


def _check_space(leader: Leader, space_name: str) -> None:
    if not same_name(leader.space_name, space_name):
        raise WrongLockspaceName(
            "wrong lockspace name", found=repr(safe(leader.space)), expected=repr(safe(space_name))
        )


def _check_sum(leader: Leader, sector: bytes) -> None:
    computed = checksum(sector[:LEADER_CHECKSUM_LEN])
    if leader.checksum != computed:
        raise WrongChecksum("wrong checksum", found=f"{leader.checksum:#010x}", expected=f"{computed:#010x}")


def _check_bounds(leader: Leader) -> None:
    """Reject what sanlock accepts and misbehaves on (sections 2.3 and 12.2-h, p)."""
    geometry = leader.geometry
    if leader.max_hosts != geometry.max_hosts:
        raise WrongField("wrong max_hosts", found=leader.max_hosts, expected=geometry.max_hosts)
    if not 1 <= leader.num_hosts <= leader.max_hosts:
        raise WrongNumHosts("wrong num_hosts", found=leader.num_hosts, expected=f"1 to {leader.max_hosts}")
    if leader.lver > MAX_COUNT:
        raise _absurd("lver", leader.lver)
    if leader.owner_id == 0 and not leader.is_free:
        raise WrongField("owned by nobody", found="owner_id 0", expected=f"1 to {leader.max_hosts}")
    if leader.owner_id > leader.max_hosts:
        raise WrongField(
            "owner_id beyond max_hosts", found=leader.owner_id, expected=f"at most {leader.max_hosts}"
        )


def new_delta(geometry: Geometry, *, space_name: str, io_timeout: int) -> Leader:
    """A delta record that was never acquired (section 1.5)."""
    return Leader(
        magic=DELTA_MAGIC, version=DELTA_VERSION, flags=geometry.align_flag,
        sector_size=geometry.sector_size, num_hosts=0, max_hosts=1, owner_id=0, owner_generation=0,
        lver=0, space_name=name_field(space_name), resource_name=bytes(NAME_LEN), timestamp=0,
        unused1=0, checksum=0, unused2=0, io_timeout=io_timeout, write_id=0, write_generation=0,
        write_timestamp=0,
    ).sealed()  # fmt: skip


def new_paxos(geometry: Geometry, *, space_name: str, resource_name: str, num_hosts: int = 0) -> Leader:
    """A paxos leader that was never acquired (section 2.2); ``num_hosts`` 0 is all of them."""
    return Leader(
        magic=PAXOS_MAGIC, version=PAXOS_VERSION, flags=geometry.align_flag,
        sector_size=geometry.sector_size, num_hosts=num_hosts or geometry.max_hosts,
        max_hosts=geometry.max_hosts, owner_id=0, owner_generation=0, lver=0,
        space_name=name_field(space_name), resource_name=name_field(resource_name), timestamp=0,
        unused1=0, checksum=0, unused2=0, io_timeout=0, write_id=0, write_generation=0,
        write_timestamp=0,
    ).sealed()  # fmt: skip
