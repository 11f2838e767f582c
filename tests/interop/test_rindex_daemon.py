"""The resource index and the lock value block shared with a daemon: each changes what the other made."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.disk import LOCKSPACE_NAME, lockspace_path
from tests.support.sanlockhost import SanlockHolder, SanlockHost
from tests.support.waiting import wait_for
from vmlockctl.errors import CannotCreate, LeaseHeld, NoSuchArea
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
from vmlockctl.ondisk.leader import PAXOS_CLEARED_MAGIC, Leader, name_field
from vmlockctl.ops.dump_leases import dump
from vmlockctl.storage.driver import Driver

pytestmark = pytest.mark.real("sanlock")

MIB = 1 << 20
START = MIB
SIZE = 12 * MIB
OURS, THEIRS = 1, 2  # host ids

NOT_THERE = -2
HELD = (-243, -247)  # by a live owner, or by one that has been silent for a while


class Client:
    """One registered process of a sanlock daemon (section 8): what ``sanlock client`` has no words for."""

    ACQUIRE, SET_LVB, GET_LVB = 7, 25, 26
    WITH_LVB = 1

    def __init__(self, host: SanlockHost) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(host.run_dir / "sanlock.sock"))
        self._send(1, 0, 0, 0, b"")  # register, which is not answered

    def _send(self, command: int, flags: int, data: int, data2: int, payload: bytes) -> None:
        header = struct.pack("<6I2i", 0x04282010, 1, command, flags, 32 + len(payload), 0, data, data2)
        self._socket.sendall(header + payload)

    def _answer(self) -> tuple[int, bytes]:
        header = self._socket.recv(32, socket.MSG_WAITALL)
        length, _seq, data, _data2 = struct.unpack("<2I2i", header[16:])
        return data, self._socket.recv(length - 32, socket.MSG_WAITALL) if length > 32 else b""

    @staticmethod
    def _resource(space: str, name: str, *, disks: int = 0) -> bytes:
        return struct.pack("<48s48sQQ4I", space.encode(), name.encode(), 0, 0, 0, 0, 0, disks)

    def acquire(self, space: str, name: str, path: Path) -> int:
        disk = struct.pack("<1024sQ2I", os.fsencode(path), 0, 0, 0)
        asked = self._resource(space, name, disks=1) + disk + bytes(56)
        self._send(self.ACQUIRE, self.WITH_LVB, 1, -1, asked)
        return self._answer()[0]

    def set_lvb(self, space: str, name: str, value: bytes) -> int:
        self._send(self.SET_LVB, 0, 0, 0, self._resource(space, name) + value)
        return self._answer()[0]

    def get_lvb(self, space: str, name: str, size: int) -> bytes:
        self._send(self.GET_LVB, 0, 0, size, self._resource(space, name))
        result, value = self._answer()
        assert result >= 0, result
        return value

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the process, as far as the daemon can tell: its leases are released."""
        self._socket.close()


class Bench(NamedTuple):
    """A device with an index, our host 1, and a daemon as host 2."""

    theirs: SanlockHost
    claimant: Claimant
    directory: Path

    def device(self, name: str) -> Device:
        path = self.directory / name
        path.write_bytes(b"")
        os.truncate(path, SIZE)
        return Device(self, path)


