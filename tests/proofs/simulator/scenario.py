"""One world from one seed: its size, its speed, its faults, and its phases.

    burst   every host wants every resource again and again, for moments; single I/Os fail
    storm   VMs run for minutes; hosts crash, stand still, are cut from the storage, and are taken over
    quiet   nothing but renewals, most of it skipped (``World.skip``)

At the end faults stop, and every host must be able to acquire every resource: a protocol that is safe because
it is stuck is not what we want.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import NamedTuple

from tests.proofs.simulator.checker import Violation
from tests.proofs.simulator.clockwork import LATENCIES, Task
from tests.proofs.simulator.leasing import Command
from tests.proofs.simulator.machine import Machine
from tests.proofs.simulator.memo import remembering
from tests.proofs.simulator.weather import LOSSY_WEIGHTS, WEIGHTS
from tests.proofs.simulator.world import Settings, World
from vmlockctl.lease.timeouts import host_dead_seconds, id_renewal_seconds
from vmlockctl.ondisk.geometry import Geometry

TRACE_EVENTS = 4000
YEAR_SECONDS = 365.25 * 86400
LOSSY_EVERY = 20
_MAX_RATE_ERROR = 1e-3

# Seconds of one I/O: median, and the spread of its logarithm.
_LATENCIES = ((0.0005, 0.5), (0.003, 0.8), (0.02, 0.8), (0.15, 0.7))


class Size(NamedTuple):
    """How long a world lives: until so much was acquired in it, and over how much time that is spread."""

    acquisitions: int
    host_seconds: float


# Of every seed, so that a seed alone names a run: 50,000 acquisitions in a host-year.
SIZE = Size(acquisitions=2000, host_seconds=0.04 * YEAR_SECONDS)


class Result(NamedTuple):
    """What came of one seed."""

    seed: int
    host_seconds: float
    skipped_host_seconds: float
    acquisitions: int
    events: int
    counts: Counter[str]
    faults: Counter[str]
    errors: Counter[str]
    violations: list[Violation]
    trace: list[str]


def settings_of(seed: int, *, watchdog: bool) -> Settings:
    """What a seed decides before the world begins."""
    rng = random.Random(f"settings {seed}")
    hosts = rng.choice((2, 2, 3, 3, 3, 4, 5))
    io_timeout = rng.choice((2, 2, 5, 10, 10, 10, 20, 30))
    io_timeouts = [io_timeout] * hosts
    if rng.random() < 0.25:
        io_timeouts = [rng.choice((2, 5, 10, 20, 60)) for _ in range(hosts)]
    extreme = rng.random() < 0.3
    rates = tuple(
        1.0 + (rng.choice((-1, 1)) if extreme else rng.uniform(-1.0, 1.0)) * _MAX_RATE_ERROR
        for _ in range(hosts)
    )
    median, spread = rng.choice(_LATENCIES)
    longest = 0.4 * min(io_timeouts)
    lossy = seed % LOSSY_EVERY == LOSSY_EVERY - 1
    weights = LOSSY_WEIGHTS if lossy else WEIGHTS
    latencies = [min(longest, rng.lognormvariate(math.log(median), spread)) for _ in range(LATENCIES)]
    return Settings(
        geometry=Geometry(512, 1 << 20) if rng.random() < 0.92 else Geometry(4096, 1 << 20),
        io_timeouts=tuple(io_timeouts),
        rates=rates,
        resources=rng.choice((1, 2, 2, 3)),
        latencies=latencies,
        weights={kind: weight * rng.uniform(0.3, 2.0) for kind, weight in weights.items()},
        stale_seconds=rng.choice((0.0, 0.0, 0.0, 0.5, 1.5)),
        clones=1 if rng.random() < 0.2 and not lossy else 0,
        lossy=lossy,
        watchdog=watchdog,
    )


class Scenario:
    """The phases of one world."""

    def __init__(self, seed: int, size: Size, *, watchdog: bool, trace: bool = False) -> None:
        self.world = World(seed, settings_of(seed, watchdog=watchdog))
        self.seed = seed
        self.size = size
        self.rng = self.world.rng
        self._clockwork = self.world.clockwork
        if trace:
            self._clockwork.trace = deque(maxlen=TRACE_EVENTS)
        self._wanted: set[tuple[Machine, int, int]] = set()
        self._busy = False
        self._mishaps_every = 0.0
        self._think = self._hold = 1.0
        self._shared_share = self.rng.choice((0.0, 0.2, 0.5, 0.8))
        self._skipped = 0.0
        for machine in [*self.world.machines, *self.world.clones]:
            machine.on_live = lambda machine=machine: self._want_all(machine)

    # -- the phases --------------------------------------------------------------------------------------

    def run(self) -> Result:
        world, clockwork = self.world, self._clockwork
        for machine in world.machines:
            clockwork.call(10.0 * self.rng.random(), machine.power_on)
        while not clockwork.stopped and not self._is_complete():
            if world.lossy or self.rng.random() < 0.65:
                self._burst()
            else:
                self._storm()
            if not clockwork.stopped:
                self._quiet()
        if not clockwork.stopped:
            self._everybody_can_acquire()
        if not clockwork.stopped:
            world.checker.finish()
        return self._result()

    def _is_complete(self) -> bool:
        return self.world.checker.acquisitions >= self.size.acquisitions

    def _burst(self) -> None:
        """Contention, and I/Os that fail: a few hundred acquisitions."""
        rng, checker = self.rng, self.world.checker
        latency = sorted(self.world.settings.latencies)[LATENCIES // 2]
        self._think = latency * 10 ** rng.uniform(1.0, 2.2)
        self._hold = latency * 10 ** rng.uniform(0.0, 2.0)
        rate = rng.choice((0.0, 0.0003, 0.001, 0.003))
        target = checker.acquisitions + rng.randint(100, 800)
        self._begin(rate, mishaps_every=0.0 if self.world.lossy else rng.choice((0.0, 600.0, 200.0)))
        seconds = 0.0
        while checker.acquisitions < target and seconds < 3000.0 and not self._clockwork.stopped:
            self._pass_time(10.0)
            seconds += 10.0

    def _storm(self) -> None:
        rng = self.rng
        self._think = 10 ** rng.uniform(0.0, 1.7)
        self._hold = 10 ** rng.uniform(0.5, 2.5)
        self._begin(rng.choice((0.0, 0.001, 0.01)), mishaps_every=10 ** rng.uniform(1.3, 2.3))
        self._pass_time(rng.uniform(600.0, 3000.0))

    def _begin(self, fault_rate: float, *, mishaps_every: float) -> None:
        self._busy = True
        self._clockwork.fault_rate = fault_rate
        self._mishaps_every = mishaps_every
        if mishaps_every:
            self._next_mishap()
        for machine in self.world.live_machines():
            self._want_all(machine)

    def _next_mishap(self) -> None:
        every = self._mishaps_every

        def mishap() -> None:
            if self._busy and self._mishaps_every == every:
                self.world.misfortune()
                self._next_mishap()

        self._clockwork.call(self.rng.expovariate(1.0 / every), mishap)

    def _quiet(self) -> None:
        """Let everything come to its end; then skip, and run the cycles that come last."""
        world, clockwork = self.world, self._clockwork
        self._busy = False
        world.calm_down()
        longest = max(world.settings.io_timeouts)
        cycle = id_renewal_seconds(longest)
        for _ in range(400):
            self._pass_time(cycle / 3.0)
            if clockwork.stopped or world.is_calm():
                break
        if clockwork.stopped or not world.is_calm():
            return
        done = world.checker.acquisitions / self.size.acquisitions
        seconds = self.size.host_seconds * min(1.0, done) / len(world.machines)
        behind = seconds - (clockwork.now + clockwork.skipped)
        if behind > 2.0 * cycle:
            world.skip(behind)
            self._skipped += behind
            clockwork.note(None, f"skipped {behind:.0f} s")
            self._pass_time(3.0 * cycle)

    def _pass_time(self, seconds: float) -> None:
        self._clockwork.run(self._clockwork.now + seconds)

    # -- who wants what ------------------------------------------------------------------------------------

    def _want_all(self, machine: Machine) -> None:
        if self._busy:
            for number in range(len(self.world.resources)):
                self._want(machine, number)

    def _want(self, machine: Machine, number: int) -> None:
        """One command a host and resource at a time, the next some time after the last."""
        boots = machine.boots
        key = (machine, number, boots)
        if key in self._wanted:
            return
        self._wanted.add(key)

        def start() -> None:
            self._wanted.discard(key)
            if not self._busy or not machine.is_live or machine.boots != boots:
                return
            if machine.expires_in() <= 0:  # its daemon does not run: no command gets anywhere
                self._clockwork.call(machine.io_timeout, lambda: self._want_all(machine))
                return
            command = Command(
                machine,
                number,
                shared=self.rng.random() < self._shared_share,
                hold_seconds=self.rng.expovariate(1.0 / self._hold),
                patience_seconds=self.rng.choice((0.0, 5.0, 400.0)),
            )
            self._wanted.add(key)
            command.start(ended)

        def ended(_task: Task) -> None:
            self._wanted.discard(key)
            if machine.boots == boots:
                self._want(machine, number)

        self._clockwork.call(self.rng.expovariate(1.0 / self._think), start)

    # -- the end ---------------------------------------------------------------------------------------------

    def _everybody_can_acquire(self) -> None:
        """Without faults, every host gets every resource exclusively, one after the other."""
        world = self.world
        self._busy = False
        world.calm_down()
        longest = max(host_dead_seconds(io_timeout) for io_timeout in world.settings.io_timeouts)
        for clone in world.clones:
            if clone.powered:
                clone.crash("switched off")
        for _ in range(60):
            self._end_vms()
            if self._clockwork.stopped or (world.is_calm() and not world.has_claims()):
                break
            self._pass_time(longest / 4.0)
        if self._clockwork.stopped:
            return
        if not world.is_calm() or world.has_claims():
            world.checker.violate("stuck: the hosts do not come to rest")
            return
        for machine in world.machines:
            for number in range(len(world.resources)):
                self._must_acquire(machine, number, 2.0 * longest)
                if self._clockwork.stopped:
                    return

    def _end_vms(self) -> None:
        for machine in self.world.machines:
            for claim in machine.claims.values():
                if claim.hold is not None:
                    self._clockwork.wake(claim.task)

    def _must_acquire(self, machine: Machine, number: int, seconds: float) -> None:
        checker, before = self.world.checker, self.world.checker.acquisitions
        ended: list[Task] = []
        command = Command(machine, number, shared=False, hold_seconds=0.0, patience_seconds=seconds)
        command.start(ended.append)
        waited = 0.0
        while not ended and waited < 2.0 * seconds and not self._clockwork.stopped:
            self._pass_time(machine.io_timeout)
            waited += machine.io_timeout
        if checker.acquisitions == before and not self._clockwork.stopped:
            checker.violate(f"stuck: {machine.label} cannot acquire resource {number}")
        for _ in range(100):
            if number not in machine.claims or self._clockwork.stopped:
                break
            self._pass_time(machine.io_timeout / 4.0)

    def _result(self) -> Result:
        world, clockwork = self.world, self._clockwork
        hosts = len(world.machines)
        return Result(
            self.seed,
            (clockwork.now + clockwork.skipped) * hosts,
            self._skipped * hosts,
            world.checker.acquisitions,
            clockwork.events,
            world.counts,
            Counter(world.weather.counts),
            world.errors,
            world.checker.violations,
            list(clockwork.trace or ()),
        )


def run_seed(seed: int, *, size: Size = SIZE, watchdog: bool = True, trace: bool = False) -> Result:
    """One world, from its first boot to its end or its first violation."""
    with remembering():
        return Scenario(seed, size, watchdog=watchdog, trace=trace).run()
