"""The storage and the scheduler in memory do what the other tests rely on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.memory import (
    CRASH,
    CRASH_AFTER,
    ERROR,
    ERROR_LANDED,
    LOST,
    TIMEOUT,
    Fault,
    Host,
    Script,
    Simulation,
    Storage,
    explore,
    fail_at,
)
from vmlockctl.errors import IoTimeout, NoSuchArea, StorageError
from vmlockctl.lease.steps import Area, now, random_wait, read_sectors, wait, write_sectors
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY


@pytest.fixture
def storage() -> Storage:
    storage = Storage()
    storage.add("/a", bytes(DEFAULT_GEOMETRY.align_size), DEFAULT_GEOMETRY)
    storage.add("/a", bytes(DEFAULT_GEOMETRY.align_size), DEFAULT_GEOMETRY)
    return storage


@pytest.fixture
def area(storage: Storage) -> Area:
    return storage._areas[0]


def put(area: Area, sector: int, byte: int, timeout: float = 1) -> Any:
    return write_sectors(area, sector, bytes([byte]) * 512, timeout, what=f"{byte} into {sector}")


def get(area: Area, sector: int, count: int = 1, timeout: float = 1) -> Any:
    return read_sectors(area, sector, count, timeout)


def test_guards(storage: Storage, area: Area) -> None:
    storage.check_guards()
    storage.write(area, 2047, b"x" * 512)
    storage.check_guards()
    for wrong in (-1, 2048):
        with pytest.raises(AssertionError, match="leave every area"):
            storage.write(area, wrong, b"x" * 512)
    with pytest.raises(AssertionError, match="leave every area"):
        storage.read(area, 2047, 2)
    storage._devices["/a"].write(area.offset - 512, bytes(512))
    with pytest.raises(AssertionError, match="written before"):
        storage.check_guards()


def test_what_is_not_there(storage: Storage, area: Area) -> None:
    sim = Simulation(storage)
    storage.remove("/a")
    for procedure in (get(area, 0), put(area, 0, 1)):
        with pytest.raises(NoSuchArea):
            sim.run_one(Host(1), procedure)


def test_reads_writes_clock_and_waits(storage: Storage, area: Area) -> None:
    def procedure() -> Any:
        started = yield from now()
        yield from put(area, 3, 7)
        yield from wait(2.5, "for nothing")
        yield from random_wait("for nothing either")
        return started, (yield from now()), (yield from get(area, 3))

    sim = Simulation(storage, start=100)
    host = Host(1, clock_offset=5)
    started, ended, data = sim.run_one(host, procedure())
    assert started == 105
    assert ended in (107, 108)
    assert data == b"\7" * 512
    assert sim.tasks[0].sequence == "w3 r3"
    assert [io.number for io in sim.ios] == [1, 2]


@pytest.mark.parametrize(("kind", "landed"), [(ERROR, False), (ERROR_LANDED, True)])
def test_an_error(storage: Storage, area: Area, kind: str, landed: bool) -> None:
    sim = Simulation(storage)
    with pytest.raises(StorageError):
        sim.run_one(Host(1), put(area, 0, 9), faults=fail_at(1, Fault(kind)))
    assert (storage.read(area, 0, 1)[0] == 9) == landed


def test_a_lost_write(storage: Storage, area: Area) -> None:
    Simulation(storage).run_one(Host(1), put(area, 0, 9), faults=fail_at(1, Fault(LOST)))
    assert storage.read(area, 0, 1) == bytes(512)


@pytest.mark.parametrize(("kind", "landed"), [(CRASH, False), (CRASH_AFTER, True)])
def test_a_crash(storage: Storage, area: Area, kind: str, landed: bool) -> None:
    sim = Simulation(storage)
    host, other = Host(1), Host(2)
    first = sim.start(host, put(area, 0, 9), faults=fail_at(1, Fault(kind)))
    second = sim.start(host, put(area, 1, 9), delay=1)
    third = sim.start(other, put(area, 2, 9), delay=1)
    sim.run()
    assert first.done
    assert second.done
    assert third.error is None
    assert [storage.read(area, sector, 1)[0] for sector in range(3)] == [9 * landed, 0, 9]


def test_a_write_that_lands_after_its_deadline(storage: Storage, area: Area) -> None:
    def procedure() -> Any:
        try:
            yield from put(area, 0, 1)
        except IoTimeout:
            yield from put(area, 0, 2, timeout=10)
        return (yield from now())

    sim = Simulation(storage, start=100)
    task = sim.start(Host(1), procedure(), faults=fail_at(1, Fault(TIMEOUT, 3.0)))
    sim.run(until=102)
    assert storage.read(area, 0, 1)[0] == 0
    sim.run()
    assert task.outcome() == 103, "the next I/O on that path waited for the late one"
    assert storage.read(area, 0, 1)[0] == 2


def test_a_path_is_in_quarantine_for_its_host_alone(storage: Storage, area: Area) -> None:
    sim = Simulation(storage, start=100)
    host = Host(1)
    sim.start(host, put(area, 0, 1), faults=fail_at(1, Fault(TIMEOUT, 30.0)))
    blocked = sim.start(host, get(area, 0), delay=2)
    free = sim.start(Host(2), get(area, 0), delay=2)
    sim.run(until=110)
    assert isinstance(blocked.error, IoTimeout)
    assert free.result == bytes(512)


def test_a_guard_is_asked_before_writes_only(storage: Storage, area: Area) -> None:
    def guard() -> None:
        raise StorageError("not now")

    sim = Simulation(storage)
    assert sim.run_one(Host(1), get(area, 0), guard=guard) == bytes(512)
    with pytest.raises(StorageError, match="not now"):
        sim.run_one(Host(1), put(area, 0, 1), guard=guard)
    assert storage.read(area, 0, 1) == bytes(512)


def test_a_frozen_host_does_nothing_and_its_clock_goes_on(storage: Storage, area: Area) -> None:
    sim = Simulation(storage, start=100)
    host = Host(1)
    host.frozen_until = 150.0
    assert sim.run_one(host, now()) == 150


def test_a_torn_read_has_whole_sectors_old_or_new(storage: Storage, area: Area) -> None:
    seen = set()
    for seed in range(40):
        world = storage.copy()
        sim = Simulation(
            world, seed=seed, latency=lambda task, step: 0.5 if task.name == "reader" else 0.1, tear=True
        )
        reader = sim.start(Host(1), get(area, 0, 8), name="reader")
        for sector in (1, 5):
            sim.start(Host(2), put(area, sector, 9), delay=0.1)
        sim.run()
        data = reader.outcome()
        sectors = [data[start : start + 512] for start in range(0, 4096, 512)]
        assert all(sector in (bytes(512), b"\t" * 512) for sector in sectors)
        seen.add(tuple(sector[0] for sector in sectors))
    assert len(seen) == 4


def test_every_interleaving_is_tried(storage: Storage, area: Area) -> None:
    """Two writers of two writes each: all six orders end in both of the two possible results."""
    ends = set()

    def scene(choose: Any) -> Simulation:
        sim = Simulation(storage.copy(), choose=choose)

        def writer(byte: int) -> Any:
            yield from put(area, byte, byte)
            yield from put(area, 0, byte)

        for byte in (1, 2):
            sim.start(Host(byte), writer(byte))
        return sim

    def check(sim: Simulation) -> None:
        ends.add(sim.storage.read(area, 0, 1)[0])

    runs = explore(scene, check)
    assert ends == {1, 2}
    assert runs >= 3


def test_a_failure_names_its_interleaving(storage: Storage, area: Area) -> None:
    def scene(choose: Any) -> Simulation:
        sim = Simulation(storage.copy(), choose=choose)
        for byte in (1, 2):
            sim.start(Host(byte), put(area, 0, byte))
        return sim

    def check(sim: Simulation) -> None:
        assert sim.storage.read(area, 0, 1)[0] == 2, "the first was last"

    with pytest.raises(AssertionError, match=r"interleaving \[.*\]: AssertionError: the first was last"):
        explore(scene, check)


def test_scripts() -> None:
    script = Script([1])
    assert [script(2), script(3), script(2)] == [1, 0, 0]
    assert script.successor() == [1, 0, 1]
    assert Script().successor() is None


def test_what_has_not_ended_has_no_outcome(storage: Storage, area: Area) -> None:
    task = Simulation(storage).start(Host(1), get(area, 0))
    with pytest.raises(AssertionError, match="has not ended"):
        task.outcome()
