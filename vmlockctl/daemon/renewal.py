"""Keeps one host lease: joins, renews, observes the others, and says when the lease is lost.

One thread per lockspace; each of its I/Os has a deadline, so a hung mount stops only itself. It
decides nothing about processes: it says ``lost``, and joins again when the supervisor has seen
every claimed process gone.

A daemon that was killed is continued in the *same generation* by its successor if and only if the boot is
the same, less than ``8 × io_timeout`` of CLOCK_BOOTTIME has passed since the last good renewal began, and the
record on the disk is one that this host wrote or tried to write.
"""

from __future__ import annotations

import threading

from vmlockctl import clock
from vmlockctl.daemon.claims import ClaimStore
from vmlockctl.daemon.hoststate import (
    JOINING,
    LEAVING,
    LEFT,
    LIVE,
    LOST,
    HostState,
    LockspaceDir,
    Membership,
)
from vmlockctl.errors import HostLeaseLost, StorageError, VmlockctlError
from vmlockctl.host.process import boot_id
from vmlockctl.host.rundir import FileLock
from vmlockctl.lease.delta import identify_lockspace, join, leave, occupied_records, renew
from vmlockctl.lease.liveness import NEVER_OBSERVED, observe
from vmlockctl.lease.request import hosts_asking
from vmlockctl.lease.timeouts import id_renewal_seconds, id_renewal_warn_seconds, renewal_retry_seconds
from vmlockctl.log import ERROR, WARNING, log
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from vmlockctl.lease.steps import WriteSector

_REJOIN_RETRY_SECONDS = 5.0


class _Stopped(Exception):
    """The daemon ends, or this host leaves the lockspace."""


def log_write(step: WriteSector, disk: str = "") -> None:
    """The one line that every on-disk write leaves; with the disk of a lease where it is known."""
    place = f"{step.area.path}:{step.area.byte_offset(step.sector)}"
    log(f"write {place} {len(step.data)} bytes: {step.what}{f' of {safe(disk)}' if disk else ''}")


def joined_state(membership: Membership, lease_record: bytes, generation: int, area_sizes: tuple[int, int],
                 renewed_at: float) -> HostState:  # fmt: skip
    """host.json right after a join."""
    return HostState(membership, LIVE, generation, *area_sizes, lease_record.hex(), (), renewed_at, boot_id())


def _why_uncertain(state: HostState) -> str:
    """Why a host lease that an earlier daemon had is not continued."""
    if not state.is_this_boot:
        return "reboot"
    if state.state == LEAVING:
        return "the daemon ended before it had left the lockspace"
    return "no renewal in time before this daemon started"


