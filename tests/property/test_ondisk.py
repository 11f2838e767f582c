"""Any sector decodes or raises ``OnDiskError``, nothing else; what decodes is encoded as it was."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vmlockctl.errors import OnDiskError
from vmlockctl.ondisk import bitmap, ownernote
from vmlockctl.ondisk.checksum import checksum
from vmlockctl.ondisk.dblock import DBLOCK, Dblock, ModeBlock, own_sector, verify_dblock
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry, from_leader_fields
from vmlockctl.ondisk.leader import (
    LEADER,
    Leader,
    name_field,
    new_delta,
    new_paxos,
    same_name,
    verify_delta,
    verify_paxos,
)
from vmlockctl.ondisk.request import REQUEST, Request, verify_request
from vmlockctl.text import decode_name

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
RAW_NAME = st.binary(max_size=48).map(lambda raw: raw.ljust(48, b"\0"))
NAME = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=48
).filter(lambda name: len(name.encode()) <= 48)
GEOMETRY = st.sampled_from(ALL_GEOMETRIES)
SECTOR = st.sampled_from([512, 4096]).flatmap(lambda size: st.binary(min_size=size, max_size=size))

# Near enough to a real record to come past the first checks.
MAGICS = st.sampled_from([0x12212010, 0x06152010, 0x11282016, 0x08292011]) | U32
LEADERS = st.builds(
    Leader,
    magic=MAGICS,
    version=st.sampled_from([0x00030004, 0x00060004, 0x00060000]) | U32,
    flags=st.sampled_from([0, 0x10, 0x20, 0x40, 0x80, 0x11, 0xF0]) | U32,
    sector_size=st.sampled_from([512, 4096, 1024]) | U32,
    num_hosts=st.integers(0, 2001) | U64,
    max_hosts=st.sampled_from([1, 250, 500, 1000, 2000]) | U64,
    owner_id=st.integers(0, 2001) | U64,
    owner_generation=U64,
    lver=U64,
    space_name=st.just(name_field("ls")) | RAW_NAME,
    resource_name=st.just(name_field("res")) | RAW_NAME,
    timestamp=U64,
    unused1=U64,
    checksum=U32,
    unused2=U16,
    io_timeout=U16,
    write_id=U64,
    write_generation=U64,
    write_timestamp=U64,
)
DBLOCKS = st.builds(Dblock, U64, U64, U64, U64, U64, U64, U32, U32)
MODES = st.builds(ModeBlock, U32, U64)


def judge(sector: bytes) -> None:
    """Every reader of the package, on the same bytes."""
    for verify in (
        lambda: verify_delta(sector, space_name="ls"),
        lambda: verify_paxos(sector, space_name="ls", resource_name="res", host_id=1),
        lambda: verify_paxos(sector, space_name="ls", resource_name="res"),
        lambda: verify_dblock(sector, host_id=1),
        lambda: verify_request(sector),
    ):
        try:
            record: Any = verify()
        except OnDiskError as error:
            assert error.message
            assert error.message.isprintable()
        else:
            assert sector.startswith(record.to_bytes())


@given(SECTOR)
def test_any_bytes(sector: bytes) -> None:
    judge(sector)
    assert sector.startswith(Leader.from_bytes(sector).to_bytes())
    assert sector.startswith(Dblock.from_bytes(sector).to_bytes())
    assert sector.startswith(Request.from_bytes(sector).to_bytes())
    assert bitmap.to_bytes(bitmap.host_ids_in(sector)) == sector[256:512]
    ownernote.from_bytes(sector)


@given(LEADERS, st.booleans())
def test_any_leader(leader: Leader, is_sealed: bool) -> None:
    if is_sealed:
        leader = leader.sealed()
    sector = leader.sector(512)
    assert len(sector) == 512
    assert Leader.from_bytes(sector) == leader
    assert sector[: LEADER.size] == leader.to_bytes()
    judge(sector)
    try:
        geometry = leader.geometry
    except OnDiskError:
        pass
    else:
        assert geometry in ALL_GEOMETRIES


@given(LEADERS)
def test_sealing_is_exact(leader: Leader) -> None:
    sealed = leader.sealed()
    assert sealed.checksum == checksum(sealed.to_bytes()[:168])
    assert sealed._replace(checksum=0) == leader._replace(checksum=0)
    assert sealed.sealed() == sealed


@given(GEOMETRY, NAME, NAME, st.integers(1, 255))
def test_new_records_verify(geometry: Geometry, space: str, resource: str, io_timeout: int) -> None:
    delta = new_delta(geometry, space_name=space, io_timeout=io_timeout)
    assert verify_delta(delta.sector(geometry.sector_size), space_name=space) == delta
    assert from_leader_fields(delta.sector_size, delta.flags) == geometry
    paxos = new_paxos(geometry, space_name=space, resource_name=resource)
    found = verify_paxos(
        paxos.sector(geometry.sector_size),
        space_name=space,
        resource_name=resource,
        host_id=geometry.max_hosts,
    )
    assert found == paxos
    assert (found.space, found.resource) == (space, resource)


@given(RAW_NAME)
def test_names_survive(raw: bytes) -> None:
    name = decode_name(raw)
    assert same_name(raw, name)
    if name:
        assert name_field(name) == raw.split(b"\0", 1)[0].ljust(48, b"\0")


@given(DBLOCKS, MODES, st.sampled_from([512, 4096]), st.booleans())
def test_own_sectors(dblock: Dblock, mode: ModeBlock, size: int, is_sealed: bool) -> None:
    if is_sealed:
        dblock = dblock.sealed()
    sector = own_sector(dblock, mode, size)
    assert len(sector) == size
    assert (Dblock.from_bytes(sector), ModeBlock.from_bytes(sector)) == (dblock, mode)
    assert sector[: DBLOCK.size] == dblock.to_bytes()
    judge(sector)


@given(st.builds(Request, MAGICS, U32, U64, U32))
def test_requests(request: Request) -> None:
    data = request.to_bytes()
    assert len(data) == REQUEST.size
    assert Request.from_bytes(data) == request
    judge(data.ljust(512, b"\0"))


@given(st.sets(st.integers(1, 2048)))
def test_bitmaps(host_ids: set[int]) -> None:
    data = bitmap.to_bytes(sorted(host_ids))
    assert len(data) == 256
    assert bitmap.host_ids_in(bytes(256) + data) == sorted(host_ids)


# Fields that no version knows: those that one does have a kind (tests/unit/ondisk/test_ownernote.py).
UNKNOWN_FIELD = st.text(max_size=10).map("x".__add__)


@given(st.dictionaries(UNKNOWN_FIELD, st.text(max_size=60) | st.integers() | st.none(), max_size=12))
def test_notes(note: dict[str, Any]) -> None:
    data = ownernote.to_bytes(note)
    assert len(data) == 4096
    assert ownernote.from_bytes(data) == note


@given(st.binary(min_size=20, max_size=4096))
def test_any_bytes_are_a_note_or_none(data: bytes) -> None:
    assert ownernote.from_bytes(data) is None
