"""Deadlines: what passes one is unknown, its path rests until it is over, and only one thread ever hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import pattern
from tests.support.waiting import wait_for
from vmlockctl.errors import HostLeaseLost, IoTimeout, NoSuchArea, StorageError, VmlockctlError
from vmlockctl.lease.steps import Area, Clock, Journal, Random, Wait, WriteSector, read_sectors, write_sectors
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.storage.device import Buffer
from vmlockctl.storage.driver import Driver
from vmlockctl.storage.worker import Worker

SOON = 0.05  # a deadline that passes
LATE = 30.0  # one that does not


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


class Storage:
    """A call that hangs until the test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.buffers: list[Buffer] = []

    def hang(self, buffer: Buffer) -> str:
        self.buffers.append(buffer)
        self.entered.set()
        assert self.let_go.wait(LATE)
        return "late"


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.let_go.set()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("/path")
    yield worker
    worker.close()


def test_results_and_errors_come_back(worker: Worker) -> None:
    assert worker.call(lambda buffer: buffer.size, 100, LATE, "a call") == 4096
    assert worker.call(lambda buffer: buffer.size, 1 << 20, LATE, "a call") == 1 << 20

    def refuse(buffer: Buffer) -> None:
        raise StorageError("no")

    with pytest.raises(StorageError, match="^no$"):
        worker.call(refuse, 1, LATE, "a call")

    def fail(buffer: Buffer) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match="^/path: Input/output error$"):
        worker.call(fail, 1, LATE, "a call")

    def bug(buffer: Buffer) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        worker.call(bug, 1, LATE, "a call")
    assert not worker.hangs


def test_one_thread_serves_every_call(worker: Worker) -> None:
    idents = {worker.call(lambda buffer: threading.get_ident(), 1, LATE, "a call") for _ in range(20)}
    assert len(idents) == 1
    assert idents != {threading.get_ident()}


def test_buffers_are_page_aligned_and_kept(worker: Worker) -> None:
    first = worker.call(lambda buffer: buffer, 512, LATE, "a call")
    assert worker.call(lambda buffer: buffer, 4096, LATE, "a call") is first
    bigger = worker.call(lambda buffer: buffer, 8192, LATE, "a call")
    assert bigger is not first
    assert worker.call(lambda buffer: buffer, 512, LATE, "a call") is bigger


def test_a_call_that_passes_its_deadline(worker: Worker, storage: Storage) -> None:
    with pytest.raises(IoTimeout) as caught:
        worker.call(storage.hang, 512, SOON, "/path:512: write (a test)")
    assert caught.value.message == "/path:512: write (a test): no answer from the storage within 0.05 s"
    assert caught.value.details == {"path": "/path", "earlier": False}
    assert worker.hangs
    storage.let_go.set()
    wait_for("the end of the call", lambda: not worker.hangs, within=10)


def test_the_path_rests_until_the_call_is_over(worker: Worker, storage: Storage) -> None:
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "first")
    ran: list[str] = []
    for _ in range(3):
        with pytest.raises(IoTimeout) as caught:
            worker.call(lambda buffer: ran.append("too early"), 512, SOON, "second")
        assert caught.value.details["earlier"]
        assert "an earlier I/O has not come back" in caught.value.message
    storage.let_go.set()
    assert worker.call(lambda buffer: "after it", 512, LATE, "third") == "after it"
    assert ran == [], "what was refused is not done later"


def test_the_next_call_waits_for_the_one_before(worker: Worker, storage: Storage) -> None:
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "first")
    order: list[str] = []
    threading.Timer(0.01, lambda: (order.append("over"), storage.let_go.set())).start()
    worker.call(lambda buffer: order.append("next"), 512, LATE, "second")
    assert order == ["over", "next"]


