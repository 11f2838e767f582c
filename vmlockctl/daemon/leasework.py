"""The daemon's work on paxos leases: look again at what is held, release what nobody uses, settle
what a dead command left half-made.

One thread per lockspace, beside the renewals, so that a slow resource never delays them. Each piece of
work holds the claim's lock: a command and the daemon never work on one lease at the same time.
"""

from __future__ import annotations

import os
import queue
import threading

from vmlockctl import clock
from vmlockctl.daemon.claims import ACQUIRING, CONVERTING, HELD, RELEASING, Claim, ClaimStore, takers_over
from vmlockctl.daemon.confirm import confirm_released
from vmlockctl.daemon.renewal import log_write
from vmlockctl.errors import (
    HostLeaseLost,
    IoTimeout,
    LeaseLost,
    NoSuchArea,
    NotJoined,
    OnDiskError,
    VmlockctlError,
)
from vmlockctl.host.openers import find_openers
from vmlockctl.host.process import Process, is_alive
from vmlockctl.lease.convert import back_to_shared
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.request import pending_request
from vmlockctl.lease.resource import names_us, verify_held
from vmlockctl.lease.timeouts import id_renewal_fail_seconds, id_renewal_seconds, set_bitmap_seconds
from vmlockctl.log import ERROR, WARNING, log
from vmlockctl.ondisk.request import FORCE
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from vmlockctl.daemon.hoststate import HostState, LockspaceDir
    from vmlockctl.host.rundir import FileLock
    from vmlockctl.lease.steps import WriteSector

_VERIFY = "verify"
_EXAMINE = "examine"
_SETTLE = "settle"
_STOP = "stop"
_REAP_SECONDS = 0.2


