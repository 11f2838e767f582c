"""One host: clocks, power, the daemon's lanes, the watchdog, and the stopping of its VMs.

What ``daemon/supervisor.py`` does with processes and files is driven here with tasks: at expiry SIGTERM and
after the grace time SIGKILL, at once where somebody else may be writing; the host id is joined again
only when every process is gone and no command has an I/O under way. Whether the host lease is certain, what
may be on the disk, and when it expires are asked of the shipped ``HostState``.

The watchdog is not part of the host: it counts real time while the host stands, and resets it at
``expiry + 60 s`` less a reserve, unless a good renewal was seen in the meantime.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Optional

from tests.proofs.simulator import leasing, renewing
from tests.proofs.simulator.clockwork import FOREVER, Lane, Task
from tests.proofs.simulator.weather import Cache
from vmlockctl.daemon.claims import ACQUIRING
from vmlockctl.daemon.hoststate import JOINING, LEFT, LIVE, LOST, HostState, Membership
from vmlockctl.errors import HostLeaseLost, NotJoined
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.steps import Procedure, Wait
from vmlockctl.lease.timeouts import WATCHDOG_FIRE_SECONDS, id_renewal_fail_seconds

if TYPE_CHECKING:
    from tests.proofs.simulator.leasing import Claim
    from tests.proofs.simulator.world import World
    from vmlockctl.lease.liveness import Observation

GRACE_SECONDS = 10.0
TICK_SECONDS = 1.0
# How long before the others may take over the watchdog fires: wdmd tests every 10 s, and never so late that
# two clocks, 1e-3 apart each, could disagree.
WATCHDOG_RESERVE_SECONDS = (2.0, 10.0)


class State(HostState):
    """host.json, in a lockspace of which only a few host ids exist."""

    lockspace_of_all: Lockspace  # set by each world

    @property
    def lockspace(self) -> Lockspace:
        return self.lockspace_of_all


class Machine:
    """One host, its clocks and what runs on it."""

    def __init__(self, world: World, label: str, membership: Membership, *, rate: float) -> None:
        self.world = world
        self.label = label
        self.membership = membership
        self.host_id = membership.host_id
        self.io_timeout = membership.io_timeout
        self.rate = rate
        self.boot_offset = 0.0
        self.mono_offset = 0.0
        self.daemon = Lane()
        self.commands = Lane()
        self.powered = False
        self.boots = 0
        self.down_since = 0.0
        self.troubled = False  # its I/Os may hang or crawl: ``hung`` and ``slow``
        self.hung: dict[str, float] = {}
        self.slow = False
        self.lossy = world.lossy
        self.cache: Optional[Cache] = None
        self.watchdog_at = FOREVER
        self.on_live: Callable[[], None] = lambda: None
        self._forget_everything()

    def _forget_everything(self) -> None:
        """What does not outlive the power."""
        self.state: Optional[State] = None
        self.kill_at_once = False
        self.all_gone = False
        self.daemon_runs = False
        self.leaving = False
        self.earlier_instance_gone = True
        self.attempt_started = 0.0
        self.attempt_started_real = 0.0
        self.rows: dict[int, Observation] = {}
        self.claims: dict[int, Claim] = {}
        self.verified_at: dict[int, float] = {}
        self.tasks: dict[Task, None] = {}
        self.renewals_in_flight: dict[str, float] = {}
        self.work_in_flight: dict[str, float] = {}
        self.queue: deque[tuple[str, Optional[Claim]]] = deque()
        self.renewal: Optional[Task] = None
        self.supervisor: Optional[Task] = None
        self.lease_work: Optional[Task] = None

    # -- clocks ----------------------------------------------------------------------------------------

    def boottime(self) -> float:
        clockwork = self.world.clockwork
        return (clockwork.now + clockwork.skipped) * self.rate + self.boot_offset

    def monotonic(self) -> float:
        clockwork = self.world.clockwork
        return (clockwork.now + clockwork.skipped) * self.rate + self.mono_offset

    def shift(self, seconds: float) -> None:
        """Time was skipped in which this host did nothing but renew: as if it had (``World.skip``)."""
        local = seconds * self.rate
        self.rows = {
            host_id: row._replace(
                first_check=row.first_check + local if row.first_check == row.last_live else row.first_check,
                last_check=row.last_check + local,
                last_live=row.last_live + local if row.last_live else 0.0,
            )
            for host_id, row in self.rows.items()
        }
        assert self.state is not None
        self.state = self.state._replace(renewed_at=self.state.renewed_at + local)
        self.verified_at = {resource: at + local for resource, at in self.verified_at.items()}

    # -- who we are, for the procedures ------------------------------------------------------------------

    @property
    def generation(self) -> int:
        return self.state.generation if self.state is not None else 0

    @property
    def is_live(self) -> bool:
        return self.state is not None and self.state.state == LIVE

    @property
    def is_lost(self) -> bool:
        return self.state is not None and self.state.state == LOST

    def expires_in(self) -> float:
        state = self.state
        return state.expires_at - self.boottime() if state is not None and state.state == LIVE else FOREVER

    def require_live(self) -> State:
        state = self.state
        if state is None or state.state in (LEFT, JOINING) or self.leaving:
            raise NotJoined("this host has not joined the lockspace")
        if not state.is_certain(self.boottime()):
            raise HostLeaseLost("the host lease is lost")
        return state

    def guard_of(self, generation: int) -> Callable[[], None]:
        """Asked before every write on a resource (``LockspaceDir.guard``)."""

        def guard() -> None:
            if self.require_live().generation != generation:
                raise HostLeaseLost("this host joined again meanwhile; nothing more was written")

        return guard

    def claimant(self, state: State) -> Claimant:
        rows: Mapping[int, Observation] = self.rows
        return Claimant(state.lockspace, self.host_id, state.generation, self.io_timeout, rows)

    # -- power -----------------------------------------------------------------------------------------

    def power_on(self) -> None:
        clockwork = self.world.clockwork
        self.boots += 1
        self.powered = True
        self.daemon.until = self.commands.until = 0.0
        uptime = 20.0 * clockwork.random()
        self.boot_offset = self.mono_offset = uptime - (clockwork.now + clockwork.skipped) * self.rate
        self._forget_everything()
        clockwork.note(self, "boots")
        self.start_daemon()

    def crash(self, why: str) -> None:
        """Nothing of it runs any more; it boots again after a while."""
        world = self.world
        world.clockwork.note(self, f"CRASH {why}")
        self.powered = False
        self.down_since = world.clockwork.now
        self.watchdog_at = FOREVER
        for task in list(self.tasks):
            world.clockwork.kill(task)
        for claim in self.claims.values():
            claim.process_gone(in_peace=False)
        self.state = None
        self.claims = {}
        world.machine_down(self)

    def pause(self, seconds: float) -> None:
        """The whole host stands, VMs and all. Its clocks may or may not."""
        if not self.powered:
            return
        world, until = self.world, self.world.clockwork.now + seconds
        kind = world.clockwork.rng.randrange(3)
        world.clockwork.note(
            self, f"PAUSED {seconds:.1f} s, {('clocks run', 'suspended', 'clocks stand')[kind]}"
        )
        world.counts["pauses"] += 1
        until = max(until, self.commands.until)
        self.daemon.until = max(self.daemon.until, until)
        self.commands.until = until
        if kind >= 1:
            self.mono_offset -= seconds * self.rate
            world.clockwork.shift_waits(self, seconds)
        if kind == 2:
            self.boot_offset -= seconds * self.rate
        self._wake_supervisor_at(until)

    def freeze_daemon(self, seconds: float) -> None:
        """SIGSTOP, or a freezer: VMs and commands go on."""
        if not self.powered:
            return
        clockwork = self.world.clockwork
        clockwork.note(self, f"daemon frozen {seconds:.1f} s")
        self.world.counts["freezes"] += 1
        self.daemon.until = max(self.daemon.until, clockwork.now + seconds)
        self._wake_supervisor_at(self.daemon.until)

    def _wake_supervisor_at(self, until: float) -> None:
        if self.supervisor is not None:
            clockwork = self.world.clockwork
            clockwork.wake(self.supervisor, until - clockwork.now + TICK_SECONDS * clockwork.random())

    def look_at_storage(self) -> None:
        """An outage or a slow time is over: is there another?"""
        now = self.world.clockwork.now
        self.hung = {path: until for path, until in self.hung.items() if until > now}
        self.troubled = self.slow or bool(self.hung)

    # -- watchdog --------------------------------------------------------------------------------------

    def pet(self, renewal_started_real: float) -> None:
        """A good renewal is known: its start moves the moment at which the watchdog fires."""
        world = self.world
        if not world.watchdog:
            return
        reserve = world.clockwork.rng.uniform(*WATCHDOG_RESERVE_SECONDS)
        seconds = id_renewal_fail_seconds(self.io_timeout) + WATCHDOG_FIRE_SECONDS - reserve
        armed = self.watchdog_at != FOREVER
        self.watchdog_at = renewal_started_real + seconds
        if not armed:
            self._watch(self.boots)

    def is_watched_for(self, seconds: float) -> bool:
        """Whether the watchdog lets it live so long; of one that stood a while, it may not."""
        return self.watchdog_at - self.world.clockwork.now > seconds

    def _watch(self, boots: int) -> None:
        clockwork = self.world.clockwork

        def look() -> None:
            if self.boots != boots or not self.powered or self.watchdog_at == FOREVER:
                return
            if self.watchdog_at <= clockwork.now:
                self.world.counts["resets"] += 1
                self.crash("watchdog reset")
            else:
                clockwork.call(self.watchdog_at - clockwork.now, look)

        clockwork.call(max(0.0, self.watchdog_at - clockwork.now), look)

    # -- the daemon --------------------------------------------------------------------------------------

    def spawn(
        self, name: str, procedure: Procedure[Any], lane: Lane, in_flight: dict[str, float], **options: Any
    ) -> Task:
        task = Task(self, lane, name, procedure, in_flight=in_flight, **options)
        self.tasks[task] = None
        self.world.clockwork.begin(task)
        return task

    def start_daemon(self) -> None:
        self.daemon_runs = True
        self.leaving = False
        self.renewal = self.spawn(
            "renewal",
            renewing.renewing(self),
            self.daemon,
            self.renewals_in_flight,
            guard=lambda: renewing.guard(self),
            journal=lambda record: renewing.journal(self, record),
        )
        self.supervisor = self.spawn("supervisor", self._supervising(), self.daemon, {})
        self.queue.clear()
        for claim in self.claims.values():
            if claim.needs_settling():
                self.settle(claim)

    def daemon_killed(self) -> None:
        """SIGKILL, the out-of-memory killer: its standby, or a restart, continues."""
        world = self.world
        clockwork = world.clockwork
        daemon = [task for task in self.tasks if task.lane is self.daemon]
        over = max([clockwork.now, *self.renewals_in_flight.values(), *(task.io_until for task in daemon)])
        for task in daemon:
            clockwork.kill(task)
        over = max(over, leasing.unlock_after(self, self.lease_work))
        self.lease_work = self.supervisor = self.renewal = None
        self.daemon_runs = False
        clockwork.note(self, "daemon killed")
        world.counts["daemon kills"] += 1
        standby = clockwork.random() < 0.7
        delay = clockwork.random() * 2.0 if standby else 10 ** clockwork.rng.uniform(0.0, 2.6)
        boots = self.boots

        def start_again() -> None:
            if self.powered and self.boots == boots and not self.daemon_runs:
                self.earlier_instance_gone = False
                self.start_daemon()

        clockwork.call(over - clockwork.now + delay, start_again)

    def leave_and_join_again(self) -> None:
        """The daemon ends in peace, leaves, and is started again.

        Nothing is claimed, and from here on no command passes its guard (``Renewal.leave``).
        """
        clockwork, boots = self.world.clockwork, self.boots
        for task in (self.renewal, self.supervisor, self.lease_work):
            if task is not None:
                clockwork.kill(task)
        self.renewal = self.supervisor = self.lease_work = None
        self.daemon_runs = False
        self.leaving = True

        def join_again(_ended: Task) -> None:
            if self.powered and self.boots == boots:
                clockwork.call(10 ** clockwork.rng.uniform(0.0, 2.0), start)

        def start() -> None:
            if self.powered and self.boots == boots and not self.daemon_runs:
                self.start_daemon()

        self.spawn(
            "leave",
            renewing.leaving(self),
            self.daemon,
            self.renewals_in_flight,
            guard=lambda: renewing.guard(self),
            on_end=join_again,
        )

    def lose(self, reason: str, *, kill_at_once: bool = False) -> None:
        """Declare the host lease lost, once."""
        state = self.state
        if state is None or state.state == LOST:
            return
        self.world.clockwork.note(self, f"host lease lost: {reason}")
        self.world.counts["expiries"] += 1
        self.kill_at_once = kill_at_once
        self.all_gone = False
        self.state = state._replace(state=LOST, problem=reason)
        if self.supervisor is not None:
            self.world.clockwork.wake(self.supervisor)

    def _supervising(self) -> Procedure[None]:
        """At expiry everything is stopped; when all is gone, the renewal may join again."""
        while True:
            if self.expires_in() <= 0:
                self.lose("no good renewal in time")
            if self.is_lost and not self.all_gone:
                yield from self._stop_everything()
            yield Wait(max(0.001, min(self.expires_in(), 3600.0)), "the next deadline")

    def _stop_everything(self) -> Procedure[None]:
        for claim in self.claims.values():
            hard = self.kill_at_once or claim.state == ACQUIRING
            claim.kill(hard=hard)
        while any(claim.is_busy() for claim in self.claims.values()):
            yield Wait(0.1 if self.kill_at_once else 0.5, "the end of every process")
        self.claims = {}
        self.all_gone = True
        self.watchdog_at = FOREVER
        self.world.clockwork.note(self, "all processes are gone")
        if self.renewal is not None:
            self.world.clockwork.wake(self.renewal)

    # -- leases ------------------------------------------------------------------------------------------

    def verify_all(self) -> None:
        if ("verify", None) not in self.queue:
            self.queue.append(("verify", None))
            self._work()

    def settle(self, claim: Claim) -> None:
        if ("settle", claim) not in self.queue:
            self.queue.append(("settle", claim))
            self._work()

    def drop(self, claim: Claim) -> None:
        """Nothing of it is on the disk any more."""
        if self.claims.get(claim.number) is claim:
            del self.claims[claim.number]

    def _work(self) -> None:
        if not self.daemon_runs:
            return
        if self.lease_work is None or self.lease_work.dead:
            work = leasing.lease_work(self)
            self.lease_work = self.spawn("lease work", work, self.daemon, self.work_in_flight)

    def command_killed(self, task: Task) -> None:
        """SIGKILL of a command anywhere: the daemon settles what it left."""
        self.world.counts["command kills"] += 1
        self.world.clockwork.note(self, f"{task.name} killed")
        for claim in self.claims.values():
            if claim.task is task:
                claim.kill(hard=True)
                return
        self.world.clockwork.end(task)