def test_a_read_that_is_asked_for_again_is_the_one_that_was_late(worker: Worker, storage: Storage) -> None:
    """12.1-15: reads that always take a little longer than the deadline would never bring anything."""
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "first", same=(0, 512))
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "again", same=(0, 512))
    storage.let_go.set()
    assert worker.call(lambda buffer: "a new one", 512, LATE, "again", same=(0, 512)) == "late"
    assert worker.call(lambda buffer: "a new one", 512, LATE, "again", same=(0, 512)) == "a new one"
    assert len(storage.buffers) == 1


@pytest.mark.parametrize("same", [None, (512, 512)])
def test_another_read_is_not(worker: Worker, storage: Storage, same: object) -> None:
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "first", same=(0, 512))
    storage.let_go.set()
    assert worker.call(lambda buffer: "a new one", 512, LATE, "second", same=same) == "a new one"


def test_the_buffer_of_a_hanging_call_is_not_touched(worker: Worker, storage: Storage) -> None:
    with pytest.raises(IoTimeout):
        worker.call(storage.hang, 512, SOON, "first")
    [held] = storage.buffers
    held.fill(b"in the hands of the kernel")
    with pytest.raises(IoTimeout):
        worker.call(lambda buffer: buffer.fill(b"overwritten, overwritten!"), 512, SOON, "second")
    assert held.bytes(26) == b"in the hands of the kernel"


def test_at_most_one_thread_hangs(storage: Storage) -> None:
    before = threads()
    worker = Worker("/path")
    for _ in range(5):
        with pytest.raises(IoTimeout):
            worker.call(storage.hang, 512, SOON, "again")
    assert len(threads() - before) == 1
    worker.close()
    storage.let_go.set()
    wait_for("the end of the thread", lambda: threads() <= before, within=10)


def test_a_closed_worker_has_no_thread() -> None:
    before = threads()
    workers = [Worker("/path") for _ in range(10)]
    for worker in workers:
        worker.call(lambda buffer: None, 1, LATE, "a call")
    for worker in workers:
        worker.close()
    wait_for("the end of their threads", lambda: threads() <= before, within=10)


# -- the driver ------------------------------------------------------------------------------------------


@pytest.fixture
def area(tmp_path: Path) -> Area:
    path = tmp_path / "area"
    path.write_bytes(pattern(1 << 20))
    return Area(str(path), 0, DEFAULT_GEOMETRY)


class Told:
    """What a driver asked and told, in order."""

    def __init__(self, refusal: VmlockctlError | None = None) -> None:
        self.events: list[object] = []
        self.refusal = refusal

    def guard(self) -> None:
        self.events.append("guard")
        if self.refusal is not None:
            raise self.refusal

    def on_write(self, step: WriteSector) -> None:
        self.events.append(step.what)

    def journal(self, record: bytes) -> None:
        self.events.append(record)


def test_the_guard_is_asked_before_every_write_and_no_read(area: Area) -> None:
    told = Told()

    def procedure() -> object:
        yield from read_sectors(area, 0, 1, 5)
        yield from write_sectors(area, 1, bytes(512), 5, what="one")
        yield from read_sectors(area, 0, 2, 5)
        yield Journal(b"record")
        yield from write_sectors(area, 2, bytes(512), 5, what="two")

    with Driver(guard=told.guard, on_write=told.on_write, journal=told.journal) as driver:
        driver.run(procedure())  # type: ignore[arg-type]
        assert driver.write_count == 2
    assert told.events == ["guard", "one", b"record", "guard", "two"]


def test_a_guard_that_refuses(area: Area) -> None:
    """It is thrown into the procedure, and not a byte is written."""
    told = Told(HostLeaseLost("expired"))
    before = Path(area.path).read_bytes()
    caught: list[str] = []

    def procedure() -> object:
        try:
            yield from write_sectors(area, 1, bytes(512), 5, what="one")
        except HostLeaseLost as error:
            caught.append(error.message)
            return (yield from read_sectors(area, 1, 1, 5))

    with Driver(guard=told.guard, on_write=told.on_write) as driver:
        assert driver.run(procedure()) == before[512:1024]  # type: ignore[arg-type]
        assert driver.write_count == 0
    assert caught == ["expired"]
    assert told.events == ["guard"]
    assert Path(area.path).read_bytes() == before


