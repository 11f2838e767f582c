"""Leases held by our own daemon: the command acquires directly on the disk, the daemon keeps it.

The order of an acquire makes every crash recoverable: lock the claim, write the claim
(``acquiring``), run the ballot, write the claim (``held``), write the owner note, unlock. A command that
dies anywhere leaves a claim whose lock is free, and the daemon settles it. Nothing is removed from our
records before the disk says so.
"""

from __future__ import annotations

import os

from vmlockctl import __version__, clock
from vmlockctl.daemon.claims import ACQUIRING, EXCLUSIVE, HELD, RELEASING, SHARED, Claim, ClaimStore
from vmlockctl.errors import (
    ContentionError,
    HeldLocally,
    LeaseHeld,
    LeaseLost,
    NotHeld,
    OnDiskError,
    SharedLeaseHeld,
    StorageError,
    VmlockctlError,
)
from vmlockctl.host.openers import Opener, find_openers
from vmlockctl.host.process import Process, boot_id, comm, identify, is_alive
from vmlockctl.host.rundir import FileLock
from vmlockctl.lease.delta import probe
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Claimant, Held, Resource, foreign_owner, names_us, read_note, write_note
from vmlockctl.lease.steps import Area, WriteSector
from vmlockctl.log import WARNING, log, who
from vmlockctl.managers.base import Grant, User, Want
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.leader import Leader
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from vmlockctl.daemon.hoststate import HostState, LockspaceDir

# How long a command waits for the daemon or another command to finish with the same lease.
_LOCK_SECONDS = 5.0
_NOTE_SECONDS = 2.0
_LOOK_SECONDS = 0.03


