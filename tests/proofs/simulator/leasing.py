"""Commands, and the daemon's work on leases, driven as in ``managers/embedded.py``, ``daemon/leasework.py``.

A command acquires and becomes the VM (``run``). Whatever it leaves half-made is settled by the daemon: a
claim is worked on by one task at a time, and by nobody while an I/O of its last worker is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from tests.proofs.simulator.checker import Hold
from tests.proofs.simulator.clockwork import FOREVER, Task
from tests.proofs.simulator.converting import back_to_shared, confirm_released, confirm_shared, convert
from vmlockctl.daemon.claims import ACQUIRING, CONVERTING, HELD, RELEASING
from vmlockctl.errors import (
    ContentionError,
    IoTimeout,
    LeaseLost,
    NoSuchArea,
    OnDiskError,
    SharedLeaseHeld,
    StorageError,
    VmlockctlError,
)
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Resource, verify_held
from vmlockctl.lease.steps import Procedure, Wait
from vmlockctl.lease.timeouts import id_renewal_fail_seconds, id_renewal_seconds

if TYPE_CHECKING:
    from tests.proofs.simulator.machine import Machine, State

GRACE_SECONDS = 10.0
CONVERTED_SHARE = 0.05  # of the leases are converted once while they are held
STUCK_SHARE = 0.03  # of the processes that are killed survive in the kernel for a while


class Claim:
    """claims/RES.json, its lock, and the process."""

    def __init__(self, machine: Machine, number: int, task: Task, *, shared: bool, generation: int) -> None:
        self.machine = machine
        self.number = number
        self.lease: Resource = machine.world.resources[number]
        self.task = task
        self.shared = shared
        self.generation = generation
        self.state = ACQUIRING
        self.lver = 0
        self.worker: Optional[Task] = task  # who holds the lock
        self.locked_until = 0.0  # its last worker was killed or gave up, and an I/O is still on its way
        self.hold: Optional[Hold] = None
        self.dying_at = FOREVER

    def is_locked(self) -> bool:
        worker = self.worker
        return (
            worker is not None and not worker.dead
        ) or self.locked_until > self.machine.world.clockwork.now

    def is_busy(self) -> bool:
        """A process of it may still write: the lease, or the disk."""
        return not self.task.dead or self.is_locked()

    def needs_settling(self) -> bool:
        return self.task.dead or (self.state == CONVERTING and not self.is_locked())

    def unlock(self) -> None:
        """Let go of the lock, unless an I/O on the lease is under way."""
        worker = self.worker
        if worker is not None:
            hung = self.machine.work_in_flight.get(self.lease.path, 0.0)
            under_way = worker.io_until if worker.dead else 0.0
            self.locked_until = max(self.locked_until, hung, under_way)
        self.worker = None

    def process_gone(self, *, in_peace: bool) -> None:
        if self.hold is not None:
            self.machine.world.checker.end(self.number, self.hold, in_peace=in_peace)
            self.hold = None

    def kill(self, *, hard: bool) -> None:
        """SIGTERM, and SIGKILL after the grace time; ``hard``: SIGKILL. It ends a little later."""
        rng, clockwork = self.machine.world.clockwork.rng, self.machine.world.clockwork
        after = rng.random() * 0.2
        if not hard:
            after = min(GRACE_SECONDS + after, rng.random() * 1.3 * GRACE_SECONDS)
        if self.hold is not None and not self.machine.lossy and rng.random() < STUCK_SHARE:
            after += 10 ** rng.uniform(0.0, 2.8)
            self.machine.world.counts["stuck VMs"] += 1
        at = clockwork.now + after
        if at < self.dying_at and not self.task.dead:
            self.dying_at = at
            boots = self.machine.boots
            clockwork.call(after, lambda: self._die(boots))

    def _die(self, boots: int) -> None:
        machine, clockwork = self.machine, self.machine.world.clockwork
        if machine.boots != boots or not machine.powered or self.task.dead:
            return
        if machine.commands.until > clockwork.now:  # the signal is pending
            clockwork.call(machine.commands.until - clockwork.now, lambda: self._die(boots))
            return
        clockwork.kill(self.task)
        self.process_gone(in_peace=False)
        if self.worker is self.task:
            self.unlock()
        ended = self.task.on_end
        if ended is not None:
            ended(self.task)
        machine.settle(self)


class Command:
    """``vmlockctl run --wait``: acquires, is the VM for a while, and gives the lease back."""

    def __init__(
        self, machine: Machine, number: int, *, shared: bool, hold_seconds: float, patience_seconds: float
    ) -> None:
        self.machine = machine
        self.number = number
        self.shared = shared
        self.hold_seconds = hold_seconds
        self._patience_until = machine.world.clockwork.now + patience_seconds
        self._retry_seconds = 0.5
        self.task: Optional[Task] = None

    def start(self, on_end: Callable[[Task], None]) -> None:
        machine = self.machine
        name = f"command {machine.world.number()} on {self.number}"
        self.task = machine.spawn(name, self._run(), machine.commands, machine.work_in_flight, on_end=on_end)

    def _run(self) -> Procedure[None]:
        while True:
            claim: Optional[Claim] = None
            shared_holders = False
            try:
                claim = yield from self._attempt()
                if claim is not None:
                    break
            except ContentionError as error:
                self.machine.world.refused(error)
                shared_holders = isinstance(error, SharedLeaseHeld)
            except VmlockctlError as error:
                self.machine.world.refused(error)
                self._leave_to_daemon()
                return
            if self.machine.world.clockwork.now > self._patience_until:
                return
            yield from self._wait_until_free(told_by_leader=not shared_holders)
        yield Wait(self.hold_seconds, "the VM runs")
        if self.machine.world.clockwork.random() < CONVERTED_SHARE:
            yield from convert(self, claim)
            yield Wait(self.hold_seconds, "the VM goes on")
        yield from self._give_back(claim)

    def _attempt(self) -> Procedure[Optional[Claim]]:
        """One try; None while another local user or a dead command's remains are in the way."""
        machine, task = self.machine, self.task
        assert task is not None
        state = machine.require_live()
        if self.number in machine.claims:
            return None
        claim = Claim(machine, self.number, task, shared=self.shared, generation=state.generation)
        machine.claims[self.number] = claim
        task.guard = machine.guard_of(state.generation)
        task.writes = 0
        claimant = machine.claimant(state)
        patient = machine.world.clockwork.random() < 0.2
        try:
            held = yield from acquire(claimant, claim.lease, shared=self.shared, wait_for_dead_owner=patient)
            claim.lver = held.leader.lver
            if self.shared:
                yield from confirm_shared(claimant, claim)
        except VmlockctlError as error:
            if task.writes == 0:
                machine.drop(claim)
            elif not isinstance(error, StorageError):
                yield from retract(claimant, claim.lease)
                machine.drop(claim)
            raise
        claim.state = HELD
        claim.unlock()
        machine.require_live()
        claim.hold = machine.world.checker.begin(machine, self.number, shared=self.shared, lver=claim.lver)
        return claim

    def _wait_until_free(self, *, told_by_leader: bool) -> Procedure[None]:
        """Until the leader is written free, or for a while (``EmbeddedManager.wait_until_free``).

        A lease that is held shared has a free leader all the time; for it only time can pass.
        """
        world, task = self.machine.world, self.task
        assert task is not None
        if told_by_leader:
            world.waiters[self.number][task] = None
        try:
            yield Wait(self._retry_seconds * world.clockwork.rng.uniform(0.8, 2.0), "the lease")
        finally:
            world.waiters[self.number].pop(task, None)
        longest = 4.0 if told_by_leader else 8.0
        self._retry_seconds = min(self._retry_seconds * 2, longest * self.machine.io_timeout)

    def _give_back(self, claim: Claim) -> Procedure[None]:
        machine, task = self.machine, self.task
        assert task is not None
        claim.process_gone(in_peace=True)
        by_daemon = machine.world.clockwork.random() < 0.4
        if by_daemon or claim.is_locked():
            self._leave_to_daemon()
            return
        try:
            state = machine.require_live()
            task.guard = machine.guard_of(state.generation)
            converting = claim.state != HELD
            claim.worker, claim.state = task, RELEASING
            claimant = machine.claimant(state)
            if converting:
                yield from retract(claimant, claim.lease)
            else:
                yield from release(claimant, claim.lease, lver=claim.lver, shared=claim.shared)
            yield from confirm_released(claimant, claim)
        except (LeaseLost, OnDiskError) as error:
            machine.world.refused(error)
        except VmlockctlError as error:
            machine.world.refused(error)
            self._leave_to_daemon()
            return
        machine.drop(claim)

    def _leave_to_daemon(self) -> None:
        """The process ends here; its claim, if any, stays."""
        machine, task = self.machine, self.task
        assert task is not None
        claim = machine.claims.get(self.number)
        if claim is None or claim.task is not task:
            return
        if claim.worker is task:
            claim.unlock()
        machine.settle(claim)