def test_clocks_randomness_and_waits(area: Area) -> None:
    waited: list[tuple[float, str]] = []

    def procedure() -> object:
        first = yield Clock()
        fraction = yield Random()
        yield Wait(7.5, "for nothing")
        yield Journal(b"nobody keeps it")
        return first, fraction

    def on_wait(seconds: float, why: str, *more: float) -> None:
        waited.append((seconds, why))

    with Driver(on_wait=on_wait) as driver:
        first, fraction = driver.run(procedure())  # type: ignore[arg-type]
    assert isinstance(first, int)
    assert first >= 1
    assert 0 <= fraction < 1
    assert waited == [(7.5, "for nothing")]
    with Driver() as driver:
        driver.run(wait_for_nothing())  # type: ignore[arg-type]


def wait_for_nothing() -> object:
    yield Wait(0, "for nothing")


def test_a_driver_that_may_only_read(area: Area) -> None:
    before = Path(area.path).read_bytes()
    with Driver(writable=False) as driver:
        assert driver.run(read_sectors(area, 0, 1, 5)) == before[:512]
        with pytest.raises(StorageError):
            driver.run(write_sectors(area, 0, bytes(512), 5, what="never"))
    assert Path(area.path).read_bytes() == before


def test_a_file_that_was_replaced_shows_after_close(area: Area) -> None:
    with Driver() as driver:
        old = driver.run(read_sectors(area, 0, 1, 5))
        replacement = Path(area.path + ".new")
        replacement.write_bytes(b"\x11" * (1 << 20))
        replacement.replace(area.path)
        assert driver.run(read_sectors(area, 0, 1, 5)) == old
        driver.close()
        assert driver.run(read_sectors(area, 0, 1, 5)) == b"\x11" * 512


def test_a_driver_leaves_nothing_behind(area: Area) -> None:
    before, descriptors = threads(), set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with Driver() as driver:
            driver.run(read_sectors(area, 0, 1, 5))
    wait_for("the end of its threads", lambda: threads() <= before, within=10)
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_a_path_that_cannot_be_opened_leaves_nothing_behind_either(tmp_path: Path) -> None:
    """A daemon tries again for as long as the storage is away: a thread for each attempt would add up."""
    missing = Area(str(tmp_path / "none"), 0, DEFAULT_GEOMETRY)
    before = threads()
    driver = Driver()
    for _ in range(5):
        with pytest.raises(NoSuchArea):
            driver.run(read_sectors(missing, 0, 1, 5))
        driver.close()
    wait_for("the end of its threads", lambda: threads() <= before, within=2)


def test_a_path_that_hangs_keeps_its_descriptor_until_it_is_over(
    area: Area, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmlockctl.storage import driver as driver_module

    driver = Driver()
    data = driver.run(read_sectors(area, 0, 1, 5))
    descriptors = set(os.listdir("/proc/self/fd"))
    real = driver_module.read_exact

    def hang(fd: int, path: str, offset: int, size: int, buffer: Buffer) -> bytes:
        storage.hang(buffer)
        return real(fd, path, offset, size, buffer)

    monkeypatch.setattr(driver_module, "read_exact", hang)
    with pytest.raises(IoTimeout):
        driver.run(read_sectors(area, 0, 1, SOON))
    driver.close()
    assert set(os.listdir("/proc/self/fd")) == descriptors, "the kernel still uses it"
    with pytest.raises(IoTimeout) as caught:
        driver.run(write_sectors(area, 0, bytes(512), SOON, what="too early"))
    assert caught.value.details["earlier"]
    storage.let_go.set()
    monkeypatch.setattr(driver_module, "read_exact", real)
    assert driver.run(read_sectors(area, 0, 1, LATE)) == data, "nothing was written late"
    driver.close()
    assert set(os.listdir("/proc/self/fd")) < descriptors
