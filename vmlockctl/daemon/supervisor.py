"""Watches every claimed process, and stops them all when a host lease is lost.

The main thread of the daemon. It touches nothing but local files, pidfds and timers, so that storage
that hangs can never keep it from stopping a VM: at ``8 × io_timeout`` after the start of the last good
renewal SIGTERM, and SIGKILL after the grace time; at once where somebody else may be writing already.
A process is stopped when it is *seen to be gone*; until then its host id is not joined again.
"""

from __future__ import annotations

import os
import select
import signal

from vmlockctl import clock
from vmlockctl.daemon.claims import ACQUIRING, HELD, Claim, ClaimStore
from vmlockctl.daemon.hoststate import LockspaceDir, Membership
from vmlockctl.daemon.leasework import LeaseWork
from vmlockctl.daemon.memberships import Memberships
from vmlockctl.daemon.renewal import Renewal
from vmlockctl.host.process import Process, open_pidfd, send
from vmlockctl.log import ERROR, WARNING, log
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from vmlockctl.host.rundir import RunDir

TICK_SECONDS = 1.0
_BUSY_TICK_SECONDS = 0.1
_STUCK_SECONDS = 10.0


class _Killing(NamedTuple):
    """The last signal that was logged for a process, and when (CLOCK_BOOTTIME)."""

    signal_number: int
    told_at: float


class Watches:
    """A pidfd for every claimed process; one that is readable is gone, last thread and all."""

    def __init__(self) -> None:
        self._fds: dict[Process, int] = {}
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake_read, select.POLLIN)

    def wake(self) -> None:
        """From any thread, or a signal handler: end the poll now."""
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass

    def watch(self, process: Process) -> bool:
        """Begin to watch, if need be. False: it is gone already."""
        if process in self._fds:
            return True
        try:
            fd = open_pidfd(process)
        except PermissionError:
            return True  # it is there, and not ours to look at
        if fd is None:
            return False
        self._fds[process] = fd
        self._poll.register(fd, select.POLLIN)
        return True

    def wait(self, timeout_seconds: float) -> list[Process]:
        """Processes that have ended, at the latest after the timeout; they are watched no more."""
        ready = {fd for fd, _ in self._poll.poll(max(0.0, timeout_seconds) * 1000)}
        if self._wake_read in ready:
            try:
                while os.read(self._wake_read, 4096):
                    pass
            except BlockingIOError:
                pass
        ended = [process for process, fd in self._fds.items() if fd in ready]
        for process in ended:
            self.forget(process)
        return ended

    def forget(self, process: Process) -> None:
        fd = self._fds.pop(process, -1)
        if fd >= 0:
            self._poll.unregister(fd)
            os.close(fd)

    def send(self, process: Process, signal_number: int) -> None:
        fd = self._fds.get(process, -1)
        if fd >= 0:
            try:
                send(fd, signal_number)
            except PermissionError:
                log(f"process {process.pid}: not permitted to send signal {signal_number}", ERROR)