def unlock_after(machine: Machine, worker: Optional[Task]) -> float:
    """A worker was killed: when the I/O is over that it may have had on its way."""
    over = 0.0
    for claim in machine.claims.values():
        if worker is not None and claim.worker is worker:
            claim.unlock()
            over = max(over, claim.locked_until)
    return over


def lease_work(machine: Machine) -> Procedure[None]:
    """The lease-working thread: piece by piece until nothing is left to do."""
    while machine.queue:
        kind, claim = machine.queue.popleft()
        try:
            if claim is None:
                assert kind == "verify"
                yield from _verify_all(machine)
            else:
                yield from _settle(machine, claim)
        except VmlockctlError as error:
            machine.world.refused(error)


def _begin_work(machine: Machine) -> Optional[State]:
    if not machine.is_live:
        return None
    try:
        state = machine.require_live()
    except VmlockctlError:
        return None
    assert machine.lease_work is not None
    machine.lease_work.guard = machine.guard_of(state.generation)
    return state


def _verify_all(machine: Machine) -> Procedure[None]:
    state = _begin_work(machine)
    if state is None:
        return
    claims = [claim for claim in machine.claims.values() if claim.state == HELD]
    numbers = {claim.number for claim in claims}
    machine.verified_at = {n: at for n, at in machine.verified_at.items() if n in numbers}
    for claim in claims:
        if claim.is_locked() or claim.state != HELD or machine.claims.get(claim.number) is not claim:
            continue
        claim.worker = machine.lease_work
        try:
            yield from _verify(machine, state, claim)
        finally:
            claim.unlock()


