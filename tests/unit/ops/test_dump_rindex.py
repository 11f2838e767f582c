"""dump-leases of a device as oVirt lays it out: lockspace, index, its lease, resources. And of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.cli import dump_leases as command
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.bitmap import BITMAP_OFFSET, to_bytes
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import Leader, name_field
from vmlockctl.ondisk.request import GRACEFUL, Request
from vmlockctl.ondisk.rindex import RINDEX_LEASE, Entry, Header, new_entry, new_header, rindex_area
from vmlockctl.ops.dump_leases import AreaDump, dump
from vmlockctl.units import MIB

SPACE = "ls"
VALUE = b"from \x1b[31m host 1"


def device(path: Path, geometry: Geometry = DEFAULT_GEOMETRY) -> Path:
    """A device as oVirt lays it out: resource ``b`` is held, asked for, and has a value."""
    size, align = geometry.sector_size, geometry.align_size
    space = bytearray(lockspace_area(geometry, space_name=SPACE, io_timeout=10))
    record = Leader.from_bytes(bytes(space))._replace(owner_id=1, owner_generation=3, timestamp=9)
    space[:200] = record.sealed().to_bytes()
    space[BITMAP_OFFSET : BITMAP_OFFSET + 256] = to_bytes([2, 250])
    header = new_header(geometry, rx_offset=align, space_name=SPACE)
    index = bytearray(rindex_area(header))
    for number, name in ((0, "a"), (70, "far"), (1, "b")):
        sector, start = header.entry_sector(number)
        at = sector * size + start
        index[at : at + 64] = new_entry(header, number, name).to_bytes()
    held = bytearray(resource_area(geometry, space_name=SPACE, resource_name="b"))
    leader = Leader.from_bytes(bytes(held))._replace(owner_id=1, owner_generation=3, timestamp=9, lver=4)
    held[:200] = leader.sealed().to_bytes()
    held[size : size + 20] = Request(lver=5, force_mode=GRACEFUL).to_bytes()
    if geometry.lvb_sector is not None:
        at = geometry.lvb_sector * size
        held[at : at + len(VALUE)] = VALUE
    areas = [
        space, index, resource_area(geometry, space_name=SPACE, resource_name=RINDEX_LEASE),
        resource_area(geometry, space_name=SPACE, resource_name="a"), held,
    ]  # fmt: skip
    path.write_bytes(b"".join(areas))
    return path


def damaged(path: Path, **fields: Any) -> Path:
    image = bytearray(device(path).read_bytes())
    image[MIB : MIB + 80] = Header.from_bytes(bytes(image[MIB:]))._replace(**fields).to_bytes()
    path.write_bytes(image)
    return path


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    command._print_text(dump([str(path)]))
    return capsys.readouterr().out


@each_geometry
def test_a_device_is_decoded_whole(tmp_path: Path, geometry: Geometry) -> None:
    areas = list(dump([str(device(tmp_path / "device", geometry))]))
    assert [area.kind for area in areas] == ["lockspace", "rindex", "resource", "resource", "resource"]
    assert [area.offset for area in areas] == [number * geometry.align_size for number in range(5)]
    assert [area.damage for area in areas] == [[]] * 5
    space, index, lease, _, held = areas
    assert space.leaders is not None and space.leaders[0]["bitmap"] == [2, 250]
    assert index.rindex is not None and index.rindex["space_name"] == SPACE
    assert [(entry["entry"], entry["name"]) for entry in index.rindex["entries"]] == [
        (0, "a"),
        (1, "b"),
        (70, "far"),
    ]
    assert [entry["offset"] for entry in index.rindex["entries"]] == [
        (3 + number) * geometry.align_size for number in (0, 1, 70)
    ]
    assert lease.leader is not None and lease.leader["resource_name"] == RINDEX_LEASE
    assert held.request is not None and (held.request["lver"], held.request["force_mode"]) == (5, GRACEFUL)
    assert held.lvb == (VALUE.hex() if geometry.lvb_sector else None)
    for area in areas:
        json.dumps(area.as_dict())


def test_the_text_of_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(device(tmp_path / "device"), capsys)
    assert "resource index of lockspace ls, room for 4096" in text
    assert "2 250" in text, "whom host 1 asks to look"
    assert "request for lver 5, mode 2" in text
    assert VALUE.hex() in text
    assert r"from \x1b[31m host 1" in text, "and as text that a terminal does not obey"
    assert "\x1b" not in text


CASES: list[tuple[dict[str, Any], int]] = [
    ({"magic": 0}, -274),
    ({"version": 0x00020002}, -275),
    ({"rx_offset": 7 * MIB}, -277),
    ({"sector_size": 513}, -225),
    ({"flags": 0}, -230),
    ({"flags": 2}, -230),
]


@pytest.mark.parametrize(("fields", "number"), CASES, ids=str)
def test_a_damaged_header_hides_no_entries(tmp_path: Path, fields: dict[str, Any], number: int) -> None:
    areas = list(dump([str(damaged(tmp_path / "device", **fields))]))
    assert [area.kind for area in areas] == ["lockspace", "rindex", "resource", "resource", "resource"]
    [finding] = areas[1].damage
    assert (finding["sanlk_rv"], finding["offset"]) == (number, MIB)
    assert areas[1].rindex is not None
    assert [entry["name"] for entry in areas[1].rindex["entries"]] == ["a", "b", "far"]


def test_a_damaged_entry_is_shown_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = device(tmp_path / "device")
    image = bytearray(path.read_bytes())
    at = MIB + 512 + 64
    image[at : at + 64] = Entry(offset=5, name=name_field("\x1bodd")).to_bytes()
    path.write_bytes(image)
    index = list(dump([str(path)]))[1]
    assert [(found["offset"], found["sanlk_rv"]) for found in index.damage] == [(at, -278)]
    assert index.rindex is not None
    assert index.rindex["entries"][1]["offset"] == 5
    text = shown(path, capsys)
    assert r"\x1bodd" in text and "\x1b" not in text
    assert f"damaged at {at}" in text


def test_an_index_that_ends_early(tmp_path: Path) -> None:
    path = device(tmp_path / "device")
    image = path.read_bytes()
    path.write_bytes(image[: MIB + 4096])
    areas: list[AreaDump] = list(dump([str(path)]))
    assert areas[1].rindex is not None
    assert [entry["name"] for entry in areas[1].rindex["entries"]] == ["a", "b"], "what is there"
    assert [found["sanlk_rv"] for found in areas[1].damage] == [-90]


def test_only_the_index(tmp_path: Path) -> None:
    [index] = dump([f"{device(tmp_path / 'device')}:1M:1M"])
    assert index.kind == "rindex"
    assert "leader" not in index.as_dict() and "lvb" not in index.as_dict()
