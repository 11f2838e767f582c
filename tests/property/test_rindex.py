"""Any bytes are an index or raise ``OnDiskError``, nothing else; what decodes is encoded as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_ondisk import GEOMETRY, NAME, RAW_NAME, SECTOR, U32, U64
from vmlockctl.errors import OnDiskError, WrongRindexEntry, WrongRindexOffset
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ondisk.rindex import (
    ENTRY,
    HEADER,
    RINDEX_MAGIC,
    RINDEX_VERSION,
    Entry,
    Header,
    entries_in,
    new_entry,
    new_header,
    verify_entry,
    verify_header,
)

PLACES = st.integers(0, 2**44).map(lambda place: place * 4096)
HEADERS = st.builds(
    Header,
    magic=st.just(RINDEX_MAGIC) | U32,
    version=st.sampled_from([RINDEX_VERSION, 0x00010000]) | U32,
    flags=st.sampled_from([0, 1, 2, 4, 8, 15]) | U32,
    sector_size=st.sampled_from([512, 4096, 1024]) | U32,
    max_resources=st.sampled_from([0, 1, 4096]) | U32,
    unused=U32,
    rx_offset=st.just(1 << 20) | PLACES | U64,
    space_name=RAW_NAME,
)
ENTRIES = st.builds(Entry, st.sampled_from([0, 3 << 20, 4 << 20]) | U64, U32, U32, RAW_NAME)


def judge(sector: bytes, table: bytes) -> None:
    try:
        header = verify_header(sector, rx_offset=1 << 20)
    except OnDiskError as error:
        assert error.message.isprintable()
        return
    assert sector.startswith(header.to_bytes())
    assert header.geometry in ALL_GEOMETRIES
    for index, entry in entries_in(header, table):
        assert not entry.is_free
        try:
            verify_entry(header, index, entry)
        except WrongRindexEntry as error:
            assert error.message.isprintable()
        else:
            assert entry.offset == header.resource_offset(index)


@given(SECTOR)
def test_any_bytes(sector: bytes) -> None:
    judge(sector, sector)
    assert sector.startswith(Header.from_bytes(sector).to_bytes())
    assert sector.startswith(Entry.from_bytes(sector).to_bytes())


@given(HEADERS, st.lists(ENTRIES, max_size=9))
def test_any_index(header: Header, entries: list[Entry]) -> None:
    data = header.to_bytes()
    assert len(data) == HEADER.size
    assert Header.from_bytes(data) == header
    sector = data.ljust(512, b"\0")
    judge(sector, sector + b"".join(entry.to_bytes() for entry in entries))


@given(ENTRIES)
def test_any_entry(entry: Entry) -> None:
    data = entry.to_bytes()
    assert len(data) == ENTRY.size
    assert Entry.from_bytes(data) == entry


@given(GEOMETRY, NAME, NAME, PLACES, st.integers(0, 4095))
def test_new_records_verify(geometry: Geometry, space: str, name: str, place: int, index: int) -> None:
    header = new_header(geometry, rx_offset=place, space_name=space)
    sector = header.to_bytes().ljust(geometry.sector_size, b"\0")
    assert verify_header(sector, rx_offset=place, space_name=space) == header
    entry = new_entry(header, index, name)
    verify_entry(header, index, entry)
    assert (entry.resource, header.index_of(entry.offset)) == (name, index)


@given(GEOMETRY, st.integers(0, 2**40))
def test_an_offset_is_a_place_or_none(geometry: Geometry, offset: int) -> None:
    header = new_header(geometry, rx_offset=geometry.align_size, space_name="ls")
    try:
        index = header.index_of(offset)
    except WrongRindexOffset:
        assert offset % geometry.align_size or not 3 <= offset // geometry.align_size < 3 + 4096
    else:
        assert header.resource_offset(index) == offset
