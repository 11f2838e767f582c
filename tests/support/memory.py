"""Storage in memory, and a scheduler that runs the procedures of ``lease`` on it: no thread, no sleep.

Every host is a set of generators in one thread. The clock is virtual: it moves to the next event when
nothing is left to do now. Who goes first among what could happen at the same moment is asked of
``choose``: a seed, a script, or an explorer that tries all of it. Faults are asked for by the number of
the I/O.

    Storage      paths -> bytes; guard bytes stand before, between and after the areas
    Simulation   runs procedures for hosts, step by step; ``latency`` 0 makes all I/Os simultaneous
    Fault        what happens to one I/O: crash, error, time-out with the write landing later or never, loss
    explore      every interleaving of a small scene; prunes what it has seen before

A host with an I/O in flight does not touch that path again until it is over, as the worker of
``storage`` has it: what leaves that out is a test of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Union

from vmlockctl.errors import IoTimeout, NoSuchArea, StorageError
from vmlockctl.lease.steps import (
    Area,
    Clock,
    Journal,
    Outcome,
    Procedure,
    Random,
    ReadSectors,
    Step,
    Wait,
    WriteSector,
)
from vmlockctl.ondisk.geometry import Geometry

GUARD = b"\xa5GUARD\x5a\x00" * 512
assert len(GUARD) == 4096

_AFTERWARDS = 1e-6  # seconds: an I/O that waited for another comes after it
_UNIT = 512
_TOLD = 8192  # bytes of a read that tell two histories apart: all that a few hosts can change


@lru_cache(maxsize=64)
def _surrounded(content: bytes) -> bytes:
    return GUARD + content + GUARD


class _Device:
    """The bytes of one path: what it began with, which all copies share, and what was written since."""

    def __init__(self, base: bytes, written: dict[int, bytes]) -> None:
        self.base = base
        self.written = written  # offset -> 512 bytes

    def read(self, start: int, end: int) -> bytes:
        if end - start == _UNIT:
            return self.written.get(start) or self.base[start:end]
        pieces, done, base = [], start, memoryview(self.base)
        for offset in sorted(offset for offset in self.written if start <= offset < end):
            pieces += [base[done:offset], memoryview(self.written[offset])]
            done = offset + _UNIT
        return b"".join([*pieces, base[done:end]])

    def write(self, start: int, data: bytes) -> None:
        for offset in range(0, len(data), _UNIT):
            self.written[start + offset] = data[offset : offset + _UNIT]


class Storage:
    """Devices by path. An area is surrounded by guard bytes, which nobody may read or write."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._areas: list[Area] = []

    def add(self, path: str, content: bytes, geometry: Geometry) -> Area:
        """Append an area to a path; the path is made with the first one."""
        assert len(content) == geometry.align_size
        device = self._devices.get(path)
        if device is None:
            area = Area(path, len(GUARD), geometry)
            self._devices[path] = _Device(_surrounded(content), {})
        else:
            area = Area(path, len(device.base), geometry)
            device.base += content + GUARD
        self._areas.append(area)
        return area

    def copy(self) -> Storage:
        other = Storage()
        other._devices = {path: _Device(old.base, dict(old.written)) for path, old in self._devices.items()}
        other._areas = list(self._areas)
        return other

    def read(self, area: Area, sector: int, sector_count: int) -> bytes:
        start, end = self._span(area, sector, sector_count)
        return self._devices[area.path].read(start, end)

    def write(self, area: Area, sector: int, data: bytes) -> None:
        size = area.geometry.sector_size
        assert len(data) % size == 0, "a write is whole sectors"
        start, _ = self._span(area, sector, len(data) // size)
        self._devices[area.path].write(start, data)

    def remove(self, path: str) -> None:
        del self._devices[path]

    def image(self, area: Area) -> bytes:
        return self.read(area, 0, area.geometry.sectors)

    def state(self) -> int:
        """A hash of everything that was written."""
        return hash(
            tuple((path, tuple(sorted(device.written.items()))) for path, device in self._devices.items())
        )

    def check_guards(self) -> None:
        for area in self._areas:
            device, end = self._devices[area.path], area.offset + area.geometry.align_size
            assert device.read(area.offset - len(GUARD), area.offset) == GUARD, f"written before {area}"
            assert device.read(end, end + len(GUARD)) == GUARD, f"written behind {area}"

    def _span(self, area: Area, sector: int, sector_count: int) -> tuple[int, int]:
        if area.path not in self._devices:
            raise NoSuchArea(f"{area.path}: cannot open: No such file or directory")
        start = area.byte_offset(sector)
        end = start + sector_count * area.geometry.sector_size
        for known in self._areas:
            ends = known.offset + known.geometry.align_size
            if known.path == area.path and known.offset <= start and end <= ends:
                return start, end
        raise AssertionError(f"{area} sectors {sector}..{sector + sector_count - 1} leave every area")


CRASH = "crash"  # the host is gone before this I/O
CRASH_AFTER = "crash after"  # the host is gone when this I/O has landed
ERROR = "error"  # EIO, nothing written
ERROR_LANDED = "error landed"  # EIO, but the write is on the storage
TIMEOUT = "timeout"  # IoTimeout; ``lands_after`` seconds, or never
LOST = "lost"  # acknowledged and not stored


class Fault(NamedTuple):
    kind: str
    lands_after: Optional[float] = None


Faults = Callable[[int, "Io"], Optional[Fault]]


class Io(NamedTuple):
    """One I/O as it was asked for; ``number`` counts from 1 in its task."""

    host: int
    task: str
    number: int
    kind: str  # "r" or "w"
    path: str
    sector: int
    count: int
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{self.sector}" + (f"+{self.count}" if self.count > 1 else "")


class Host:
    """One machine: its id, its clock, and whether it still runs."""

    def __init__(self, host_id: int, *, clock_offset: float = 0.0, clock_rate: float = 1.0) -> None:
        self.host_id = host_id
        self.clock_offset = clock_offset
        self.clock_rate = clock_rate
        self.crashed = False
        self.frozen_until = 0.0
        self.in_flight: dict[str, float] = {}  # path -> when its timed-out I/O is over

    def clock(self, now: float) -> float:
        return now * self.clock_rate + self.clock_offset


class Task:
    """One procedure that runs for a host: what it has asked for, and how it ended."""

    def __init__(
        self,
        host: Host,
        procedure: Procedure[Any],
        name: str,
        faults: Optional[Faults],
        guard: Optional[Callable[[], None]],
    ) -> None:
        self.host = host
        self.procedure = procedure
        self.name = name
        self.faults = faults
        self.guard = guard
        self.ios: list[Io] = []
        self.waits: list[Wait] = []
        self.journal: list[bytes] = []
        self.history: list[int] = []  # hashes of every result it was told
        self.done = False
        self.result: Any = None
        self.error: Optional[BaseException] = None

    @property
    def sequence(self) -> str:
        """Its I/Os, as ``r0 r0+2048 w2 ...`` (sector, and count where it is more than one)."""
        return " ".join(map(str, self.ios))

    def outcome(self) -> Any:
        """Return what the procedure returned, or raise what it raised."""
        assert self.done, f"{self.name} has not ended: {self.sequence}"
        if self.error is not None:
            raise self.error
        return self.result


class _Event(NamedTuple):
    time: float
    task: Optional[Task]
    action: Callable[[], None]


Latency = Callable[[Task, Union[ReadSectors, WriteSector]], float]
Choose = Callable[[int], int]


def no_latency(task: Task, step: Union[ReadSectors, WriteSector]) -> float:
    return 0.0


class Simulation:
    """Runs tasks until none is left, or until a moment.

    ``tear``: a read of several sectors looks at each of them at the beginning or at the end of the I/O;
    ``look_first``: every read looks at the beginning, otherwise at the end.
    ``on_write``: told of each write as it lands; raises where somebody wrote what is not his.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        choose: Optional[Choose] = None,
        latency: Latency = no_latency,
        seed: int = 0,
        start: float = 1000.0,
        tear: bool = False,
        look_first: bool = False,
        on_write: Optional[Callable[[Host, WriteSector], None]] = None,
    ) -> None:
        self.storage = storage
        self.random = random.Random(seed)
        self.now = start
        self.tasks: list[Task] = []
        self.ios: list[Io] = []
        self._choose = choose or (self.random.randrange)
        self._latency = latency
        self._tear = tear
        self._look_first = look_first
        self._on_write = on_write
        self._events: list[_Event] = []

    def start(
        self,
        host: Host,
        procedure: Procedure[Any],
        name: str = "",
        *,
        faults: Optional[Faults] = None,
        guard: Optional[Callable[[], None]] = None,
        delay: float = 0.0,
    ) -> Task:
        task = Task(host, procedure, name or f"host{host.host_id}", faults, guard)
        self.tasks.append(task)
        self._at(delay, task, lambda: self._resume(task, None, None))
        return task

    def run(self, *, until: float = float("inf"), max_events: int = 1_000_000) -> None:
        """Let time pass, to ``until`` at most."""
        for _ in range(max_events):
            if not self._events:
                break
            soonest = min(event.time for event in self._events)
            if soonest > until:
                break
            enabled = [event for event in self._events if event.time == soonest]
            event = enabled[self._choose(len(enabled)) if len(enabled) > 1 else 0]
            self._events.remove(event)
            self.now = max(self.now, soonest)
            if event.task is not None and event.task.host.frozen_until > self.now:
                self._events.append(event._replace(time=event.task.host.frozen_until))
                continue
            event.action()
        else:
            raise AssertionError(f"no end after {max_events} events")
        if until != float("inf"):
            self.now = max(self.now, until)

    def run_one(self, host: Host, procedure: Procedure[Any], **options: Any) -> Any:
        """Run one procedure, and whatever else is running, to the end of it; return its result."""
        task = self.start(host, procedure, **options)
        while not task.done and not host.crashed:
            assert self._events, f"{task.name} waits for nothing"
            self.run(until=min(event.time for event in self._events))
        return task.outcome()

    def crash(self, host: Host) -> None:
        """Power off: nothing of the host runs any more; writes in flight land all the same."""
        host.crashed = True
        self._events = [event for event in self._events if event.task is None or event.task.host is not host]
        for task in self.tasks:
            if task.host is host and not task.done:
                task.done = True
                if not task.procedure.gi_running:
                    task.procedure.close()

    def state(self) -> int:
        """A hash of everything that decides what can still happen."""
        pending = sorted(
            (round(event.time - self.now, 6), event.task.name if event.task else "") for event in self._events
        )
        tasks = tuple(
            (task.name, task.done, task.host.crashed, len(task.ios), tuple(task.history))
            for task in self.tasks
        )
        return hash((self.storage.state(), self.now, tuple(pending), tasks))

    # -- one step ------------------------------------------------------------------------------------

    def _at(self, delay: float, task: Optional[Task], action: Callable[[], None]) -> None:
        self._events.append(_Event(self.now + delay, task, action))

    def _resume(self, task: Task, outcome: Outcome, error: Optional[Exception]) -> None:
        """Tell the procedure a result, and perform what it asks for next, up to an I/O or a wait."""
        while not task.done:
            try:
                if error is not None:
                    task.history.append(hash(type(error)))
                    step = task.procedure.throw(error)
                elif not task.history:
                    step = next(task.procedure)
                else:
                    step = task.procedure.send(outcome)
            except StopIteration as end:
                task.done, task.result = True, end.value
                return
            except Exception as raised:  # noqa: BLE001 - kept for the test that asks for the outcome
                task.done, task.error = True, raised
                return
            if task.done:  # its own host crashed while it ran
                task.procedure.close()
                return
            error = None
            if isinstance(step, (ReadSectors, WriteSector)):
                self._issue(task, step)
                return
            if isinstance(step, Wait):
                task.waits.append(step)
                self._tell_later(task, step.seconds / task.host.clock_rate, None)
                return
            outcome = self._answer(task, step)
            task.history.append(hash(outcome))

    def _answer(self, task: Task, step: Step) -> Outcome:
        if isinstance(step, Clock):
            return max(1, int(task.host.clock(self.now)))
        if isinstance(step, Random):
            return self.random.random()
        assert isinstance(step, Journal)
        task.journal.append(step.record)
        return None

    def _tell_later(self, task: Task, delay: float, outcome: Outcome) -> None:
        task.history.append(0)
        self._at(delay, task, lambda: self._resume(task, outcome, None))

    def _fail_later(self, task: Task, delay: float, error: Exception) -> None:
        self._at(delay, task, lambda: self._resume(task, None, error))

    def _issue(self, task: Task, step: Union[ReadSectors, WriteSector]) -> None:
        blocked = task.host.in_flight.get(step.area.path, 0.0) - self.now
        if blocked >= step.timeout_seconds:
            self._fail_later(task, step.timeout_seconds, IoTimeout("an earlier I/O has not come back"))
            return
        if blocked > 0:
            self._at(blocked, task, lambda: self._begin(task, step))
            return
        self._begin(task, step)

    def _begin(self, task: Task, step: Union[ReadSectors, WriteSector]) -> None:
        is_read = isinstance(step, ReadSectors)
        count = step.sector_count if is_read else len(step.data) // step.area.geometry.sector_size
        if not is_read and task.guard is not None:
            try:
                task.guard()
            except Exception as error:  # noqa: BLE001 - the driver throws it into the procedure
                self._fail_later(task, 0, error)
                return
        io = Io(
            task.host.host_id, task.name, len(task.ios) + 1, "r" if is_read else "w", step.area.path,
            step.sector, count, "" if is_read else step.what,
        )  # fmt: skip
        task.ios.append(io)
        self.ios.append(io)
        fault = task.faults(io.number, io) if task.faults else None
        if fault is not None:
            self._fail(task, step, fault)
        elif is_read:
            self._read(task, step)
        else:
            self._at(self._latency(task, step), task, lambda: self._write(task, step))

    def _write(self, task: Task, step: WriteSector) -> None:
        if self._land(task.host, step, task):
            task.history.append(1)
            self._resume(task, None, None)

    def _land(self, host: Host, step: WriteSector, task: Optional[Task] = None) -> bool:
        try:
            self.storage.write(step.area, step.sector, step.data)
        except NoSuchArea as error:
            if task is not None:
                self._resume(task, None, error)
            return False
        if self._on_write is not None:
            self._on_write(host, step)
        return True

    def _read(self, task: Task, step: ReadSectors) -> None:
        latency = self._latency(task, step)
        early: list[bytes] = []

        def look() -> bytes:
            return self.storage.read(step.area, step.sector, step.sector_count)

        def finish() -> None:
            try:
                data = early[0] if early and self._look_first else look()
            except NoSuchArea as error:
                self._resume(task, None, error)
                return
            if early and self._tear:
                data = self._mixed(early[0], data, step.area.geometry.sector_size)
            task.history.append(hash(data[:_TOLD]))
            self._resume(task, data, None)

        if self._look_first or (self._tear and step.sector_count > 1):
            early.append(look())
        self._at(latency, task, finish)

    def _mixed(self, before: bytes, after: bytes, size: int) -> bytes:
        """Each sector is whole, old or new; only those that changed can differ."""
        if before == after:
            return after
        mixed = bytearray(after)
        for start in range(0, len(after), size):
            if before[start : start + size] != after[start : start + size] and self.random.random() < 0.5:
                mixed[start : start + size] = before[start : start + size]
        return bytes(mixed)

    def _fail(self, task: Task, step: Union[ReadSectors, WriteSector], fault: Fault) -> None:
        write = step if isinstance(step, WriteSector) else None
        if fault.kind == CRASH:
            self.crash(task.host)
        elif fault.kind == CRASH_AFTER:
            if write is not None:
                self._land(task.host, write)
            self.crash(task.host)
        elif fault.kind == LOST:
            assert write is not None, "only a write can be lost"
            self._tell_later(task, 0, None)
        elif fault.kind in (ERROR, ERROR_LANDED):
            if write is not None and fault.kind == ERROR_LANDED:
                self._land(task.host, write)
            self._fail_later(task, 0, StorageError(f"{step.area.path}: Input/output error"))
        else:
            assert fault.kind == TIMEOUT, fault
            self._time_out(task, step, write, fault)

    def _time_out(
        self,
        task: Task,
        step: Union[ReadSectors, WriteSector],
        write: Optional[WriteSector],
        fault: Fault,
    ) -> None:
        lands_after = fault.lands_after
        if write is not None and lands_after is not None:
            # It lands whatever becomes of the host: it is in the hands of the storage.
            self._at(lands_after, None, lambda: self._land_if_there(task.host, write))
        over = self.now + max(step.timeout_seconds, lands_after or 0.0) + _AFTERWARDS
        task.host.in_flight[step.area.path] = over
        self._fail_later(task, step.timeout_seconds, IoTimeout(f"{step.area.path}: no answer"))

    def _land_if_there(self, host: Host, step: WriteSector) -> None:
        self._land(host, step)


def fail_at(number: int, fault: Fault) -> Faults:
    """Fail one I/O of a task, by its number from 1."""
    return lambda count, io: fault if count == number else None


class Script:
    """A ``choose`` that follows given choices, then takes the first; remembers what there was to choose."""

    def __init__(self, choices: Sequence[int] = ()) -> None:
        self._given = list(choices)
        self.trail: list[tuple[int, int]] = []

    def __call__(self, options: int) -> int:
        choice = self._given[len(self.trail)] if len(self.trail) < len(self._given) else 0
        self.trail.append((choice, options))
        return choice

    def successor(self) -> Optional[list[int]]:
        """The next choices in order; None when all were tried."""
        trail = list(self.trail)
        while trail and trail[-1][0] + 1 >= trail[-1][1]:
            trail.pop()
        if not trail:
            return None
        choices = [choice for choice, _ in trail]
        choices[-1] += 1
        return choices


class _Seen(Exception):
    """This state was reached before: what follows is known."""


def explore(
    scene: Callable[[Choose], Simulation],
    check: Callable[[Simulation], None],
    *,
    max_runs: int = 1_000_000,
) -> int:
    """Run ``scene`` under every order of its events; ``check`` the end of each. Return the count of runs.

    A choice point whose state was met before is not followed twice. The choices are in the
    message of a failure: ``Script(choices)`` replays it.
    """
    seen: set[int] = set()
    choices: Optional[list[int]] = []
    runs = 0
    while choices is not None:
        assert runs < max_runs, f"more than {max_runs} interleavings"
        script, given = Script(choices), len(choices)
        world: list[Simulation] = []

        def choose(options: int, script: Script = script, given: int = given, world: Any = world) -> int:
            if len(script.trail) >= given:
                state = world[0].state()
                if state in seen:
                    raise _Seen
                seen.add(state)
            return script(options)

        world.append(scene(choose))
        runs += 1
        try:
            world[0].run()
            check(world[0])
        except _Seen:
            pass
        except BaseException as error:
            order = [choice for choice, _ in script.trail]
            raise AssertionError(f"interleaving {order}: {type(error).__name__}: {error}") from error
        choices = script.successor()
    return runs


def seeds(count: int, first: int = 0) -> Iterator[int]:
    """The seeds of a run of simulations; VMLOCKCTL_SEED names the only one."""
    only = os.environ.get("VMLOCKCTL_SEED")
    yield from [int(only)] if only else range(first, first + count)