class Device:
    def __init__(self, bench: Bench, path: Path) -> None:
        self.bench, self.path = bench, path
        self.index = Index(str(path), START, LOCKSPACE_NAME)
        self.spec = f"{LOCKSPACE_NAME}:{path}:{START}"

    def run(self, procedure: Any) -> Any:
        with Driver() as driver:
            return driver.run(procedure)

    def client(self, action: str, *arguments: str) -> tuple[int, str]:
        """The number that sanlock says it is done with, and all that it says."""
        result = self.bench.theirs.client(action, "-x", self.spec, *arguments)
        done = re.search(r"done (-?\d+)", result.stdout)
        assert done is not None, result
        return int(done.group(1)), result.stdout

    def their_create(self, name: str) -> int:
        number, text = self.client("create", "-e", name)
        assert number == 0, text
        return int(text.split("offset")[1])

    def their_lookup(self, name: str) -> int:
        number, text = self.client("lookup", "-e", name)
        assert number in (0, NOT_THERE), text
        return int(text.split("offset")[1]) if number == 0 else NOT_THERE

    def create(self, name: str) -> int:
        offset = self.run(rindex.create(self.bench.claimant, self.index, name, device_size=SIZE))
        assert isinstance(offset, int)
        return offset

    def delete(self, name: str) -> int:
        offset = self.run(rindex.delete(self.bench.claimant, self.index, name))
        assert isinstance(offset, int)
        return offset

    def lookup(self, name: str) -> Any:
        return self.run(rindex.lookup(self.index, name))

    def names(self) -> dict[str, int]:
        table = self.run(rindex.read_table(self.index, io_timeout=1))
        return {entry.resource: entry.offset for entry in table.entries.values()}

    def area(self, offset: int) -> bytes:
        """Less the padding of the request record, which sanlock leaves undefined."""
        with self.path.open("rb") as file:
            file.seek(offset)
            image = bytearray(file.read(MIB))
        image[512 + 20 : 512 + 24] = bytes(4)
        return bytes(image)


def new_lockspace(path: Path, geometry: Geometry, name: str) -> Lockspace:
    """With our host as a silent one, which nobody may take for dead for over a minute."""
    space = bytearray(lockspace_area(geometry, space_name=name, io_timeout=1))
    record = Leader.from_bytes(bytes(space))._replace(
        owner_id=OURS, owner_generation=1, timestamp=7, resource_name=name_field("ours")
    )
    space[:200] = record.sealed().to_bytes()
    path.write_bytes(space)
    return Lockspace(Area(str(path), 0, geometry), name, 1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("index")
    lockspace = new_lockspace(lockspace_path(directory), DEFAULT_GEOMETRY, LOCKSPACE_NAME)
    theirs = SanlockHost(directory / "theirs", "sanlockhost")
    try:
        theirs.start()
        theirs.join(directory, THEIRS)
        yield Bench(theirs, Claimant(lockspace, OURS, 1, 1, {}), directory)
    finally:
        theirs.close()


def test_each_changes_the_index_of_the_other(bench: Bench) -> None:
    device = bench.device("mixed")
    assert device.client("format", "-Z", "512", "-A", "1M")[0] == 0
    places = [START + (2 + number) * MIB for number in range(4)]
    assert device.their_create("theirs0") == places[0]
    assert device.create("ours1") == places[1]
    assert device.their_create("theirs2") == places[2]
    assert device.create("ours3") == places[3]
    names = dict(zip(["theirs0", "ours1", "theirs2", "ours3"], places))
    assert device.names() == names
    assert {name: device.their_lookup(name) for name in names} == names
    assert {name: device.lookup(name) for name in names} == names
    # What each makes is what the other would have made.
    for name, place in names.items():
        wanted = resource_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, resource_name=name)
        assert device.area(place) == wanted, name

    # Each deletes what the other made, and neither finds it any more.
    assert device.delete("theirs2") == places[2]
    assert device.client("delete", "-e", "ours1")[0] == 0
    assert (device.their_lookup("theirs2"), device.their_lookup("ours1")) == (NOT_THERE, NOT_THERE)
    for name in ("theirs2", "ours1"):
        with pytest.raises(NoSuchArea):
            device.lookup(name)
    theirs, ours = device.area(places[1]), device.area(places[2])
    assert theirs[512:] == ours[512:]
    leaders = [Leader.from_bytes(image) for image in (theirs, ours)]
    for leader, name in zip(leaders, ("ours1", "theirs2")):
        assert leader == leader.sealed()
        assert (leader.magic, leader.resource) == (PAXOS_CLEARED_MAGIC, name)
        assert leader.write_timestamp > 0
    same = {"resource_name": b"", "checksum": 0, "write_timestamp": 0}
    assert leaders[0]._replace(**same) == leaders[1]._replace(**same)

    # And each uses the places that the other freed, and finds nothing to rebuild.
    assert device.create("ours4") == places[1]
    assert device.their_create("theirs5") == places[2]
    before = device.names()
    rebuilt = device.run(rindex.rebuild(bench.claimant, device.index, device_size=SIZE))
    assert (rebuilt.added, rebuilt.freed, rebuilt.doubtful) == ([], [], {})
    assert device.client("rebuild")[0] == 0
    assert device.names() == before
    areas = list(dump([f"{device.path}:{START}"]))
    assert [area.kind for area in areas[:6]] == ["rindex"] + ["resource"] * 5
    assert [area.damage for area in areas[:6]] == [[]] * 6


