"""What goes wrong with an I/O, and what befalls its host at just that moment (faults.md 2b).

Bounds that the protocol needs, and that are kept here, as numbers:

* A host that is reset has its I/Os in the hands of the storage for ``io_timeout`` at most; what has not
  landed by then never does. (Its own successor waits at least ``3 x io_timeout`` before it writes.)
* A host that lives may have a write land any time later: nothing of its own touches that path before.
* Any write may be acknowledged and lost; in ``lossy`` worlds many are, and nothing else befalls a host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.proofs.simulator.clockwork import FAIL, ISSUE, RESUME, Clockwork, Task, describe
from vmlockctl.errors import IoTimeout, StorageError
from vmlockctl.lease.steps import ReadSectors, WriteSector

if TYPE_CHECKING:
    from tests.proofs.simulator.machine import Machine

DELAY = "delayed"
ERROR = "EIO"
ERROR_LANDED = "EIO, landed"
TIMEOUT = "timed out"
LOST = "lost write"
CRASH = "crash before I/O"
CRASH_AFTER = "crash after I/O"
PAUSE = "host paused at I/O"
FREEZE = "daemon frozen at I/O"
KILL_DAEMON = "daemon killed at I/O"
KILL_COMMAND = "command killed at I/O"

WEIGHTS = {
    DELAY: 30,
    ERROR: 12,
    ERROR_LANDED: 8,
    TIMEOUT: 14,
    LOST: 4,
    CRASH: 4,
    CRASH_AFTER: 4,
    PAUSE: 12,
    FREEZE: 4,
    KILL_DAEMON: 3,
    KILL_COMMAND: 5,
}
LOSSY_WEIGHTS = {DELAY: 10, ERROR: 5, ERROR_LANDED: 5, LOST: 10}
HOST_EVENTS = {CRASH, CRASH_AFTER, PAUSE, FREEZE, KILL_DAEMON, KILL_COMMAND}


class Cache:
    """A host whose reads may be old by some seconds, until it writes to that path itself (NFS attributes)."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._kept: dict[tuple[str, int, int, int], tuple[float, bytes]] = {}

    def pass_through(self, now: float, step: ReadSectors, data: bytes) -> bytes:
        key = (step.area.path, step.area.geometry.sector_size, step.sector, step.sector_count)
        kept = self._kept.get(key)
        if kept is not None and now - kept[0] < self.seconds:
            return kept[1]
        self._kept[key] = (now, data)
        return data

    def forget(self, path: str) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != path}


class Weather:
    """Decides what happens to the I/Os that fault injection picked."""

    def __init__(self, clockwork: Clockwork, weights: dict[str, float]) -> None:
        self._clockwork = clockwork
        self._rng = clockwork.rng
        self._kinds = list(weights)
        self._weights = list(weights.values())
        self.counts = dict.fromkeys(self._kinds, 0)
        self.counts.update({"outage": 0, "slow": 0})

    def strikes(self, task: Task, step: Any) -> bool:
        """Whether this I/O was taken over; otherwise it is performed as usual."""
        machine, clockwork = task.machine, self._clockwork
        hung_until = machine.hung.get(step.area.path, 0.0)
        if hung_until > clockwork.now:
            self.counts["outage"] += 1
            self._hang(task, step, hung_until - clockwork.now + clockwork.latency())
            return True
        if machine.slow:
            self.counts["slow"] += 1
            clockwork.perform(task, step, self._rng.random() * 0.95 * machine.io_timeout)
            return True
        if clockwork.random() >= clockwork.fault_rate and machine.troubled:
            return False
        kind = self._rng.choices(self._kinds, self._weights)[0]
        if not self._applies(kind, task, step):
            return False
        self.counts[kind] += 1
        clockwork.note(machine, f"{task.name}: {kind}: {describe(step)}")
        if kind in HOST_EVENTS:
            return self._befall(kind, task, step)
        self._fail(kind, task, step)
        return True

    @staticmethod
    def _applies(kind: str, task: Task, step: Any) -> bool:
        is_write = step.__class__ is WriteSector
        if kind in (LOST, ERROR_LANDED):
            return is_write
        if kind == KILL_COMMAND:
            return task.lane is task.machine.commands
        return True

    def _fail(self, kind: str, task: Task, step: Any) -> None:
        clockwork, now = self._clockwork, self._clockwork.now
        if kind == DELAY:
            longest = min(step.timeout_seconds, task.machine.io_timeout)
            clockwork.perform(task, step, self._rng.random() * 0.99 * longest)
        elif kind == LOST:
            clockwork.push(now + clockwork.latency(), RESUME, task, None)
        elif kind == TIMEOUT:
            never = self._rng.random() < 0.35
            lateness = self._rng.choice((1.0, 10.0, 300.0)) * self._rng.random()
            self._hang(task, step, step.timeout_seconds + lateness, never=never)
        else:
            if kind == ERROR_LANDED:
                machine = task.machine
                clockwork.call(clockwork.latency(), lambda: clockwork.land(machine, step))
            error = StorageError(f"{step.area.path}: Input/output error")
            clockwork.push(now + 2 * clockwork.latency(), FAIL, task, error)

    def _hang(self, task: Task, step: Any, seconds: float, *, never: bool = False) -> None:
        """The storage answers after ``seconds``: in time, or too late for the caller, or never."""
        clockwork, machine = self._clockwork, task.machine
        if seconds < step.timeout_seconds and not never:
            clockwork.perform(task, step, seconds)
            return
        if step.__class__ is WriteSector and not never:
            boots = machine.boots

            def land_late() -> None:
                reset = machine.boots != boots or not machine.powered
                if not reset or clockwork.now - machine.down_since <= machine.io_timeout:
                    clockwork.land(machine, step)

            clockwork.call(seconds, land_late)
        task.in_flight[step.area.path] = clockwork.now + max(seconds, step.timeout_seconds)
        error = IoTimeout(f"{step.area.path}: no answer", details={"earlier": False})
        clockwork.push(clockwork.now + step.timeout_seconds, FAIL, task, error)

    def _befall(self, kind: str, task: Task, step: Any) -> bool:
        """What happens to the host as it begins this I/O. Whether the I/O is over with it."""
        machine, clockwork = task.machine, self._clockwork
        if kind == CRASH:
            machine.crash("at an I/O")
            return True
        if kind == CRASH_AFTER:
            clockwork.perform(task, step, clockwork.latency())
            clockwork.call(clockwork.latency(), _unless_reset(machine, machine.boots))
            return True
        if kind == KILL_COMMAND:
            machine.command_killed(task)
            return True
        if kind == KILL_DAEMON:
            machine.daemon_killed()
            return task.dead
        if kind == FREEZE:
            machine.freeze_daemon(pause_seconds(self._rng, machine))
        else:
            machine.pause(pause_seconds(self._rng, machine))
        if self._rng.random() < 0.5:
            return False  # the I/O is on its way already
        clockwork.push(clockwork.now, ISSUE, task, step)
        return True


def _unless_reset(machine: Machine, boots: int) -> Any:
    def crash() -> None:
        if machine.powered and machine.boots == boots:
            machine.crash("after an I/O")

    return crash


def pause_seconds(rng: Any, machine: Machine) -> float:
    """1 to 1000 seconds, and often about as long as a duration of the protocol."""
    n = machine.io_timeout
    exact = rng.choice((2 * n, 3 * n, 8 * n, 8 * n + 60, 0.0, 0.0))
    if exact:
        return float(max(0.1, exact + rng.uniform(-2.0, 2.0)))
    return float(10 ** rng.uniform(-1.0, 3.0))