class Keeper:
    """One lockspace: its renewals, its lease work, and what happens to its processes."""

    def __init__(
        self,
        directory: LockspaceDir,
        membership: Membership,
        watches: Watches,
        *,
        grace_seconds: float,
        earlier_instance_gone: bool,
        on_joined: Callable[[Membership], None],
    ) -> None:
        self.directory = directory
        self.membership = membership
        self.claims = ClaimStore(directory.claims_path)
        self._watches = watches
        self._grace_seconds = grace_seconds
        self.renewal = Renewal(
            directory,
            membership,
            earlier_instance_gone=earlier_instance_gone,
            on_change=watches.wake,
            on_joined=on_joined,
        )
        self.work = LeaseWork(
            directory,
            on_lost=self._lease_lost,
            on_requested=self._lease_requested,
            on_change=self._claims_changed,
        )
        self._version = -1
        self._claims: list[Claim] = []
        self._unsettled: set[str] = set()
        self._lost_since: Optional[float] = None
        self._killing: dict[Process, _Killing] = {}
        self._everything_stopped = False
        self._doomed: dict[str, str] = {}  # resource -> why its process must end now
        self._requested: list[Claim] = []  # whose processes are asked to end, once
        self._verified_renewal = 0.0
        self.renewal.thread.start()
        self.work.thread.start()

    def processes(self) -> set[Process]:
        return {process for claim in self._claims for process in _involved(claim)}

    def deadline_in(self) -> float:
        """Seconds until this keeper must act whatever happens."""
        if self._unsettled or self._doomed or (self.renewal.is_lost and not self._everything_stopped):
            return _BUSY_TICK_SECONDS
        return self.renewal.expires_in()

    def tick(self, ended: list[Process]) -> None:
        """Look at everything once; local files only."""
        if self.renewal.expires_in() <= 0:
            self.renewal.lose("no good renewal in time")
        version = self.claims.version()
        if version != self._version or ended or self._unsettled or self.renewal.is_lost:
            self._version = version
            self._rescan()
        if self.renewal.is_lost:
            self._stop_everything()
            return
        self._lost_since = None
        self._kill_doomed()
        self._pass_on_requests()
        self._ask_for_verification()

    def _rescan(self) -> None:
        self._claims = self.claims.all()
        self._unsettled = set()
        for claim in self._claims:
            gone = [process for process in _involved(claim) if not self._watches.watch(process)]
            unused = not set(claim.processes) - set(gone)
            abandoned = claim.state != HELD and (claim.command is None or claim.command in gone)
            if (gone and claim.state == HELD) or unused or abandoned:
                self._unsettled.add(claim.resource)
                self.work.settle(claim.resource)
        self._doomed = {
            resource: why
            for resource, why in self._doomed.items()
            if any(claim.resource == resource for claim in self._claims)
        }

    def _ask_for_verification(self) -> None:
        state = self.renewal.state
        if state is not None and self.renewal.is_live and state.renewed_at != self._verified_renewal:
            self._verified_renewal = state.renewed_at
            self.work.verify_all()
            if self.renewal.asked_by:
                self.work.examine(self.renewal.asked_by)

    # -- one lease is lost ---------------------------------------------------------------------------

    def _lease_lost(self, claim: Claim, reason: str) -> None:
        """Called by the lease-working thread."""
        if claim.resource not in self._doomed:
            log(f"{claim.resource}: lease of {safe(claim.disk)} lost: {reason}", ERROR)
        self._doomed[claim.resource] = reason
        self._watches.wake()

    def _lease_requested(self, claim: Claim, reason: str, *, force: bool) -> None:
        """Called by the lease-working thread."""
        log(f"{claim.label}: {reason}", WARNING)
        if force:
            self._doomed[claim.resource] = reason
        else:
            self._requested.append(claim)
        self._watches.wake()

    def _pass_on_requests(self) -> None:
        asked, self._requested = self._requested, []
        for claim in asked:
            for process in claim.processes:
                self._killing.pop(process, None)  # a request that is repeated is told again
                self._kill(process, signal.SIGTERM)

    def _claims_changed(self) -> None:
        self._version = -1
        self._watches.wake()

    def _kill_doomed(self) -> None:
        for claim in self._claims:
            if claim.resource in self._doomed:
                for process in claim.processes:
                    self._kill(process, signal.SIGKILL)

    # -- the host lease is lost ------------------------------------------------------------------------

    def _stop_everything(self) -> None:
        """SIGTERM, after the grace time SIGKILL, until every process is seen to be gone."""
        now = clock.boottime()
        if self._lost_since is None:
            self._lost_since = now
            self._killing = {}
            self._everything_stopped = False
        waited = now - self._lost_since
        hard = self.renewal.kill_at_once or waited >= self._grace_seconds
        left = [process for process in self._victims() if self._watches.watch(process)]
        for process in left:
            self._kill(process, signal.SIGKILL if hard else signal.SIGTERM)
        if not left and self._forget_claims():
            self._everything_stopped = True
            self.renewal.all_processes_gone()

    def _forget_claims(self) -> bool:
        """Drop the claims of a lost host lease; False while somebody still holds the lock of one."""
        for claim in self.claims.all():
            lock = self.claims.lock(claim.resource)
            if not lock.try_acquire():
                return False
            self.claims.remove(claim.resource)
            lock.release(unlink=True)
            log(f"{claim.label}: its processes are gone, its lease is left to expire")
        return True

    def _victims(self) -> set[Process]:
        """Whoever may write: processes with a lease, and commands inside a ballot."""
        victims: set[Process] = set()
        for claim in self._claims:
            if claim.state != ACQUIRING:
                victims.update(claim.processes)
            if claim.command is not None:
                victims.add(claim.command)
        return victims

    def _kill(self, process: Process, signal_number: int) -> None:
        now = clock.boottime()
        before = self._killing.get(process)
        if before is None or before.signal_number != signal_number:
            log(f"process {process.pid}: {signal.Signals(signal_number).name}", WARNING)
            self._killing[process] = _Killing(signal_number, now)
        elif now - before.told_at >= _STUCK_SECONDS:
            log(f"process {process.pid} survives, stuck in the kernel; its lease is not released", ERROR)
            self._killing[process] = _Killing(signal_number, now)
        self._watches.send(process, signal_number)