def test_the_lease_of_the_index_excludes(bench: Bench) -> None:
    device = bench.device("locked")
    device.run(rindex.format_rindex(device.index, DEFAULT_GEOMETRY))
    lease = Resource(str(device.path), START + MIB, "rindex_lease")
    held = device.run(acquire(bench.claimant, lease))
    number, _ = device.client("create", "-e", "theirs")
    assert number in HELD
    assert device.names() == {}
    device.run(release(bench.claimant, lease, lver=held.leader.lver))
    assert device.their_create("theirs") == START + 2 * MIB

    # A second one of the same name, which sanlock would make.
    with pytest.raises(CannotCreate, match="exists already"):
        device.create("theirs")


def test_a_resource_that_sanlock_holds_is_not_deleted(bench: Bench) -> None:
    device = bench.device("held")
    device.run(rindex.format_rindex(device.index, DEFAULT_GEOMETRY))
    place = device.create("a")
    holder = SanlockHolder(bench.theirs, f"{LOCKSPACE_NAME}:a:{device.path}:{place}")
    try:
        assert holder.result(within=10) == 0, "sanlock acquires what we made"
        before = device.area(place)
        with pytest.raises(LeaseHeld):
            device.delete("a")
        assert device.area(place) == before
        assert device.names() == {"a": place}
    finally:
        bench.theirs.release(holder)
    assert device.delete("a") == place


def test_the_lock_value_block_goes_back_and_forth(bench: Bench) -> None:
    hand_on_a_value(bench, bench.claimant, DEFAULT_GEOMETRY)


def test_a_lock_value_block_of_4096_bytes(bench: Bench) -> None:
    """In a lockspace of the same sizes: sanlock takes such a lease in one of 512/1M for damaged (-214)."""
    geometry, path = Geometry(4096, 8 * MIB), bench.directory / "big"
    lockspace = new_lockspace(path, geometry, "big")
    joined = bench.theirs.client("add_lockspace", "-s", f"big:{THEIRS}:{path}:0", "-o", "1")
    assert joined.returncode == 0, joined
    hand_on_a_value(bench, Claimant(lockspace, OURS, 1, 1, {}), geometry)


def hand_on_a_value(bench: Bench, claimant: Claimant, geometry: Geometry) -> None:
    """From sanlock to us, and back."""
    space = claimant.lockspace.space_name
    path = bench.directory / f"value-{geometry.sector_size}"
    path.write_bytes(resource_area(geometry, space_name=space, resource_name="res"))
    with Client(bench.theirs) as client:
        assert client.acquire(space, "res", path) == 0
        assert client.set_lvb(space, "res", b"written by sanlock") == 0
    wait_for("sanlock's release", lambda: str(path) not in bench.theirs.client("status").stdout, within=10)
    [area] = dump([str(path)])
    assert area.lvb == b"written by sanlock".hex()

    resource = Resource(str(path), 0, "res")
    with Driver() as driver:
        held = driver.run(acquire(claimant, resource))
        value = driver.run(read_lvb(claimant, held))
        assert value == b"written by sanlock".ljust(geometry.sector_size, b"\0")
        driver.run(write_lvb(claimant, held, b"written by us"))
        driver.run(release(claimant, resource, lver=held.leader.lver))
    with Client(bench.theirs) as client:
        assert client.acquire(space, "res", path) == 0
        assert client.get_lvb(space, "res", 512).rstrip(b"\0") == b"written by us"