class EmbeddedManager:
    """Acquires and releases under this host's own host lease."""

    def __init__(self, directory: LockspaceDir) -> None:
        self._directory = directory
        self._store = ClaimStore(directory.claims_path)
        self._generation = 0
        self._driver = Driver(guard=self._guard, on_write=self._log_write)

    def _guard(self) -> None:
        self._directory.guard(self._generation)

    @staticmethod
    def _log_write(step: WriteSector) -> None:
        place = f"{step.area.path}:{step.area.byte_offset(step.sector)}"
        log(f"write {place} {len(step.data)} bytes: {step.what} by {who()}")

    # -- acquire -----------------------------------------------------------------------------------

    def acquire(self, wants: Sequence[Want], user: User, *, expect_lver: Optional[int] = None) -> list[Grant]:
        """All of the leases or none. In the order of their names: two commands never deadlock."""
        granted: list[Grant] = []
        fresh: list[Grant] = []
        state = self._directory.require_live()
        self._generation = state.generation
        try:
            self._refuse_openers(state, wants, user.process)
            for want in sorted(wants):
                grant, is_fresh = self._acquire_one(state, want, user, expect_lver)
                granted.append(grant)
                if is_fresh:
                    fresh.append(grant)
        except BaseException:
            # Only what this command took: the process may have held, and use, the others before.
            for grant in reversed(fresh):
                self._undo(grant, user.process)
            raise
        finally:
            self._driver.close()
        return granted

    def _acquire_one(
        self, state: HostState, want: Want, user: User, expect_lver: Optional[int]
    ) -> tuple[Grant, bool]:
        """One lease, and whether the process did not have it before."""
        with_lock = self._locked(want.resource, want.disk)
        try:
            existing = self._current_claim(state, want.resource)
            if existing is not None:
                joined = self._join_existing(existing, want, user)
                if joined is not None:
                    return joined, user.process not in existing.processes
            claim = Claim(
                resource=want.resource,
                path=want.path,
                offset=want.offset,
                disk=want.disk,
                identity=want.identity,
                mode=SHARED if want.shared else EXCLUSIVE,
                state=ACQUIRING,
                host_id=state.membership.host_id,
                generation=state.generation,
                lver=0,
                processes=(user.process,),
                command=_ourselves(),
                vm=user.vm,
                uuid=user.uuid,
                acquired_at=clock.wall(),
            )
            self._store.write(claim)
            return self._acquire_claimed(state, claim, existing, expect_lver), True
        finally:
            with_lock.release(unlink=self._store.read(want.resource) is None)

    def _acquire_claimed(
        self, state: HostState, claim: Claim, existing: Optional[Claim], expect_lver: Optional[int]
    ) -> Grant:
        """With the claim written: ask the machine, then the disk."""
        claimant = self._directory.claimant(state)
        writes_before = self._driver.write_count
        try:
            self._refuse_local_conflicts(claim)
            if existing is None:
                self._refuse_forgotten_owner(state, claim)
            held = self._driver.run(
                acquire(claimant, claim.lease, shared=claim.is_shared, expect_lver=expect_lver)
            )
        except VmlockctlError as error:
            self._name_vm(claim.lease, error)
            if self._driver.write_count == writes_before or self._retracted(claim, claimant, error):
                self._forget(claim, existing)
            raise
        claim = claim._replace(state=HELD, lver=held.leader.lver, command=None)
        self._store.write(claim)
        self._write_note(claimant, held, claim)
        return _grant(claim)

    def _retracted(self, claim: Claim, claimant: Claimant, error: VmlockctlError) -> bool:
        """Give up a ballot that was not won; False leaves the claim to the daemon to settle."""
        if isinstance(error, StorageError):
            return False  # the outcome is unknown until the storage answers again
        try:
            self._driver.run(retract(claimant, claim.lease))
        except VmlockctlError as second:
            log(f"{claim.resource}: the daemon will settle it: {second.message}", WARNING)
            return False
        return True

    def _forget(self, claim: Claim, existing: Optional[Claim]) -> None:
        if existing is None:
            self._store.remove(claim.resource)
        else:
            self._store.write(existing)

    def _join_existing(self, existing: Claim, want: Want, user: User) -> Optional[Grant]:
        """Another local user of the same lease: share it, or say who has it."""
        users = [process for process in existing.processes if is_alive(process)]
        if existing.state != HELD or not users:
            return None  # left by a dead command or a dead process; the ballot decides
        if existing.is_shared != want.shared or not existing.is_shared:
            if user.process in users and existing.is_shared == want.shared:
                return _grant(existing)
            raise held_by_claim(self._host_name(), existing, want.disk, users)
        if user.process not in users:
            existing = existing._replace(processes=(*users, user.process))
            self._store.write(existing)
        return _grant(existing)

    def _current_claim(self, state: HostState, resource: str) -> Optional[Claim]:
        claim = self._store.read(resource)
        return claim if claim is not None and claim.generation == state.generation else None

    def _refuse_local_conflicts(self, claim: Claim) -> None:
        """Ask this machine by identity, not by name: the same disk claimed, or open, otherwise."""
        if claim.identity is None:
            return
        ours = {process.pid for process in claim.processes} | {os.getpid()}
        for other in self._store.all():
            if other.resource == claim.resource or other.identity != claim.identity:
                continue
            users = [process for process in other.processes if is_alive(process)]
            if all(process.pid in ours for process in users) or (other.is_shared and claim.is_shared):
                continue
            raise held_by_claim(self._host_name(), other, claim.disk, users)

    def _host_name(self) -> str:
        return self._directory.require_live().membership.host_name

    def _refuse_openers(self, state: HostState, wants: Sequence[Want], *users: Process) -> None:
        """Refuse a disk that another process has open for writing: one look at /proc for all disks."""
        disks = {want.identity: want for want in wants if want.identity is not None}
        ours = {process.pid for process in users} | {os.getpid()}
        for identity, openers in find_openers(list(disks), skip=ours).openers.items():
            for opener in openers:
                if opener.writable:
                    raise self._in_use_by(state, disks[identity], opener)

    def _in_use_by(self, state: HostState, want: Want, opener: Opener) -> LeaseHeld:
        """Who is behind an opener: a claim of ours, another host on this machine, or nobody's lease."""
        for claim in self._store.all():
            users = [process for process in claim.processes if process.pid == opener.pid]
            if users and claim.identity == want.identity:
                return held_by_claim(state.membership.host_name, claim, want.disk, users)
        lease = Resource(want.path, want.offset, want.resource)
        owner = self._driver.run(foreign_owner(self._directory.claimant(state), lease))
        if owner is None:
            return _open_without_lease(want.disk, opener)
        error = LeaseHeld(
            f"the lease {want.resource} is held by host {safe(str(owner['host_name']))!r}",
            details={"owners": [owner], "mode": EXCLUSIVE, "state": "unknown"},
        )
        self._name_vm(lease, error)
        return error

    def _refuse_forgotten_owner(self, state: HostState, claim: Claim) -> None:
        """The disk says that this host holds the lease, and our records do not: ask the owner note.

        The records were lost under a running VM, or a command died. A note is no evidence for a
        grant, but a process that it names and that still runs is reason enough to refuse one.
        """
        claimant = self._directory.claimant(state)
        leader = self._driver.run(names_us(claimant, claim.lease))
        if leader is None:
            return
        area = Area(claim.path, claim.offset, leader.geometry)
        note = ownernote.from_bytes(self._driver.run(read_note(area, state.membership.io_timeout)))
        if note is None or not ownernote.is_current(note, leader):
            return
        pid = note.get("pid")
        process = identify(pid) if isinstance(pid, int) and pid > 0 else None
        if (
            process is not None
            and note.get("start_time") == process.start_time
            and note.get("boot_id") == process.boot_id
            and process not in claim.processes
        ):
            raise HeldLocally(
                f"{safe(claim.disk)} is in use by process {pid} ({safe(comm(process.pid))}) of this host, "
                "whose claim was lost",
                hint="stop that process, then try again; 'vmlockctl check-orphans' shows it",
                details={"pid": pid, "vm": note.get("vm"), "disk": claim.disk},
            )

    def _name_vm(self, lease: Resource, error: VmlockctlError) -> None:
        """Add the VM and process that a foreign owner noted; only for people, so only if it is easy."""
        owners = error.details.get("owners", [])
        if not isinstance(error, ContentionError) or len(owners) != 1 or "pid" in owners[0]:
            return
        try:
            head = self._driver.run(probe(lease.path, lease.offset, _NOTE_SECONDS))
            leader = Leader.from_bytes(head)
            area = Area(lease.path, lease.offset, leader.geometry)
            note = ownernote.from_bytes(self._driver.run(read_note(area, _NOTE_SECONDS)))
        except VmlockctlError:
            return
        if note is not None and ownernote.is_current(note, leader):
            owners[0].update({key: note.get(key) for key in ("pid", "vm", "uuid", "acquired_at")})

    def _write_note(self, claimant: Claimant, held: Held, claim: Claim) -> None:
        process = claim.processes[0]
        state = self._directory.require_live()
        note = {
            "disk": claim.disk,
            "vm": claim.vm,
            "uuid": claim.uuid,
            "pid": process.pid,
            "host_name": state.membership.host_name,
            "host_id": claim.host_id,
            "generation": claim.generation,
            "lver": claim.lver,
            "acquired_at": clock.rfc3339(claim.acquired_at),
            "program": f"vmlockctl {__version__}",
            "start_time": process.start_time,
            "boot_id": process.boot_id,
        }
        try:
            self._driver.run(write_note(claimant, held.area, ownernote.to_bytes(note)))
        except VmlockctlError as error:
            log(f"{claim.resource}: no owner note: {error.message}", WARNING)

    def _undo(self, grant: Grant, process: Process) -> None:
        """Take one grant of a failed acquire back; what cannot be is settled by the daemon."""
        try:
            self.release(grant.resource, pid=process.pid)
        except VmlockctlError as error:
            log(f"{grant.resource}: not released: {error.message}", WARNING)

    def wait_until_free(self, wants: Sequence[Want], seconds: float, why: ContentionError) -> None:
        """Watch the leaders, and return soon after they are free: else whoever just released, and asks
        again at once, always finds the lease before those who wait for it.

        A lease that is held shared has a free leader all the time; for it only time can pass.
        """
        deadline = clock.monotonic() + seconds
        while (left := deadline - clock.monotonic()) > 0:
            clock.sleep(min(left, _LOOK_SECONDS))
            if not isinstance(why, SharedLeaseHeld) and all(map(self._looks_free, wants)):
                break
        self._driver.close()

    def _looks_free(self, want: Want) -> bool:
        try:
            return Leader.from_bytes(self._driver.run(probe(want.path, want.offset, _NOTE_SECONDS))).is_free
        except VmlockctlError:
            return False

    # -- release -----------------------------------------------------------------------------------

    def release(self, resource: str, *, pid: Optional[int]) -> None:
        """Release for ``pid``, or for all its users where pid is None. The caller made sure it may.

        Raises ``NotHeld``, ``LeaseLost``, ``StorageError``: the daemon tries again after the last.
        """
        state = self._directory.require_live()
        self._generation = state.generation
        lock = self._locked(resource, resource)
        try:
            claim = self._current_claim(state, resource)
            if claim is None:
                raise NotHeld(f"the lease {resource} is not held by this host")
            others = tuple(p for p in claim.processes if pid is not None and p.pid != pid)
            if others and claim.state == HELD:
                if len(others) == len(claim.processes):
                    raise NotHeld(f"the lease {resource} is not held by process {pid}")
                self._store.write(claim._replace(processes=others))
                return
            self._release_claim(state, claim)
        finally:
            lock.release(unlink=self._store.read(resource) is None)
            self._driver.close()

    def release_unclaimed(self, want: Want) -> None:
        """Release a lease that the disk says is ours and no claim of ours covers.

        Looks once more under the claim's lock: raises ``HeldLocally`` if anybody may use the disk.
        """
        state = self._directory.require_live()
        self._generation = state.generation
        lock = self._locked(want.resource, want.disk)
        try:
            claim = self._current_claim(state, want.resource)
            if claim is not None:
                raise held_by_claim(self._host_name(), claim, want.disk, claim.processes)
            unclaimed = Claim(
                want.resource, want.path, want.offset, want.disk, want.identity, EXCLUSIVE, RELEASING,
                state.membership.host_id, state.generation, 0, (), _ourselves(),
            )  # fmt: skip
            self._refuse_openers(state, [want])
            self._refuse_local_conflicts(unclaimed)
            self._refuse_forgotten_owner(state, unclaimed)
            self._store.write(unclaimed)
            self._driver.run(retract(self._directory.claimant(state), unclaimed.lease))
            self._store.remove(want.resource)
        finally:
            lock.release(unlink=self._store.read(want.resource) is None)
            self._driver.close()

    def _release_claim(self, state: HostState, claim: Claim) -> None:
        claimant = self._directory.claimant(state)
        self._store.write(claim._replace(state=RELEASING, command=_ourselves()))
        if claim.state == HELD:
            procedure = release(claimant, claim.lease, lver=claim.lver, shared=claim.is_shared)
        else:
            procedure = retract(claimant, claim.lease)
        try:
            self._driver.run(procedure)
        except (LeaseLost, OnDiskError):
            self._store.remove(claim.resource)  # nothing of ours is there any more
            raise
        self._store.remove(claim.resource)

    def _locked(self, resource: str, disk: str) -> FileLock:
        lock = self._store.lock(resource)
        if not lock.acquire_within(_LOCK_SECONDS):
            raise ContentionError(
                f"{safe(disk)}: another command works on its lease",
                hint="try again; if it lasts, the storage hangs: see 'vmlockctl status'",
            )
        return lock


