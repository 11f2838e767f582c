"""Changing the resource index on a real file: every write may be the last one, and nothing is overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.sim.scene import SPACE
from vmlockctl.errors import (
    CannotCreate,
    HeldLocally,
    LeaseHeld,
    NoSuchArea,
    NotHeld,
    UsageError,
    WrongRindexEntry,
    WrongRindexMagic,
)
from vmlockctl.lease import rindex
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.lvb import read_lvb, write_lvb
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release
from vmlockctl.lease.resource import Claimant, Resource
from vmlockctl.lease.rindexrecords import Index
from vmlockctl.lease.steps import Area
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import Leader, name_field
from vmlockctl.ops.dump_leases import dump
from vmlockctl.storage.driver import Driver

MIB = 1 << 20
SIZE = 8 * MIB
START = MIB  # the index does not begin at the start of its device


class Cut(BaseException):
    """The power is gone before a write."""


class Device:
    """An index on a file, with room for five resources, and a host that works on it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "device"
        self.path.write_bytes(b"")
        os.truncate(self.path, SIZE)
        space = directory / "space"
        space.write_bytes(lockspace_area(DEFAULT_GEOMETRY, space_name=SPACE, io_timeout=1))
        lockspace = Lockspace(Area(str(space), 0, DEFAULT_GEOMETRY), SPACE, 1)
        self.claimant = Claimant(lockspace, 1, 1, 1, {})
        self.index = Index(str(self.path), START, SPACE)

    def run(self, procedure: Any, *, cut_before: Optional[int] = None) -> Any:
        writes = 0

        def guard() -> None:
            nonlocal writes
            writes += 1
            if writes == cut_before:
                raise Cut

        with Driver(guard=guard, on_wait=lambda *arguments: None) as driver:
            return driver.run(procedure)

    def create(self, name: str) -> Any:
        return rindex.create(self.claimant, self.index, name, device_size=SIZE)

    def delete(self, name: str) -> Any:
        return rindex.delete(self.claimant, self.index, name)

    def names(self) -> list[str]:
        table = self.run(rindex.read_table(self.index, io_timeout=1))
        return [entry.resource for entry in table.entries.values()]

    def damage(self) -> list[Any]:
        areas = list(dump([f"{self.path}:{START}"]))
        return [found for area in areas[:2] for found in area.damage]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    device = Device(tmp_path)
    device.run(rindex.format_rindex(device.index, DEFAULT_GEOMETRY))
    return device


def test_create_look_up_and_delete(device: Device) -> None:
    places = [device.run(device.create(name)) for name in ("a", "b", "c", "d")]
    assert places == [START + (2 + number) * MIB for number in range(4)]
    assert device.names() == ["a", "b", "c", "d"]
    assert device.run(rindex.lookup(device.index, "c")) == places[2]
    assert device.run(device.delete("b")) == places[1]
    assert device.names() == ["a", "c", "d"]
    with pytest.raises(NoSuchArea, match="no resource b"):
        device.run(rindex.lookup(device.index, "b"))
    assert device.run(device.create("e")) == places[1], "a free place is used again"
    held = device.run(acquire(device.claimant, Resource(str(device.path), places[1], "e")))
    assert held.leader.lver == 1, "no ballot of the resource before it"


def test_what_is_refused(device: Device) -> None:
    place = device.run(device.create("a"))
    with pytest.raises(CannotCreate, match="exists already"):
        device.run(device.create("a"))
    with pytest.raises(WrongRindexEntry, match="elsewhere"):
        device.run(rindex.lookup(device.index, "a", offset=place + MIB))
    with pytest.raises(CannotCreate, match="found other data"):
        device.run(rindex.format_rindex(device.index, DEFAULT_GEOMETRY))
    for name in "bcde":
        device.run(device.create(name))
    with pytest.raises(CannotCreate, match="no place is free"):
        device.run(device.create("f"))
    with pytest.raises(WrongRindexMagic, match="only zeros"):
        device.run(rindex.read_table(Index(str(device.path), 0, SPACE), io_timeout=1))
    with pytest.raises(UsageError, match="not a multiple"):
        device.run(rindex.format_rindex(Index(str(device.path), 100, SPACE), DEFAULT_GEOMETRY))
    with pytest.raises(UsageError, match="has room for"):
        device.run(rindex.format_rindex(device.index, DEFAULT_GEOMETRY, max_resources=1 << 20))


def test_a_resource_that_is_held_is_not_deleted(device: Device) -> None:
    """Sanlock deletes it under its holder."""
    resource = Resource(str(device.path), device.run(device.create("a")), "a")
    held = device.run(acquire(device.claimant, resource))
    with pytest.raises(HeldLocally):
        device.run(device.delete("a"))
    assert device.names() == ["a"]
    device.run(release(device.claimant, resource, lver=held.leader.lver))
    device.run(device.delete("a"))