def _involved(claim: Claim) -> list[Process]:
    return [*claim.processes, claim.command] if claim.command is not None else list(claim.processes)


class Supervisor:
    """All lockspaces of one run directory."""

    def __init__(self, run_dir: RunDir, *, grace_seconds: float) -> None:
        self._run_dir = run_dir
        self._grace_seconds = grace_seconds
        self._memberships = Memberships(run_dir)
        self._version = -1
        self.watches = Watches()
        self.keepers: dict[str, Keeper] = {}

    def tick(self) -> None:
        """Wait for the next event, at most one tick, and act on it."""
        if self._memberships.version() != self._version:
            self._version = self._memberships.version()
            self._follow_memberships()
        timeout = min([TICK_SECONDS, *(keeper.deadline_in() for keeper in self.keepers.values())])
        ended = self.watches.wait(timeout)
        for keeper in self.keepers.values():
            try:
                keeper.tick(ended)
            except Exception as error:  # noqa: BLE001 - one lockspace must not end the watch of the others
                log(f"{keeper.membership.target}: internal error: {type(error).__name__}: {error}", ERROR)

    def has_claims(self) -> bool:
        return any(keeper.claims.all() for keeper in self.keepers.values())

    def stop(self) -> bool:
        """Leave every lockspace cleanly; memberships stay. False, and those that were left are joined again,
        when a lease is held in one.
        """
        keepers = list(self.keepers.items())
        if not all(self._leave(target, keeper) for target, keeper in keepers):
            self._version = -1
            return False
        for _, keeper in keepers:
            keeper.renewal.thread.join(keeper.membership.io_timeout * 2)
        return True

    def _follow_memberships(self) -> None:
        wanted = {membership.target: membership for membership in self._memberships.all()}
        for target, membership in wanted.items():
            if target not in self.keepers:
                self._add(target, membership)
        for target in set(self.keepers) - set(wanted):
            keeper = self.keepers[target]
            if not self._leave(target, keeper):
                log(f"{target}: leases are held: this host stays", WARNING)
                self._memberships.add(keeper.membership)

    def _leave(self, target: str, keeper: Keeper) -> bool:
        if not keeper.renewal.leave():
            return False
        keeper.work.stop()
        del self.keepers[target]
        return True

    def _add(self, target: str, membership: Membership) -> None:
        path = self._run_dir.lockspace_dir(membership.name, membership.path, membership.offset)
        self.keepers[target] = Keeper(
            LockspaceDir(path).create(),
            membership,
            self.watches,
            grace_seconds=self._grace_seconds,
            earlier_instance_gone=not self._memberships.joined_this_boot(membership),
            on_joined=self._memberships.add,
        )
