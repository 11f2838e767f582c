"""The event heap: virtual time, and the tasks that it resumes.

A task is a procedure, as the drivers of ``storage`` run it: it yields steps and is told their results. What a
host does besides the procedures of ``lease`` (waiting for its turn, watching its VMs) is written the same
way, around them, so that one task is one thread or process of the real thing.

Time is real time, the same for everybody; each host reads its own clocks from it. A task belongs to a
lane: what stands still together. While a lane stands, I/Os that were under way go on, their results wait.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Optional

from tests.proofs.simulator.disk import DiskArea
from vmlockctl.errors import IoTimeout
from vmlockctl.lease.steps import Clock, Journal, Procedure, Random, ReadSectors, Wait, WriteSector

if TYPE_CHECKING:
    from tests.proofs.simulator.machine import Machine
    from tests.proofs.simulator.weather import Weather

RESUME, READ, WRITE, WAKE, FAIL, CALL, ISSUE = range(7)
LATENCIES = 4096

FOREVER = float("inf")


class Lane:
    """Tasks that stand still together, until a moment."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0


class Task:
    """One thread or process of a host."""

    __slots__ = (
        "dead",
        "guard",
        "in_flight",
        "io_until",
        "journal",
        "lane",
        "machine",
        "name",
        "on_end",
        "procedure",
        "ticket",
        "writes",
    )

    def __init__(
        self,
        machine: Machine,
        lane: Lane,
        name: str,
        procedure: Procedure[Any],
        *,
        in_flight: dict[str, float],
        guard: Optional[Callable[[], None]] = None,
        journal: Optional[Callable[[bytes], None]] = None,
        on_end: Optional[Callable[[Task], None]] = None,
    ) -> None:
        self.machine = machine
        self.lane = lane
        self.name = name
        self.procedure = procedure
        self.in_flight = in_flight  # path -> when its timed-out I/O is over: nothing touches it before
        self.guard = guard
        self.journal = journal
        self.on_end = on_end
        self.ticket = 0  # counts the beginnings and ends of its waits, odd in one: wake-ups name theirs
        self.dead = False
        self.writes = 0
        self.io_until = 0.0  # when its last I/O is over: a process that is killed in one ends no sooner