def _verify(machine: Machine, state: State, claim: Claim) -> Procedure[None]:
    now = machine.boottime()
    since = machine.verified_at.setdefault(claim.number, now)
    claimant = machine.claimant(state)
    try:
        yield from verify_held(claimant, claim.lease, lver=claim.lver, shared=claim.shared)
    except (LeaseLost, OnDiskError, NoSuchArea) as error:
        _lost(machine, claim, error)
    except VmlockctlError as error:
        if now - since >= id_renewal_fail_seconds(machine.io_timeout):
            claim.kill(hard=True)
        if isinstance(error, IoTimeout):
            raise
    else:
        machine.verified_at[claim.number] = now


def _lost(machine: Machine, claim: Claim, error: VmlockctlError) -> None:
    machine.world.refused(error)
    machine.world.counts["leases lost"] += 1
    machine.world.clockwork.note(machine, f"lease of resource {claim.number} lost: {error.message}")
    claim.kill(hard=True)


def _settle(machine: Machine, claim: Claim) -> Procedure[None]:
    state = _begin_work(machine)
    if state is None or machine.claims.get(claim.number) is not claim:
        return
    if not claim.task.dead and claim.state != CONVERTING:
        return
    clockwork, boots = machine.world.clockwork, machine.boots

    def again() -> None:
        if machine.boots == boots and machine.powered and machine.claims.get(claim.number) is claim:
            machine.settle(claim)

    if claim.is_locked():
        clockwork.call(max(0.2, claim.locked_until - clockwork.now), again)
        return
    claim.worker = machine.lease_work
    claimant = machine.claimant(state)
    try:
        if claim.state == CONVERTING and not claim.task.dead:
            try:
                yield from back_to_shared(claimant, claim)
            except LeaseLost as error:
                _lost(machine, claim, error)
            return
        if claim.state == HELD:
            claim.state = RELEASING
            yield from release(claimant, claim.lease, lver=claim.lver, shared=claim.shared)
        else:
            yield from retract(claimant, claim.lease)
        yield from confirm_released(claimant, claim)
    except (LeaseLost, NoSuchArea) as error:
        machine.world.refused(error)
    except VmlockctlError:
        clockwork.call(id_renewal_seconds(machine.io_timeout), again)
        raise
    finally:
        claim.unlock()
    machine.drop(claim)