def _ourselves() -> Process:
    process = identify(os.getpid())
    assert process is not None
    return process


def _grant(claim: Claim) -> Grant:
    return Grant(
        claim.resource,
        claim.path,
        claim.offset,
        claim.disk,
        claim.mode,
        claim.host_id,
        claim.generation,
        claim.lver,
    )


def held_by_claim(host_name: str, claim: Claim, disk: str, users: Sequence[Process]) -> HeldLocally:
    """Busy on this host: name the host, the process, and the VM where it is known."""
    pid = users[0].pid if users else 0
    who_has_it = f"process {pid} ({safe(comm(pid))})" if pid else "a process that is just ending"
    if claim.vm:
        who_has_it += f", VM {safe(claim.vm)!r},"
    other_name = f", as {safe(claim.disk)}" if claim.disk != disk else ""
    return HeldLocally(
        f"{safe(disk)} is in use {claim.mode} by {who_has_it} of this host {safe(host_name)!r} "
        f"(host id {claim.host_id}, generation {claim.generation}, live){other_name}",
        hint="stop that VM first; the lease is released when its process ends",
        details={
            "disk": disk,
            "owners": [
                {
                    "host_id": claim.host_id,
                    "host_name": host_name,
                    "generation": claim.generation,
                    "pid": pid,
                    "vm": claim.vm,
                    "uuid": claim.uuid,
                    "this_host": True,
                }
            ],
            "mode": claim.mode,
            "state": "live",
        },
    )


def _open_without_lease(disk: str, opener: Opener) -> HeldLocally:
    return HeldLocally(
        f"{safe(disk)} is open for writing by process {opener.pid} ({safe(opener.comm)}) of this host, "
        "which holds no lease for it",
        hint="stop that process, or run 'vmlockctl acquire --pid "
        f"{opener.pid}' for it if the VM is to be protected as it runs",
        details={"disk": disk, "pid": opener.pid, "start_time": opener.start_time, "boot_id": boot_id()},
    )
