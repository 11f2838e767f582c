"""One lockspace, its resources, hosts and storage, and the misfortunes that befall them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tests.proofs.simulator.checker import Checker
from tests.proofs.simulator.clockwork import LATENCIES, Clockwork, Task
from tests.proofs.simulator.disk import MAX_HOSTS, DiskArea, SmallGeometry
from tests.proofs.simulator.machine import Machine, State
from tests.proofs.simulator.weather import Cache, Weather, pause_seconds
from vmlockctl.daemon.hoststate import Membership
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.resource import Resource
from vmlockctl.lease.steps import Area
from vmlockctl.lease.timeouts import id_renewal_seconds
from vmlockctl.ondisk.area import resource_area
from vmlockctl.ondisk.dblock import NO_MODE, Dblock, own_sector
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.leader import Leader, new_delta

SPACE = "space"
HOSTILE_HOST_ID = MAX_HOSTS  # nobody's: what is written there is not the protocol's


class Settings(NamedTuple):
    """The size and the nature of a world; ``scenario`` draws them from a seed."""

    geometry: Geometry
    io_timeouts: tuple[int, ...]  # one for each host
    rates: tuple[float, ...]
    resources: int
    latencies: list[float]
    weights: dict[str, float]
    stale_seconds: float
    clones: int
    lossy: bool
    watchdog: bool


class World:
    """Everything that one seed makes."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.settings = settings
        self.lossy = settings.lossy
        self.watchdog = settings.watchdog
        assert len(settings.latencies) == LATENCIES
        self.clockwork = Clockwork(seed, settings.latencies)
        self.rng = self.clockwork.rng
        self.weather = self.clockwork.weather = Weather(self.clockwork, settings.weights)
        self.checker = Checker(self.clockwork, settings.resources)
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.reboots = True  # a host that crashed comes back by itself
        self._number = 0
        self._standing_hostiles = 0
        self._make_storage()
        self._make_machines()

    def _make_storage(self) -> None:
        geometry = self.settings.geometry
        small = SmallGeometry(*geometry)
        record = new_delta(geometry, space_name=SPACE, io_timeout=self.settings.io_timeouts[0])
        content = record.sector(geometry.sector_size) * small.sectors
        self.lockspace = Lockspace(Area("space", 0, small), SPACE, record.io_timeout)
        areas = self.clockwork.areas
        areas["space"] = DiskArea("space", small, content)
        self.resources: list[Resource] = []
        self.waiters: list[dict[Task, None]] = []
        for number in range(self.settings.resources):
            name = f"disk{number}"
            content = resource_area(geometry, space_name=SPACE, resource_name=name, num_hosts=MAX_HOSTS)
            areas[name] = DiskArea(name, geometry, content)
            areas[name].on_free = lambda number=number: self._freed(number)
            self.resources.append(Resource(name, 0, name))
            self.waiters.append({})
        lockspace = self.lockspace
        self.state_of = type("State", (State,), {"lockspace_of_all": lockspace})

    def _make_machines(self) -> None:
        settings = self.settings
        self.machines: list[Machine] = []
        for index, (io_timeout, rate) in enumerate(zip(settings.io_timeouts, settings.rates)):
            member = Membership("space", 0, SPACE, index + 1, f"host{index + 1}", io_timeout)
            self.machines.append(Machine(self, f"host{index + 1}", member, rate=rate))
        self.clones: list[Machine] = []
        for index in range(settings.clones):
            host_id = 1 + index % len(self.machines)
            member = Membership("space", 0, SPACE, host_id, f"clone{index}", settings.io_timeouts[0])
            self.clones.append(Machine(self, f"clone{index}", member, rate=1.0))
        for machine in [*self.machines, *self.clones]:
            if settings.stale_seconds:
                machine.cache = Cache(settings.stale_seconds)

    # -- what the actors ask ---------------------------------------------------------------------------

    def number(self) -> int:
        self._number += 1
        return self._number

    def refused(self, error: Exception) -> None:
        self.errors[type(error).__name__] += 1

    def _freed(self, number: int) -> None:
        """Whoever waits looks every 30 ms whether the leader is free."""
        for task in self.waiters[number]:
            self.clockwork.wake(task, 0.03 * self.clockwork.random())

    def machine_down(self, machine: Machine) -> None:
        self.counts["crashes"] += 1
        if machine in self.clones:
            return
        delay = 10 ** self.rng.uniform(0.3, 2.6)
        self.clockwork.call(delay, lambda: None if machine.powered else machine.power_on())

    def live_machines(self) -> list[Machine]:
        return [machine for machine in [*self.machines, *self.clones] if machine.is_live]

    # -- misfortunes -------------------------------------------------------------------------------------

    def misfortune(self) -> None:
        """Something befalls one host, or the storage."""
        rng = self.rng
        machine = rng.choice(self.machines)
        kind = rng.choices(
            ("crash", "pause", "freeze", "daemon", "outage", "slow", "leave", "clone", "hostile"),
            (12, 25, 10, 8, 20, 8, 5, 5 if self.clones else 0, 5),
        )[0]
        if kind == "outage":
            self._outage(rng.sample(self.machines, rng.choice((1, 1, len(self.machines)))))
        elif kind == "slow":
            self._slow(machine)
        elif kind == "hostile":
            self._hostile()
        elif kind == "clone":
            self._clone(rng.choice(self.clones))
        elif not machine.powered:
            return
        elif kind == "crash":
            machine.crash("power cut")
        elif kind == "pause":
            machine.pause(pause_seconds(rng, machine))
        elif kind == "freeze":
            machine.freeze_daemon(pause_seconds(rng, machine))
        elif kind == "daemon":
            machine.daemon_killed()
        else:
            self._leave(machine)

    def _outage(self, machines: list[Machine]) -> None:
        """The storage of some hosts hangs, all of it or one path."""
        seconds = pause_seconds(self.rng, machines[0])
        paths = list(self.clockwork.areas)
        if self.rng.random() < 0.5:
            paths = self.rng.sample(paths, 1 + self.rng.randrange(len(paths)))
        self.counts["outages"] += 1
        for machine in machines:
            self.clockwork.note(machine, f"storage hangs {seconds:.1f} s: {' '.join(paths)}")
            machine.hung = dict.fromkeys(paths, self.clockwork.now + seconds)
            machine.troubled = True
            self.clockwork.call(seconds + 0.001, machine.look_at_storage)

    def _slow(self, machine: Machine) -> None:
        self.counts["slow storage"] += 1
        self.clockwork.note(machine, "storage is slow")
        machine.slow = machine.troubled = True

        def over() -> None:
            machine.slow = False
            machine.look_at_storage()

        self.clockwork.call(10 ** self.rng.uniform(0.5, 2.3), over)

    def _hostile(self) -> None:
        """Somebody writes into a dblock that is nobody's: noise, absurd numbers, or plausible ones.

        Plausible is an owner of an earlier generation, or one that never was. A live one would be committed
        and have the lease without knowing: whoever can write there can always deny a lease. And plausible is
        no version that is yet to come: whoever forges one, and takes it back, has some hosts believe that the
        contested one is over while others decide it.
        """
        number = self.rng.randrange(len(self.resources))
        area = self.clockwork.areas[self.resources[number].path]
        leader = Leader.from_bytes(area.sectors[0])
        kind = self.rng.randrange(3)
        self.counts["hostile dblocks"] += 1
        if kind == 0:
            data = self.rng.randbytes(area.size)
        else:
            lver = max(0, leader.lver + self.rng.randrange(-2, 2)) if kind == 1 else self.rng.getrandbits(63)
            mbal = self.rng.getrandbits(20 if kind == 1 else 63)
            owner = self.rng.randint(1, MAX_HOSTS)
            record = Leader.from_bytes(self.clockwork.areas["space"].sectors[owner - 1])
            generation = max(0, record.owner_generation - self.rng.randint(1, 4))
            dblock = Dblock(mbal, mbal, owner, generation, 1000, lver).sealed()
            data = own_sector(dblock, NO_MODE, area.size)
        self.clockwork.note(None, f"hostile dblock in resource {number}")
        area.put(HOSTILE_HOST_ID + 1, data)
        self._standing_hostiles += 1

        def take_back() -> None:
            area.put(HOSTILE_HOST_ID + 1, bytes(area.size))
            self._standing_hostiles -= 1

        self.clockwork.call(self.rng.uniform(1.0, 60.0), take_back)

    def _clone(self, clone: Machine) -> None:
        """A second machine uses a host id for a while."""
        if clone.powered:
            return
        self.counts["clones"] += 1
        clone.power_on()
        boots = clone.boots

        def off() -> None:
            if clone.powered and clone.boots == boots:
                clone.crash("switched off")

        self.clockwork.call(self.rng.uniform(60.0, 900.0), off)

    def _leave(self, machine: Machine) -> None:
        if machine.is_live and machine.daemon_runs and not machine.claims:
            machine.leave_and_join_again()

    def calm_down(self) -> None:
        """No fault begins any more; what has begun goes on."""
        self.clockwork.fault_rate = 0.0

    # -- quiet time ------------------------------------------------------------------------------------

    def is_calm(self) -> bool:
        """Every host renews and does nothing else, and nothing is under way."""
        if any(clone.powered for clone in self.clones) or self._standing_hostiles:
            return False
        now = self.clockwork.now
        return all(
            machine.is_live
            and machine.daemon_runs
            and not machine.troubled
            and machine.is_watched_for(2.0 * id_renewal_seconds(machine.io_timeout))
            and machine.daemon.until <= now
            and machine.commands.until <= now
            and all(over <= now for over in machine.work_in_flight.values())
            and all(over <= now for over in machine.renewals_in_flight.values())
            and not machine.queue
            and machine.state is not None
            and not machine.state.attempts
            and all(claim.hold is not None and not claim.is_locked() for claim in machine.claims.values())
            and all(
                task in (machine.renewal, machine.supervisor)
                or any(claim.task is task for claim in machine.claims.values())
                for task in machine.tasks
            )
            for machine in self.machines
        )

    def has_claims(self) -> bool:
        return any(machine.claims for machine in self.machines)

    def skip(self, seconds: float) -> None:
        """Let a quiet stretch pass without events.

        In a calm world the only events are renewals that succeed, and looks at leases that nobody changes. A
        cycle of them leads from one state to the same state with larger times: timestamps on the disk are
        only ever compared for change, what a host remembers of the others and its own expiry only through
        differences on its own clock. So a number of cycles is a shift of every clock, and of what was
        remembered in that clock, by the same time; the cycles that follow are run, and put what is on the
        disk in its place, before anything but renewals happens (``scenario``).
        """
        assert self.is_calm()
        self.clockwork.skipped += seconds
        for machine in self.machines:
            machine.shift(seconds)