class Clockwork:
    """Runs every task of every host in the order of time."""

    def __init__(self, seed: int, latencies: list[float]) -> None:
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.now = 0.0
        self.skipped = 0.0  # seconds that passed for all without events (``World.skip``)
        self.events = 0
        self.stopped = False
        self.areas: dict[str, DiskArea] = {}
        self.fault_rate = 0.0
        self.weather: Optional[Weather] = None
        self.trace: Optional[deque[str]] = None
        assert len(latencies) == LATENCIES
        self._latencies = latencies
        self._heap: list[tuple[float, int, int, Optional[Task], Any]] = []
        self._number = 0

    # -- what may be asked for -----------------------------------------------------------------------

    def push(self, time: float, what: int, task: Optional[Task], told: Any) -> None:
        assert time >= self.now
        self._number += 1
        heappush(self._heap, (time, self._number, what, task, told))

    def call(self, delay: float, function: Callable[[], None]) -> None:
        self.push(self.now + delay, CALL, None, function)

    def begin(self, task: Task, delay: float = 0.0) -> None:
        self.push(self.now + delay, RESUME, task, None)

    def wake(self, task: Task, delay: float = 0.0) -> None:
        """End the wait that the task is in, if it is in one."""
        if task.ticket % 2:
            self.push(self.now + delay, WAKE, task, task.ticket)

    def latency(self) -> float:
        return self._latencies[int(self.random() * LATENCIES)]

    def shift_waits(self, machine: Machine, seconds: float) -> None:
        """A host's monotonic clock stands for so long: what waits on it waits longer."""
        self._heap = [
            (time + seconds, number, what, task, told)
            if what == WAKE and task is not None and task.machine is machine
            else (time, number, what, task, told)
            for time, number, what, task, told in self._heap
        ]
        heapify(self._heap)

    def note(self, machine: Optional[Machine], text: str) -> None:
        if self.trace is not None:
            who = machine.label if machine is not None else "-"
            self.trace.append(f"{self.now + self.skipped:15.4f}  {who:8} {text}")

    # -- running ---------------------------------------------------------------------------------------

    def run(self, until: float = FOREVER) -> None:
        """Let time pass until a moment, or until somebody sets ``stopped``."""
        heap, count = self._heap, 0
        while heap and not self.stopped and heap[0][0] <= until:
            time, _, what, task, told = heappop(heap)
            self.now = time
            count += 1
            if task is None:
                told()
            elif what == WRITE:
                self._landed(task, told)
            elif not task.dead:
                self._deliver(time, what, task, told)
            heap = self._heap
        self.events += count
        if not self.stopped and until != FOREVER:
            self.now = max(self.now, until)

    def _deliver(self, time: float, what: int, task: Task, told: Any) -> None:
        if what == READ:
            area, step, before = told
            told = self._seen(task, area, step, before)
            what = RESUME
        standing = task.lane.until
        if standing > time:
            self.push(standing, what, task, told)
        elif what == RESUME:
            self.resume(task, told)
        elif what == WAKE:
            if told == task.ticket:
                task.ticket += 1
                self.resume(task, None)
        elif what == FAIL:
            self.resume(task, None, told)
        else:
            self._issue(task, told)

    def _seen(self, task: Task, area: DiskArea, step: ReadSectors, before: bytes) -> bytes:
        after = area.look(step)
        if before is not after:
            if step.sector_count > 1:
                after = area.mixed(before, after, self.random)
            elif self.random() < 0.5:
                after = before
        if task.machine.cache is not None:
            after = task.machine.cache.pass_through(self.now, step, after)
        return after

    def _landed(self, task: Task, step: WriteSector) -> None:
        if task.dead:
            if task.machine.powered or self.random() < 0.7:
                self.land(task.machine, step)
            return
        self.land(task.machine, step)
        if task.lane.until > self.now:
            self.push(task.lane.until, RESUME, task, None)
        else:
            self.resume(task, None)

    def land(self, machine: Machine, step: WriteSector) -> None:
        """A write is on the storage."""
        area = self.areas[step.area.path]
        area.write(step)
        if machine.cache is not None:
            machine.cache.forget(step.area.path)
        if self.trace is not None:
            self.note(machine, f"landed {area.path}:{step.sector} {step.what}")

    def resume(self, task: Task, told: Any, error: Optional[BaseException] = None) -> None:
        """Tell a task a result, and perform what it asks for next, up to an I/O or a wait."""
        procedure = task.procedure
        send = procedure.send
        try:
            step = send(told) if error is None else procedure.throw(error)
            while not task.dead:
                kind = step.__class__
                if kind is ReadSectors:
                    self._issue(task, step)
                    return
                if kind is WriteSector:
                    try:
                        if task.guard is not None:
                            task.guard()
                    except Exception as refusal:  # noqa: BLE001 - thrown into the procedure, as the driver does
                        step = procedure.throw(refusal)
                        continue
                    task.writes += 1
                    self._issue(task, step)
                    return
                if kind is Wait:
                    task.ticket += 1
                    if step.seconds != FOREVER:
                        self.push(self.now + step.seconds / task.machine.rate, WAKE, task, task.ticket)
                    return
                if kind is Clock:
                    step = send(max(1, int(task.machine.monotonic())))
                elif kind is Random:
                    step = send(self.random())
                else:
                    assert kind is Journal
                    if task.journal is not None:
                        task.journal(step.record)
                    step = send(None)
        except StopIteration:
            self.end(task)

    def end(self, task: Task) -> None:
        task.dead = True
        task.machine.tasks.pop(task, None)
        if task.on_end is not None:
            task.on_end(task)

    def kill(self, task: Task) -> None:
        """It runs no more; I/O under way is in the hands of the kernel."""
        if not task.dead:
            task.dead = True
            task.machine.tasks.pop(task, None)
            if not task.procedure.gi_running:
                task.procedure.close()

    def _issue(self, task: Task, step: Any) -> None:
        if task.in_flight and self._blocked(task, step):
            return
        if task.machine.troubled or self.random() < self.fault_rate:
            assert self.weather is not None
            if self.weather.strikes(task, step):
                return
        self.perform(task, step, self._latencies[int(self.random() * LATENCIES)])

    def perform(self, task: Task, step: Any, latency: float) -> None:
        """An I/O that takes so long and succeeds."""
        now = self.now
        task.io_until = now + latency
        if self.trace is not None:
            self.note(task.machine, f"{task.name}: {describe(step)}")
        if step.__class__ is ReadSectors:
            area = self.areas[step.area.path]
            self.push(now + latency, READ, task, (area, step, area.look(step)))
        elif latency < 0.0005 or self.random() < 0.75:
            self.push(now + latency, WRITE, task, step)
        else:  # it lands soon, and is acknowledged late
            machine = task.machine
            self.push(now + latency * self.random(), CALL, None, lambda: self.land(machine, step))
            self.push(now + latency, RESUME, task, None)

    def _blocked(self, task: Task, step: Any) -> bool:
        """The driver's quarantine: an earlier I/O on this path must be over first (design rule 4)."""
        path = step.area.path
        over = task.in_flight.get(path)
        if over is None:
            return False
        if over <= self.now:
            del task.in_flight[path]
            return False
        if over - self.now >= step.timeout_seconds:
            error = IoTimeout(f"{path}: an earlier I/O has not come back", details={"earlier": True})
            self.push(self.now + step.timeout_seconds, FAIL, task, error)
        else:
            self.push(over + 1e-6, ISSUE, task, step)
        return True


def describe(step: Any) -> str:
    if step.__class__ is ReadSectors:
        return f"read {step.area.path}:{step.sector}+{step.sector_count}"
    return f"write {step.area.path}:{step.sector} {step.what}"