class LeaseWork:
    """The lease-working thread of one lockspace."""

    def __init__(
        self,
        directory: LockspaceDir,
        *,
        on_lost: Callable[[Claim, str], None],
        on_requested: Callable[..., None],
        on_change: Callable[[], None],
    ) -> None:
        self.claims = ClaimStore(directory.claims_path)
        self._directory = directory
        self._on_lost = on_lost
        self._on_requested = on_requested
        self._heeded: dict[tuple[str, int, int], float] = {}  # resource, lver, force_mode -> when
        self._asked_by: list[int] = []
        self._on_change = on_change
        self._tasks: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._verified_at: dict[str, float] = {}
        self._generation = 0
        self._kept: list[tuple[FileLock, str]] = []  # claims whose leases have an I/O in flight
        self._driver = Driver(guard=self._guard, on_write=self._log_write)
        self.thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def verify_all(self) -> None:
        """Look at every held lease again: once in each renewal cycle."""
        if _VERIFY not in self._queued:
            self._queued.add(_VERIFY)
            self._tasks.put((_VERIFY, ""))

    def examine(self, asked_by: list[int]) -> None:
        """Look at the requests for what is held: another host has set our bit."""
        self._asked_by = asked_by
        if _EXAMINE not in self._queued:
            self._queued.add(_EXAMINE)
            self._tasks.put((_EXAMINE, ""))

    def settle(self, resource: str) -> None:
        """Bring a claim that nobody works on to its end; harmless when there is nothing to do."""
        if resource not in self._queued and clock.monotonic() >= self._retry_at.get(resource, 0.0):
            self._queued.add(resource)
            self._tasks.put((_SETTLE, resource))

    def stop(self) -> None:
        self._tasks.put((_STOP, ""))

    def _run(self) -> None:
        while True:
            try:
                kind, resource = self._tasks.get(timeout=_REAP_SECONDS if self._kept else None)
            except queue.Empty:
                self._let_go_of_kept()
                continue
            self._queued.discard(resource or kind)
            if kind == _STOP:
                return
            try:
                if kind == _VERIFY:
                    self._verify_all()
                elif kind == _EXAMINE:
                    self._examine_all()
                else:
                    self._settle(resource)
            except VmlockctlError as error:
                log(f"{self._label(resource)}{error.message}", WARNING)
            except Exception as error:  # noqa: BLE001 - one lease must not end the work on all others
                log(f"{self._label(resource)}internal error: {type(error).__name__}: {error}", ERROR)
            finally:
                self._driver.close()

    def _label(self, resource: str) -> str:
        """How a log line about one lease begins; "" for work on all of them."""
        return f"{resource}: {safe(self.claims.disk_of(resource))}: " if resource else ""

    def _log_write(self, step: WriteSector) -> None:
        log_write(step, self.claims.disk_of(os.path.basename(step.area.path)))

    def _live_state(self) -> Optional[HostState]:
        try:
            state = self._directory.require_live()
        except (HostLeaseLost, NotJoined):
            return None
        self._generation = state.generation
        return state

    def _guard(self) -> None:
        self._directory.guard(self._generation)

    def _let_go(self, resource: str, lock: FileLock, *, unlink: bool = False) -> None:
        """Unlock a claim, unless an I/O of ours on its lease is still on its way.

        A timed-out write may still land (design rule 4): no command may touch the sectors before it has.
        """
        claim = self.claims.read(resource)
        if claim is not None and self._driver.hangs(claim.path):
            self._kept.append((lock, claim.path))
        else:
            lock.release(unlink=unlink)

    def _let_go_of_kept(self) -> None:
        for lock, path in self._kept:
            if not self._driver.hangs(path):
                lock.release()
        self._kept = [(lock, path) for lock, path in self._kept if lock.is_held]

    # -- looking again -----------------------------------------------------------------------------

    def _verify_all(self) -> None:
        state = self._live_state()
        if state is None:
            return
        resources = [claim.resource for claim in self.claims.all() if claim.state == HELD]
        self._verified_at = {r: at for r, at in self._verified_at.items() if r in resources}
        for resource in resources:
            lock = self.claims.lock(resource)
            if not lock.try_acquire():
                continue  # a command works on it, under the guard of our host lease
            try:
                claim = self.claims.read(resource)
                if claim is not None and claim.state == HELD and claim.generation == state.generation:
                    self._verify(state, claim)
            finally:
                self._let_go(resource, lock)

    def _verify(self, state: HostState, claim: Claim) -> None:
        now = clock.boottime()
        since = self._verified_at.setdefault(claim.resource, now)
        procedure = verify_held(
            self._directory.claimant(state), claim.lease, lver=claim.lver, shared=claim.is_shared
        )
        try:
            self._driver.run(procedure)
        except (LeaseLost, OnDiskError, NoSuchArea) as error:
            self._on_lost(claim, error.message)
        except VmlockctlError as error:
            log(f"{claim.label}: cannot look at the lease: {error.message}", WARNING)
            if now - since >= id_renewal_fail_seconds(state.membership.io_timeout):
                self._on_lost(claim, f"not seen for {now - since:.0f} s: {error.message}")
            if isinstance(error, IoTimeout):
                raise
        else:
            self._verified_at[claim.resource] = now
            if claim.file not in ((), self._driver.file_of(claim.path)):
                # A copy, to the byte: whoever has the old file open may win a ballot there.
                self._on_lost(claim, f"{claim.path}: another file is there now")

    # -- requests ------------------------------------------------------------------------------------

    def _examine_all(self) -> None:
        """Only what is held exclusively, and by a process (12.2-i); reading needs no lock."""
        state = self._live_state()
        if state is None:
            return
        seconds, now = set_bitmap_seconds(state.membership.io_timeout), clock.monotonic()
        self._heeded = {key: at for key, at in self._heeded.items() if now - at < seconds}
        for claim in self.claims.all():
            if claim.state != HELD or claim.is_shared or claim.generation != state.generation:
                continue
            procedure = pending_request(self._directory.claimant(state), claim.lease, lver=claim.lver)
            try:
                found = self._driver.run(procedure)
            except OnDiskError as error:
                log(f"{claim.label}: cannot look at the request: {error.message}", WARNING)
                continue
            key = (claim.resource, found.lver, found.force_mode) if found is not None else None
            if found is not None and key is not None and key not in self._heeded:
                self._heeded[key] = now
                force = found.force_mode == FORCE
                who = ", ".join(str(host_id) for host_id in self._asked_by)
                kind = "force" if force else "graceful"
                self._on_requested(claim, f"requested ({kind}) by host id {who}", force=force)

    # -- settling ----------------------------------------------------------------------------------

    def _settle(self, resource: str) -> None:
        state = self._live_state()
        if state is None:
            return
        lock = self.claims.lock(resource)
        if not lock.try_acquire():
            self._retry_at[resource] = clock.monotonic() + 0.2
            return
        settled = False
        try:
            claim = self.claims.read(resource)
            settled = (
                claim is None or claim.generation != state.generation or self._settle_claim(state, claim)
            )
            self._retry_at.pop(resource, None)
        except VmlockctlError:
            self._retry_at[resource] = clock.monotonic() + id_renewal_seconds(state.membership.io_timeout)
            raise
        finally:
            self._let_go(resource, lock, unlink=settled and self.claims.read(resource) is None)
            self._on_change()

    def _settle_claim(self, state: HostState, claim: Claim) -> bool:
        """Return whether the claim has come to its end and its file is removed."""
        alive = tuple(process for process in claim.processes if is_alive(process))
        if claim.state == HELD and alive:
            if alive != claim.processes:
                self.claims.write(claim._replace(processes=alive))
            return False
        if claim.state == CONVERTING and alive:
            try:
                self._driver.run(back_to_shared(self._directory.claimant(state), claim.lease))
            except LeaseLost as error:
                self._on_lost(claim, error.message)
                return False
            log(f"{claim.label}: a conversion was not finished; the lease is shared")
            self.claims.write(claim._replace(state=HELD, processes=alive, command=None))
            return False
        others = tuple(takers_over(claim))
        users = alive if claim.state == ACQUIRING and self._has_disk_open(claim, alive) else ()
        users += others
        if users and self._keep(state, claim, users):
            return False
        self._give_back(state, claim)
        return True

    def _has_disk_open(self, claim: Claim, processes: tuple[Process, ...]) -> bool:
        if claim.identity is None or not processes:
            return False
        found = find_openers([claim.identity]).openers.get(claim.identity, [])
        pids = {process.pid for process in processes}
        return any(opener.pid in pids and (opener.writable or claim.is_shared) for opener in found)

    def _keep(self, state: HostState, claim: Claim, users: tuple[Process, ...]) -> bool:
        """Move the claim to processes that use the disk now, if the lease is (still) ours."""
        if claim.state != HELD and not claim.is_shared:
            leader = self._driver.run(names_us(self._directory.claimant(state), claim.lease))
            if leader is None:
                return False
            claim = claim._replace(lver=leader.lver)
        elif claim.state != HELD:
            return False
        pids = ", ".join(str(process.pid) for process in users)
        log(f"{claim.label} is still open: the claim moves to process {pids}")
        self.claims.write(claim._replace(state=HELD, processes=users, command=None))
        return True

    def _give_back(self, state: HostState, claim: Claim) -> None:
        """Release or retract on the disk, then forget the claim: in this order."""
        claimant = self._directory.claimant(state)
        if claim.state == HELD:
            self.claims.write(claim._replace(state=RELEASING))
            procedure = release(claimant, claim.lease, lver=claim.lver, shared=claim.is_shared)
        else:
            procedure = retract(claimant, claim.lease)
        try:
            self._driver.run(procedure)
            confirm_released(self._driver, claimant, claim)
            log(f"{claim.resource}: released {safe(claim.disk)}: no process uses it any more")
        except LeaseLost as error:
            log(f"{claim.label}: nothing to release: {error.message}", WARNING)
        except NoSuchArea as error:
            log(f"{claim.label}: the lease is gone from the storage: {error.message}", WARNING)
        self.claims.remove(claim.resource)