def test_the_lease_of_the_index_keeps_others_out(device: Device) -> None:
    lease = Resource(str(device.path), START + MIB, "rindex_lease")
    other = device.claimant._replace(host_id=2)
    device.run(acquire(other, lease))
    with device.path.open("rb") as file:
        before = file.read()
    space = Path(device.claimant.lockspace.area.path)
    record = bytearray(space.read_bytes())
    alive = Leader.from_bytes(bytes(record[512:1024]))._replace(
        owner_id=2, owner_generation=1, timestamp=5, resource_name=name_field("other")
    )
    record[512 : 512 + 200] = alive.sealed().to_bytes()
    space.write_bytes(bytes(record))
    with pytest.raises(LeaseHeld):
        device.run(device.create("a"))
    assert device.path.read_bytes() == before


@pytest.mark.parametrize("what", ["format", "create", "delete"])
def test_cut_off_before_every_write(tmp_path: Path, what: str) -> None:
    """The index works after each, and the same call again ends what was begun."""
    number, cut = 0, True
    while cut:
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        device = Device(directory)
        calls: dict[str, Callable[[], Any]] = {
            "format": lambda device=device: rindex.format_rindex(device.index, DEFAULT_GEOMETRY),
            "create": lambda device=device: device.create("b"),
            "delete": lambda device=device: device.delete("a"),
        }
        if what != "format":
            device.run(calls["format"]())
            device.run(device.create("a"))
        try:
            device.run(calls[what](), cut_before=number)
            cut = False
        except Cut:
            if what != "format":
                assert device.damage() == []
                assert set(device.names()) <= {"a", "b"}
            device.claimant = device.claimant._replace(generation=2)  # the host has joined again
            with suppress(CannotCreate, NoSuchArea):  # it was only not given back
                device.run(calls[what]())
        assert sorted(device.names()) == {"format": [], "create": ["a", "b"], "delete": []}[what]
        assert device.damage() == []
    assert number > {"format": 5, "create": 8, "delete": 8}[what]


def test_rebuild(device: Device) -> None:
    for name in "abc":
        device.run(device.create(name))
    with device.path.open("r+b") as file:
        file.seek(START + 512)
        file.write(bytes(64))  # the entry of a
        file.seek(START + 3 * MIB)
        file.write(b"\xff" * 512)  # the resource b
        file.seek(START + 5 * MIB)
        file.write(resource_area(DEFAULT_GEOMETRY, space_name=SPACE, resource_name="d"))
    rebuilt = device.run(rindex.rebuild(device.claimant, device.index, device_size=SIZE))
    assert (rebuilt.added, rebuilt.freed, list(rebuilt.doubtful)) == ([0, 3], [], [1])
    assert device.names() == ["a", "b", "c", "d"]
    device.run(rindex.remove_entry(device.claimant, device.index, "b"))
    assert device.names() == ["a", "c", "d"]


def test_update(device: Device) -> None:
    place = START + 4 * MIB
    with device.path.open("r+b") as file:
        file.seek(place)
        file.write(resource_area(DEFAULT_GEOMETRY, space_name=SPACE, resource_name="x"))
    device.run(rindex.update(device.claimant, device.index, "x", offset=place))
    assert device.run(rindex.lookup(device.index, "x")) == place
    with pytest.raises(WrongRindexEntry, match="in use"):
        device.run(rindex.update(device.claimant, device.index, "y", offset=place))


# -- the lock value block ----------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [DEFAULT_GEOMETRY, Geometry(4096, 8 * MIB)])
def test_a_lock_value_block(tmp_path: Path, geometry: Geometry) -> None:
    device = Device(tmp_path)
    path = tmp_path / "resource"
    path.write_bytes(resource_area(geometry, space_name=SPACE, resource_name="r"))
    resource = Resource(str(path), 0, "r")
    held = device.run(acquire(device.claimant, resource))
    device.run(write_lvb(device.claimant, held, b"value"))
    assert device.run(read_lvb(device.claimant, held)) == b"value".ljust(geometry.sector_size, b"\0")
    assert path.read_bytes()[2002 * geometry.sector_size :][:5] == b"value"
    [area] = dump([str(path)])
    assert area.lvb == b"value".hex()
    with pytest.raises(UsageError, match="to write"):
        device.run(write_lvb(device.claimant, held, bytes(geometry.sector_size + 1)))
    with pytest.raises(NotHeld):
        device.run(write_lvb(device.claimant, held._replace(shared=True), b""))


@pytest.mark.parametrize("mib", [1, 2, 4])
def test_there_is_none_where_it_would_be_another_lease(tmp_path: Path, mib: int) -> None:
    """12.2-d: sanlock writes into the lease 7 MiB further on."""
    device, geometry = Device(tmp_path), Geometry(4096, mib * MIB)
    path = tmp_path / "resource"
    path.write_bytes(resource_area(geometry, space_name=SPACE, resource_name="r"))
    held = device.run(acquire(device.claimant, Resource(str(path), 0, "r")))
    with pytest.raises(UsageError, match="has no lock value block"):
        device.run(write_lvb(device.claimant, held, b"value"))
    with pytest.raises(UsageError, match="has no lock value block"):
        device.run(read_lvb(device.claimant, held))
