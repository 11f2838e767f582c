"""The resource index among hosts: what its changes write, refuse, and leave to others when cut off anywhere.

``test_rindex.py`` does the same on files, for one host that comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Optional

import pytest

from tests.sim.scene import NOW, SPACE, Scene, seen_live, seen_silent
from tests.support.memory import (
    CRASH,
    CRASH_AFTER,
    ERROR,
    ERROR_LANDED,
    TIMEOUT,
    Fault,
    Faults,
    Host,
    Io,
)
from vmlockctl.errors import (
    CannotCreate,
    HeldLocally,
    LeaseHeld,
    NoSuchArea,
    RaceLost,
    SharedLeaseHeld,
    StorageError,
    TruncatedArea,
    UsageError,
    WrongChecksum,
    WrongField,
    WrongLockspaceName,
    WrongMagic,
    WrongRindexEntry,
    WrongRindexLockspace,
    WrongRindexOffset,
)
from vmlockctl.lease import rindex
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.resource import Claimant, Resource
from vmlockctl.lease.rindex import Rebuilt
from vmlockctl.lease.rindexrecords import Index, Table
from vmlockctl.lease.steps import Area, WriteSector
from vmlockctl.ondisk.area import cleared_leader, resource_area
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import PAXOS_CLEARED_MAGIC, Leader, name_field, verify_paxos
from vmlockctl.ondisk.rindex import RINDEX_LEASE, Entry, Header, new_header, rindex_area, verify_entry
from vmlockctl.units import MIB

PATH = "/device"
PLACES = 4

NO_ENTRY = Entry()


class Device(Scene):
    """A lockspace, and a device that begins with an index: places for the index, its lease, and resources."""

    def __init__(
        self,
        *,
        geometry: Geometry = DEFAULT_GEOMETRY,
        formatted: bool = True,
        image: bytes = b"",
        **options: Any,
    ) -> None:
        super().__init__(geometry=geometry, **options)
        size = (2 + PLACES) * geometry.align_size
        self.geometry = geometry
        self.device = self.storage.add(PATH, image or bytes(size), Geometry(geometry.sector_size, size))
        self.index = Index(PATH, self.device.offset, SPACE)
        self.header = new_header(geometry, rx_offset=self.index.offset, space_name=SPACE)
        self.size = self.index.offset + size
        if formatted and not image:
            self.put_image(self.index.offset, rindex_area(self.header))
            self.put_image(self.header.lease_offset, self.new_resource(RINDEX_LEASE))
        for host_id in self.hosts:
            self.put_delta(host_id)

    def check_write(self, host: Host, step: WriteSector) -> None:
        if step.area.path != PATH:
            super().check_write(host, step)

    def new_resource(self, name: str, *, space_name: str = SPACE) -> bytes:
        return resource_area(self.geometry, space_name=space_name, resource_name=name)

    def area_at(self, offset: int) -> Area:
        return Area(PATH, offset, self.geometry)

    def put_image(self, offset: int, image: bytes) -> None:
        self.storage.write(self.area_at(offset), 0, image)

    def put_resource(self, number: int, name: str, **options: str) -> int:
        offset = self.header.resource_offset(number)
        self.put_image(offset, self.new_resource(name, **options))
        return offset

    def put_entry(self, number: int, entry: Entry) -> None:
        sector, start = self.header.entry_sector(number)
        area = self.area_at(self.index.offset)
        data = self.storage.read(area, sector, 1)
        self.storage.write(area, sector, data[:start] + entry.to_bytes() + data[start + 64 :])

    def image_at(self, offset: int) -> bytes:
        return self.storage.image(self.area_at(offset))

    def leader_at(self, offset: int) -> Leader:
        return Leader.from_bytes(self.image_at(offset))

    def table(self, host_id: int = 1) -> Table:
        found = self.run(host_id, rindex.read_table(self.index, io_timeout=1))
        assert isinstance(found, Table)
        return found

    def names(self) -> dict[str, int]:
        """Names and their numbers, after a look that every entry is in order."""
        table = self.table()
        for number, entry in table.entries.items():
            verify_entry(table.header, number, entry)
        return {entry.resource: number for number, entry in table.entries.items()}

    # -- the procedures, for a host that knows the others as ``claimant`` says ------------------------

    def create(self, name: str, host_id: int = 1, **options: Any) -> int:
        who = self.claimant(host_id, **options)
        offset = self.run(host_id, rindex.create(who, self.index, name, device_size=self.size))
        return self.header.index_of(offset)

    def delete(self, name: str, host_id: int = 1, *, offset: Optional[int] = None, **options: Any) -> int:
        who = self.claimant(host_id, **options)
        return self.header.index_of(self.run(host_id, rindex.delete(who, self.index, name, offset=offset)))

    def rebuild(self, host_id: int = 1, **options: Any) -> Rebuilt:
        who = self.claimant(host_id, **options)
        done = self.run(host_id, rindex.rebuild(who, self.index, device_size=self.size))
        assert isinstance(done, Rebuilt)
        return done

    def lookup(self, name: str, **options: Any) -> int:
        found = self.run(1, rindex.lookup(self.index, name, **options))
        assert isinstance(found, int)
        return found

    def hold(self, number: int, name: str, host_id: int, *, shared: bool = False, **options: Any) -> None:
        resource = Resource(PATH, self.header.resource_offset(number), name)
        self.run(host_id, acquire(self.claimant(host_id, **options), resource, shared=shared))

    def lease_is_free(self) -> bool:
        leader = verify_paxos(
            self.image_at(self.header.lease_offset)[: self.geometry.sector_size],
            space_name=SPACE, resource_name=RINDEX_LEASE,
        )  # fmt: skip
        return leader.is_free


@pytest.fixture
def device() -> Device:
    return Device()


some_geometries = pytest.mark.parametrize(
    "geometry", [DEFAULT_GEOMETRY, Geometry(4096, 2 * MIB)], ids=lambda g: f"{g[0]}-{g[1] // MIB}M"
)


# -- format -------------------------------------------------------------------------------------------


@some_geometries
def test_format(geometry: Geometry) -> None:
    device = Device(geometry=geometry, formatted=False)
    header = device.run(1, rindex.format_rindex(device.index, geometry))
    assert header == device.header
    assert device.image_at(device.index.offset) == rindex_area(header)
    assert device.image_at(header.lease_offset) == device.new_resource(RINDEX_LEASE)
    assert device.names() == {}
    device.storage.check_guards()


@pytest.mark.parametrize("place", ["index", "lease"])
def test_format_overwrites_nothing(place: str) -> None:
    device = Device(formatted=False)
    offset = device.index.offset if place == "index" else device.header.lease_offset
    device.put_image(offset, bytes(MIB - 512) + b"\1".ljust(512, b"\0"))
    before = device.storage.image(device.device)
    with pytest.raises(CannotCreate, match="found other data there"):
        device.run(1, rindex.format_rindex(device.index, device.geometry))
    assert device.storage.image(device.device) == before


def test_format_refuses_an_index(device: Device) -> None:
    with pytest.raises(CannotCreate):
        device.run(1, rindex.format_rindex(device.index, device.geometry))


def test_format_takes_the_place_of_cleared_resources() -> None:
    device = Device(formatted=False)
    for offset in (device.index.offset, device.header.lease_offset):
        leader = cleared_leader(device.geometry, space_name="old", resource_name="old", timestamp=7)
        device.put_image(offset, leader.to_bytes() + bytes(range(1, 5)).ljust(MIB - 200, b"\xff"))
    device.run(1, rindex.format_rindex(device.index, device.geometry))
    assert device.image_at(device.index.offset) == rindex_area(device.header)
    assert device.image_at(device.header.lease_offset) == device.new_resource(RINDEX_LEASE)


def test_format_of_some_size() -> None:
    device = Device(formatted=False)
    with pytest.raises(UsageError, match="room for 16376 resources, found 20000"):
        device.run(1, rindex.format_rindex(device.index, device.geometry, max_resources=20000))
    assert device.last.ios == []
    header = device.run(1, rindex.format_rindex(device.index, device.geometry, max_resources=2))
    assert header.max_entries == 2
    for name in ("a", "b"):
        device.create(name)
    with pytest.raises(CannotCreate, match="no place is free"):
        device.create("c")


def test_format_asks_for_a_whole_sector(device: Device) -> None:
    with pytest.raises(UsageError, match="not a multiple of the sector size 512"):
        device.run(1, rindex.format_rindex(Index(PATH, 1000, SPACE), device.geometry))


# -- looking ------------------------------------------------------------------------------------------


def test_lookup(device: Device) -> None:
    assert [device.create(name) for name in ("a", "b")] == [0, 1]
    ios = len(device.sim.ios)
    assert device.lookup("b") == device.header.resource_offset(1)
    assert [io.kind for io in device.sim.ios[ios:]] == ["r", "r"], "a look takes no lease"
    assert device.lookup("b", offset=device.header.resource_offset(1))
    with pytest.raises(WrongRindexEntry, match="elsewhere") as wrong:
        device.lookup("b", offset=device.header.resource_offset(0))
    assert wrong.value.sanlk_rv == -278
    with pytest.raises(NoSuchArea, match="has no resource c") as missing:
        device.lookup("c")
    assert missing.value.sanlk_rv == -2


def test_lookup_of_an_entry_that_names_another_place(device: Device) -> None:
    device.put_entry(1, Entry(offset=device.header.resource_offset(2), name=name_field("odd")))
    with pytest.raises(WrongRindexEntry) as caught:
        device.lookup("odd")
    assert caught.value.details["offset"] == device.index.offset + 512 + 64
    assert device.create("a") == 0, "it is in nobody else's way"


def test_the_index_of_another_lockspace_or_place(device: Device) -> None:
    with pytest.raises(WrongRindexLockspace):
        device.run(1, rindex.lookup(device.index._replace(space_name="other"), "a"))
    moved = device.header._replace(rx_offset=7 * MIB)
    device.put_image(device.index.offset, rindex_area(moved))
    with pytest.raises(WrongRindexOffset) as caught:
        device.create("a")
    assert (caught.value.details["path"], caught.value.details["offset"]) == (PATH, device.index.offset)


# -- create -------------------------------------------------------------------------------------------


@some_geometries
def test_create(geometry: Geometry) -> None:
    device = Device(geometry=geometry)
    assert device.create("a") == 0
    assert device.create("b", host_id=2) == 1
    assert device.image_at(device.header.resource_offset(0)) == device.new_resource("a")
    assert device.image_at(device.header.resource_offset(1)) == device.new_resource("b")
    assert device.names() == {"a": 0, "b": 1}
    assert device.lease_is_free()
    device.hold(1, "b", 1)
    device.storage.check_guards()


def test_create_makes_no_second_one(device: Device) -> None:
    device.create("a")
    before = device.names()
    with pytest.raises(CannotCreate, match="a exists already"):
        device.create("a")
    assert device.names() == before
    assert device.lease_is_free()


def test_create_passes_what_it_does_not_understand(device: Device) -> None:
    """A resource outside the index, garbage behind a zero sector, and a leader that is damaged."""
    device.put_resource(0, "other")
    device.put_image(device.header.resource_offset(1), bytes(MIB - 512) + b"x".ljust(512, b"\0"))
    device.put_image(device.header.resource_offset(2), b"\xff" * MIB)
    before = device.storage.image(device.device)[2 * MIB : 5 * MIB]
    assert device.create("a") == 3
    assert device.storage.image(device.device)[2 * MIB : 5 * MIB] == before
    with pytest.raises(CannotCreate, match="found 1 entries and 3 places without one") as caught:
        device.create("b")
    assert caught.value.exit_code == 73
    assert device.lease_is_free()


def test_create_passes_a_cleared_resource_that_is_damaged(device: Device) -> None:
    leader = cleared_leader(device.geometry, space_name=SPACE, resource_name="a", timestamp=7)
    device.put_image(device.header.resource_offset(0), leader._replace(lver=1).to_bytes().ljust(MIB, b"\0"))
    assert device.create("a") == 1


def test_create_takes_a_cleared_place_and_what_is_behind_it(device: Device) -> None:
    leader = cleared_leader(device.geometry, space_name="old", resource_name="old", timestamp=7)
    device.put_image(
        device.header.resource_offset(0), leader.to_bytes().ljust(512, b"\0") + b"\xff" * (MIB - 512)
    )
    assert device.create("a") == 0
    assert device.image_at(device.header.resource_offset(0)) == device.new_resource("a")


def test_create_does_not_take_a_resource_that_was_held(device: Device) -> None:
    """One of the same name, but used: made by somebody else, outside the index."""
    device.put_resource(0, "a")
    device.hold(0, "a", 2)
    assert device.create("a") == 1


@pytest.mark.parametrize("name", ["", "n" * 49, "a\nb"])
def test_a_name_that_cannot_be_stored(device: Device, name: str) -> None:
    with pytest.raises(UsageError):
        device.create(name)
    assert device.last.ios == []


# -- delete -------------------------------------------------------------------------------------------


def test_delete(device: Device) -> None:
    for name in ("a", "b", "c"):
        device.create(name)
    assert device.delete("b", host_id=2) == 1
    assert device.names() == {"a": 0, "c": 2}
    offset = device.header.resource_offset(1)
    leader = cleared_leader(device.geometry, space_name=SPACE, resource_name="b", timestamp=NOW)
    found = device.leader_at(offset)
    assert found._replace(write_timestamp=NOW).sealed() == leader
    assert device.image_at(offset)[512:] == device.new_resource("b")[512:], "the ballot is gone"
    assert device.lease_is_free()
    assert device.create("d") == 1, "the place is used again"
    with pytest.raises(NoSuchArea):
        device.delete("b")
    with pytest.raises(WrongRindexEntry):
        device.delete("a", offset=device.header.resource_offset(1))
    assert device.names() == {"a": 0, "c": 2, "d": 1}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("host_id", [1, 2], ids=["ours", "theirs"])
def test_delete_of_a_resource_that_is_held(device: Device, host_id: int, shared: bool) -> None:
    device.create("a")
    device.hold(0, "a", host_id, shared=shared)
    before = device.image_at(device.header.resource_offset(0))
    known = {2: seen_live(2, device.sim.now)}
    expected = HeldLocally if host_id == 1 else SharedLeaseHeld if shared else LeaseHeld
    with pytest.raises(expected):
        device.delete("a", observations=known)
    assert device.names() == {"a": 0}
    after = device.image_at(device.header.resource_offset(0))
    if host_id == 2 and shared:
        own = slice(3 * 512, 4 * 512)  # of host 2: still shared; the ballot of host 1 is over
        assert after[own] == before[own]
        assert Leader.from_bytes(after).is_free
    else:
        assert after == before
    assert device.lease_is_free()


def test_delete_of_a_resource_of_a_dead_host(device: Device) -> None:
    device.create("a")
    device.hold(0, "a", 2)
    known = {2: seen_silent(2, device.sim.now, 200)}
    assert device.delete("a", observations=known) == 0
    assert device.names() == {}


@pytest.mark.parametrize("content", ["zeros", "cleared"])
def test_delete_of_what_is_gone_already(device: Device, content: str) -> None:
    device.create("a")
    offset = device.header.resource_offset(0)
    image = bytes(MIB)
    if content == "cleared":
        leader = cleared_leader(device.geometry, space_name=SPACE, resource_name="a", timestamp=7)
        image = leader.to_bytes().ljust(MIB, b"\0")
    device.put_image(offset, image)
    device.delete("a")
    assert device.names() == {}
    assert device.image_at(offset) == image, "only the entry is written"


@pytest.mark.parametrize(
    ("field", "value", "sealed", "error"),
    [
        ("lver", 7, False, WrongChecksum),
        ("space_name", name_field("other"), True, WrongLockspaceName),
        ("flags", 0x20, True, WrongField),
    ],
)
def test_delete_of_what_is_not_understood(
    field: str, value: Any, sealed: bool, error: type[Exception]
) -> None:
    device = Device(geometry=Geometry(4096, MIB))
    offset = device.header.resource_offset(device.create("a"))
    leader = device.leader_at(offset)._replace(**{field: value})
    if field == "flags":
        leader = leader._replace(max_hosts=500)  # a sound leader, of 2M
    leader = leader.sealed() if sealed else leader
    device.storage.write(device.area_at(offset), 0, leader.sector(4096))
    before = device.image_at(offset)
    with pytest.raises(error, match=f"{PATH}:{offset}"):
        device.delete("a")
    assert device.image_at(offset) == before
    assert device.lease_is_free()
    # Its entry can be taken away, and the area stays.
    device.run(1, rindex.remove_entry(device.claimant(1), device.index, "a", offset=offset))
    assert device.names() == {}
    assert device.image_at(offset) == before


# -- update -------------------------------------------------------------------------------------------


def update(device: Device, name: str, offset: int) -> None:
    device.run(1, rindex.update(device.claimant(1), device.index, name, offset=offset))


def test_update(device: Device) -> None:
    offset = device.put_resource(2, "outside")
    update(device, "outside", offset)
    assert device.names() == {"outside": 2}
    update(device, "outside", offset)
    assert device.lookup("outside") == offset
    assert device.lease_is_free()


def test_what_update_refuses(device: Device) -> None:
    offset = device.put_resource(2, "outside")
    update(device, "outside", offset)
    device.put_resource(3, "outside")
    with pytest.raises(CannotCreate, match="exists already"):
        update(device, "outside", device.header.resource_offset(3))
    with pytest.raises(WrongRindexEntry, match="in use, found 'outside'"):
        update(device, "other", offset)
    with pytest.raises(WrongRindexOffset):
        update(device, "other", offset + 512)
    with pytest.raises(WrongMagic):
        update(device, "x", device.header.resource_offset(0))
    assert device.names() == {"outside": 2}
    assert device.lease_is_free()


def test_an_entry_that_changes_without_the_lease(device: Device) -> None:
    """`sanlock client update` takes none: an entry that appeared since is not overwritten."""
    offset = device.put_resource(0, "a")
    other = Entry(offset=offset, name=name_field("quick"))

    def faults(number: int, io: Io) -> Optional[Fault]:
        if io.kind == "r" and io.path == PATH and (io.sector, io.count) == (1, 1):
            device.put_entry(0, other)
        return None

    with pytest.raises(RaceLost, match="without its lease"):
        device.run(1, rindex.update(device.claimant(1), device.index, "a", offset=offset), faults=faults)
    assert device.names() == {"quick": 0}
    assert device.lease_is_free()


# -- rebuild ------------------------------------------------------------------------------------------


def test_rebuild(device: Device) -> None:
    device.put_resource(0, "a")
    device.put_resource(1, "b")
    known = Entry(offset=device.header.resource_offset(1), flags=9, unused=8, name=name_field("b"))
    device.put_entry(1, known)
    device.put_entry(2, Entry(offset=device.header.resource_offset(2), name=name_field("gone")))
    device.put_resource(3, "d")
    device.put_entry(3, Entry(offset=5, name=name_field("wrong")))
    assert device.rebuild() == ([0, 3], [2], {})
    assert device.names() == {"a": 0, "b": 1, "d": 3}
    assert device.table().entries[1] == known, "what we do not know of an entry stays"
    assert device.rebuild() == ([], [], {})
    assert device.lease_is_free()


def test_rebuild_leaves_what_it_cannot_judge(device: Device) -> None:
    damaged = Leader.from_bytes(device.new_resource("a"))._replace(checksum=1).sector(512)
    device.put_image(device.header.resource_offset(0), damaged.ljust(MIB, b"\0"))
    device.put_entry(0, Entry(offset=device.header.resource_offset(0), name=name_field("a")))
    device.put_resource(1, "b", space_name="other")
    device.put_image(device.header.resource_offset(2), b"\xff" * MIB)
    unnamed = Leader.from_bytes(device.new_resource("x"))._replace(resource_name=bytes(48)).sealed()
    device.put_image(device.header.resource_offset(3), unnamed.sector(512).ljust(MIB, b"\0"))
    device.put_entry(4, Entry(offset=device.header.resource_offset(4), name=name_field("far")))
    before = device.image_at(device.index.offset)
    rebuilt = device.rebuild()
    assert (rebuilt.added, rebuilt.freed, sorted(rebuilt.doubtful)) == ([], [], [0, 1, 2, 3, 4])
    assert isinstance(rebuilt.doubtful[0], WrongChecksum)
    assert isinstance(rebuilt.doubtful[1], WrongLockspaceName)
    assert isinstance(rebuilt.doubtful[4], TruncatedArea)
    assert rebuilt.doubtful[2].details["offset"] == device.header.resource_offset(2)
    assert device.image_at(device.index.offset) == before


# -- the lease of the index ---------------------------------------------------------------------------


def test_two_hosts_change_the_index_at_once() -> None:
    for seed in range(4):
        device = Device(seed=seed)
        known = {1: seen_live(1, NOW), 2: seen_live(2, NOW)}
        tasks = [
            device.start(
                host_id,
                rindex.create(
                    device.claimant(host_id, observations=known), device.index, name, device_size=device.size
                ),
            )
            for host_id, name in ((1, "a"), (2, "b"))
        ]
        device.sim.run()
        offsets = {device.header.index_of(task.outcome()) for task in tasks}
        assert offsets == {0, 1}, seed
        assert sorted(device.names()) == ["a", "b"]
        assert device.lease_is_free()


def test_a_live_holder_of_the_lease(device: Device) -> None:
    resource = Resource(PATH, device.header.lease_offset, RINDEX_LEASE)
    device.run(2, acquire(device.claimant(2), resource))
    before = device.image_at(device.index.offset)
    with pytest.raises(LeaseHeld):
        device.create("a", observations={2: seen_live(2, device.sim.now)})
    assert device.image_at(device.index.offset) == before
    assert [wait.why for wait in device.last.waits] == ["another host has the lease rindex_lease"] * 8


# -- cut off anywhere ---------------------------------------------------------------------------------


def at_io(number: int, kind: str) -> Faults:
    return lambda count, _io: Fault(kind) if count == number else None


Change = Callable[[Device, Claimant], Any]

CHANGES: dict[str, tuple[Change, dict[str, int]]] = {
    "create": (lambda device, who: rindex.create(who, device.index, "n", device_size=device.size),
               {"a": 0, "b": 2, "n": 1}),
    "delete": (lambda device, who: rindex.delete(who, device.index, "a"), {"b": 2}),
    "rebuild": (lambda device, who: rindex.rebuild(who, device.index, device_size=device.size),
                {"a": 0, "b": 2, "x": 3}),
}  # fmt: skip


@cache
def prepared() -> tuple[bytes, dict[str, int]]:
    """Entries a and b, a cleared place between them, and a resource x without an entry."""
    device = Device()
    for name in ("a", "c", "b"):
        device.create(name)
    device.delete("c")
    device.put_resource(3, "x")
    return device.storage.image(device.device), device.names()


def assert_sound(device: Device, *, before: dict[str, int], after: dict[str, int]) -> None:
    """Every entry is in order, and names a resource that is there, or that was cleared."""
    names = device.names()
    assert set(before.items()) & set(after.items()) <= set(names.items()) <= set({**before, **after}.items())
    for name, number in names.items():
        leader = device.leader_at(device.header.resource_offset(number))
        if leader.magic != PAXOS_CLEARED_MAGIC:
            verify_paxos(leader.sector(512), space_name=SPACE, resource_name=name)
    device.storage.check_guards()


@pytest.mark.parametrize("what", sorted(CHANGES))
@pytest.mark.parametrize("kind", [CRASH, CRASH_AFTER])
def test_a_crash_anywhere_leaves_an_index_that_works(what: str, kind: str) -> None:
    change, expected = CHANGES[what]
    image, before = prepared()
    number = 0
    while True:
        number += 1
        device = Device(image=image)
        task = device.start(1, change(device, device.claimant(1)), faults=at_io(number, kind))
        device.sim.run()
        if not device.hosts[1].crashed:
            task.outcome()
            break
        device.hosts[1].crashed = False  # its observers are other hosts; lookups are anybody's
        assert_sound(device, before=before, after=expected)
        # Another host, once the first is certainly dead, does the same and all is as it should be.
        known = {1: seen_silent(1, device.sim.now, 200)}
        try:
            device.run(2, change(device, device.claimant(2, observations=known)))
        except (CannotCreate, NoSuchArea):
            assert kind == CRASH_AFTER or number > 10, "it was done but for the release"
        assert device.names() == expected, number
        assert device.lease_is_free()
    assert number > 15


@pytest.mark.parametrize("what", sorted(CHANGES))
@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED])
def test_an_error_of_any_write_leaves_an_index_that_works(what: str, kind: str) -> None:
    change, expected = CHANGES[what]
    image, before = prepared()
    whole = Device(image=image)
    whole.run(1, change(whole, whole.claimant(1)))
    writes = [io.number for io in whole.last.ios if io.kind == "w"]
    assert len(writes) > 5
    for number in writes:
        device = Device(image=image)
        task = device.start(1, change(device, device.claimant(1)), faults=at_io(number, kind))
        device.sim.run()
        assert isinstance(task.error, StorageError)
        assert_sound(device, before=before, after=expected)
        # The same host does it again, in the same generation: nothing of it is in its own way.
        try:
            device.run(1, change(device, device.claimant(1)))
        except (CannotCreate, NoSuchArea):
            assert device.names() == expected
        assert device.names() == expected, number
        assert device.lease_is_free()


def test_a_write_that_comes_late_is_over_before_the_lease_is_given_back(device: Device) -> None:
    """Another host would write the same sector: rule 4 of the design."""

    def faults(number: int, io: Io) -> Optional[Fault]:
        return Fault(TIMEOUT, lands_after=0.5) if io.what.startswith("enter a") else None

    with pytest.raises(StorageError):
        device.run(
            1, rindex.create(device.claimant(1), device.index, "a", device_size=device.size), faults=faults
        )
    assert device.lease_is_free()
    assert device.names() == {"a": 0}, "it has landed"


def test_a_cut_off_format_can_be_done_again() -> None:
    for number in range(1, 20):
        device = Device(formatted=False)
        procedure = rindex.format_rindex(device.index, device.geometry)
        device.start(1, procedure, faults=at_io(number, CRASH))
        device.sim.run()
        if not device.hosts[1].crashed:
            break
        device.run(2, rindex.format_rindex(device.index, device.geometry))
        assert device.image_at(device.index.offset) == rindex_area(device.header)
        assert device.image_at(device.header.lease_offset) == device.new_resource(RINDEX_LEASE)
    assert number == 8, "seven I/Os"


def test_a_header_that_moves_under_the_lease(device: Device) -> None:
    """Formatted anew between the two looks, with other sizes: the lease that was taken is not its lease."""
    other = Device(geometry=Geometry(4096, 2 * MIB)).header._replace(rx_offset=device.index.offset)

    def faults(number: int, io: Io) -> Optional[Fault]:
        if io.what.startswith("commit"):
            device.storage.write(device.area_at(device.index.offset), 0, other.to_bytes().ljust(512, b"\0"))
        return None

    with pytest.raises(RaceLost, match="formatted anew"):
        device.run(
            1, rindex.create(device.claimant(1), device.index, "a", device_size=device.size), faults=faults
        )
    assert Header.from_bytes(device.image_at(device.index.offset)) == other