class Renewal:
    """The renewing thread of one lockspace."""

    def __init__(
        self,
        directory: LockspaceDir,
        membership: Membership,
        *,
        earlier_instance_gone: bool,
        on_change: Callable[[], None],
        on_joined: Callable[[Membership], None],
    ) -> None:
        self.directory = directory
        self.membership = membership
        self.name = membership.name
        self.kill_at_once = False  # somebody else has our host id, or may have: no time for SIGTERM
        self._earlier_instance_gone = earlier_instance_gone
        self._on_change = on_change
        self._on_joined = on_joined
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._leave = False
        self._all_gone = threading.Event()
        self.asked_by: list[int] = []  # hosts that want us to look at the requests for what we hold
        self._state = directory.read_state()
        self._attempt_started = 0.0
        self._driver = Driver(
            take_late_reads=True,
            guard=self._guard,
            journal=self._journal,
            on_write=log_write,
            on_wait=self._pause,
        )
        self._host_lock = FileLock(directory.host_lock_path)
        self.thread = threading.Thread(target=self._run, name=f"renewal {self.name}", daemon=True)

    # -- what the supervisor asks ------------------------------------------------------------------

    @property
    def state(self) -> Optional[HostState]:
        return self._state

    @property
    def is_lost(self) -> bool:
        return self._state is not None and self._state.state == LOST

    @property
    def is_live(self) -> bool:
        return self._state is not None and self._state.state == LIVE

    def expires_in(self) -> float:
        """Seconds until our host lease expires; infinite where there is none to expire."""
        state = self._state
        if state is None or state.state != LIVE:
            return float("inf")
        return state.expires_at - clock.boottime()

    def lose(self, reason: str, *, kill_at_once: bool = False) -> None:
        """Declare the host lease lost, once. Nothing is written under this generation any more."""
        with self._mutex:
            if self._state is None or self._state.state == LOST:
                return
            self.kill_at_once = kill_at_once
            self._all_gone.clear()
            self._set(self._state._replace(state=LOST, problem=reason))
        log(f"{self.membership.target}: host lease lost: {reason}", ERROR)
        self._on_change()

    def all_processes_gone(self) -> None:
        """Every process that relied on the lost host lease was seen to be gone."""
        self._all_gone.set()

    def leave(self) -> bool:
        """Stop, and give the host id back if we have it. False, and all stays, while leases are held.

        A command has written its claim before it asks whether the host lease is live, and it asks before
        each write; we say that we leave before we look at the claims. So one of the two sees the other.
        """
        with self._mutex:
            state = self._state
            if state is not None and state.state == LIVE and not self._say_leaving(state):
                return False
            self._leave = True
        self._stop.set()
        self._all_gone.set()
        return True

    def _say_leaving(self, state: HostState) -> bool:
        try:
            self.directory.write_state(state._replace(state=LEAVING))
        except VmlockctlError as error:
            log(f"{self.membership.target}: cannot leave: {error.message}", WARNING)
            return False
        if ClaimStore(self.directory.claims_path).all():
            self._set(state)
            return False
        self._state = state._replace(state=LEAVING)
        return True

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._lock_host()
            self._state = self.directory.read_state()  # another thread may have left meanwhile
            while True:
                self._cycle()
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave VMs unprotected
            log(f"{self.membership.target}: renewal failed: {type(error).__name__}: {error}", ERROR)
            self.lose(f"internal error: {error}")
        finally:
            self._host_lock.release()
            self._on_change()

    def _lock_host(self) -> None:
        """Hold ``host.lock`` as long as this thread lives, however often that takes."""
        while not self._host_lock.is_held:
            try:
                self._host_lock.acquire()
            except VmlockctlError as error:
                log(f"{self.membership.target}: {error.message}", WARNING)
                self._pause(renewal_retry_seconds(), "locking again")

    def _cycle(self) -> None:
        """One life of a host lease: continue or join, renew until it is lost, wait for the VMs' end."""
        with self._mutex:
            state, told_to_leave = self._state, self._leave
        if told_to_leave:  # while a renewal was on its way
            self._stop.wait()
            self._finish()
        if state is None or state.state == LEFT:
            self._join_until_joined()
        elif state.state == LIVE and state.is_certain(clock.boottime()):
            log(f"{self.membership.target}: continuing generation {state.generation}")
        elif state.state != LOST:
            self.lose(_why_uncertain(state))
        if self.is_lost:
            self._all_gone.wait()
            if self._stop.is_set():
                raise _Stopped
            self._earlier_instance_gone = True
            self._join_until_joined()
        self._on_change()
        self._renew_until_lost()

    def _join_until_joined(self) -> None:
        told = ""
        while True:
            try:
                self._join()
                return
            except VmlockctlError as error:
                if error.message != told:
                    log(f"{self.membership.target}: cannot join: {error.message}", WARNING)
                told = error.message
                if self._state is not None:
                    self._set(self._state._replace(problem=f"cannot join: {error.message}"))
            self._driver.close()
            self._pause(_REJOIN_RETRY_SECONDS, "joining again")

    def _join(self) -> None:
        member = self.membership
        lockspace = self._driver.run(
            identify_lockspace(
                member.path, member.offset, space_name=member.name, io_timeout=member.io_timeout
            )
        )
        geometry = lockspace.area.geometry
        before = self._state
        waiting = HostState(
            member, JOINING, before.generation if before else 0, *geometry, "", (), 0.0, boot_id()
        )
        self._set(waiting)
        lease = self._driver.run(
            join(
                lockspace,
                host_id=member.host_id,
                host_name=member.host_name,
                io_timeout=member.io_timeout,
                earlier_instance_gone=self._earlier_instance_gone,
            )
        )
        with self._mutex:
            joined = joined_state(
                member, lease.record.to_bytes(), lease.generation, geometry, self._attempt_started
            )
            self._set(joined._replace(state=LEAVING) if self._leave else joined)
        self._earlier_instance_gone = False
        if not self._leave:
            self._on_joined(member)
        log(f"{member.target}: joined as host id {member.host_id} generation {lease.generation}")

    def _renew_until_lost(self) -> None:
        delay = 0.0
        while True:
            self._pause(delay, "the next renewal")
            state = self._state
            if state is None or state.state != LIVE:
                return
            if not state.is_certain(clock.boottime()):
                self.lose(state.problem or "no good renewal in time")
                return
            started = clock.boottime()
            try:
                bits = set(self.directory.bits())
                others = bits - {state.membership.host_id}  # one's own bit is never set on the disk (1.4)
                lease, image = self._driver.run(renew(state.lease, expected=state.expected, set_bits=others))
            except HostLeaseLost as error:
                self.lose(error.message, kill_at_once=True)
                return
            except VmlockctlError as error:
                delay = renewal_retry_seconds()
                self._note_failure(error)
                continue
            finally:
                self._driver.close()  # the next renewal opens by path: a replaced file shows
            file = self._driver.file_of(state.membership.path)
            if state.file not in ((), file):
                # Every byte may be the same: the others look for us in the file that they have open.
                self.lose(f"{state.membership.path}: another file is there now", kill_at_once=True)
                return
            self.asked_by = hosts_asking(lease.area, image, lease.host_id) + sorted(bits - others)
            with self._mutex:
                if self._state is None or self._state.state != LIVE:
                    return  # lost while the write was on its way: it counts for nothing
                record = lease.record.to_bytes().hex()
                self._set(
                    self._state._replace(
                        record=record, attempts=(), renewed_at=started, problem="", file=file
                    )
                )
            self._observe(image)
            self._on_change()
            delay = max(0.0, started + id_renewal_seconds(state.membership.io_timeout) - clock.boottime())

    def _note_failure(self, error: VmlockctlError) -> None:
        with self._mutex:
            state = self._state
            if state is None or state.state != LIVE:
                return
            age = clock.boottime() - state.renewed_at
            urgent = age >= id_renewal_warn_seconds(state.membership.io_timeout)
            if urgent or state.problem != error.message:
                what = f"renewal failed, {age:.0f} s since the last good one: {error.message}"
                log(f"{self.membership.target}: {what}", ERROR if urgent else WARNING)
            self._set(state._replace(problem=error.message))

    def _observe(self, image: bytes) -> None:
        state = self._state
        assert state is not None
        now = clock.monotonic()
        try:
            rows = self.directory.read_observations()
            for host_id, record in occupied_records(state.lockspace.area, image):
                rows[host_id] = observe(rows.get(host_id, NEVER_OBSERVED), record, now)
            self.directory.write_observations(rows)
        except VmlockctlError as error:
            log(f"{self.membership.target}: {error.message}", WARNING)  # the next cycle writes them

    def _pause(self, seconds: float, _why: str, _left_seconds: float = 0.0) -> None:
        """Every wait of this thread; ends at once when the daemon stops."""
        if self._stop.wait(seconds):
            self._finish()

    def _finish(self) -> None:
        state = self._state
        if state is not None and state.state == JOINING:
            self._set(state._replace(state=LOST, problem="told to leave before the join was complete"))
        if state is not None and state.state == LEAVING:
            try:
                self._driver.run(leave(state.lease, expected=state.expected))
                self._set(state._replace(state=LEFT))
                log(f"{self.membership.target}: left, host id {state.membership.host_id} is free")
            except VmlockctlError as error:
                log(f"{self.membership.target}: cannot leave: {error.message}", WARNING)
                self._set(state._replace(state=LOST, problem=error.message))
        raise _Stopped

    # -- what the driver asks before and tells after its writes ---------------------------------------

    def _guard(self) -> None:
        state = self._state
        self._attempt_started = clock.boottime()
        if state is not None and state.state == LIVE and not state.is_certain(self._attempt_started):
            raise HostLeaseLost("the host lease expired before it could be renewed")
        if state is not None and state.state == LOST:
            raise StorageError("the host lease is lost")

    def _journal(self, record: bytes) -> None:
        """What cannot be written down is not written to the disk: a successor would not know it as ours."""
        with self._mutex:
            state = self._state
            assert state is not None
            state = state._replace(attempts=(*state.attempts, record.hex()))
            self.directory.write_state(state)
            self._state = state

    def _set(self, state: HostState) -> None:
        """Our state from now on, and in host.json; where that fails, the next journal brings it there.

        Until then host.json tells of a renewal too few, so that nobody relies on one too many; and a loss
        that it does not tell of is found out by its readers on the disk, or when it expires. No VM is
        stopped for it as long as the journal can be written in time.
        """
        self._state = state
        try:
            self.directory.write_state(state)
        except VmlockctlError as error:
            log(f"{self.membership.target}: {error.message}", WARNING)
