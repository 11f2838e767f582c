"""Leases held by our own daemon: the command acquires directly on the disk, the daemon keeps it.

The order of an acquire makes every crash recoverable: lock the claim, write the claim
(``acquiring``), run the ballot, write the claim (``held``), write the owner note, unlock. A command that
dies anywhere leaves a claim whose lock is free, and the daemon settles it. Nothing is removed from our
records before the disk says so.
"""

from __future__ import annotations

import os

from vmlockctl import __version__, clock
from vmlockctl.daemon.claims import (
    ACQUIRING,
    CONVERTING,
    EXCLUSIVE,
    HELD,
    RELEASING,
    SHARED,
    Claim,
    ClaimStore,
)
from vmlockctl.daemon.confirm import confirm_released, confirm_shared
from vmlockctl.errors import (
    ContentionError,
    LeaseLost,
    NotHeld,
    OnDiskError,
    RaceLost,
    SharedLeaseHeld,
    StorageError,
    VmlockctlError,
)
from vmlockctl.host.process import Process, identify, is_alive
from vmlockctl.host.rundir import FileLock
from vmlockctl.lease.convert import back_to_shared, to_exclusive, to_shared
from vmlockctl.lease.delta import probe
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.request import Asked, clear_request, request
from vmlockctl.lease.resource import Claimant, Held, Resource, write_note
from vmlockctl.lease.steps import WriteSector
from vmlockctl.lease.timeouts import bit_stands_seconds, read_timeout_seconds
from vmlockctl.log import WARNING, log, who
from vmlockctl.managers.base import NO_TERMS, Grant, Terms, User, Want
from vmlockctl.managers.busy import held_by_claim
from vmlockctl.managers.localchecks import NOTE_SECONDS, LocalChecks
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.leader import Leader
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Optional

    from vmlockctl.daemon.hoststate import HostState, LockspaceDir

# How long a command waits for the daemon or another command to finish with the same lease.
_LOCK_SECONDS = 5.0
_LOOK_SECONDS = 0.03


class EmbeddedManager:
    """Acquires and releases under this host's own host lease."""

    def __init__(self, directory: LockspaceDir) -> None:
        self._directory = directory
        self._store = ClaimStore(directory.claims_path)
        self._generation = 0
        self._driver = Driver(guard=self._guard, on_write=self._log_write)
        self._checks = LocalChecks(directory, self._store, self._driver)
        self._disks: dict[str, str] = {}  # by resource, once a claim has told

    def _guard(self) -> None:
        self._directory.guard(self._generation)

    def _log_write(self, step: WriteSector) -> None:
        place = f"{step.area.path}:{step.area.byte_offset(step.sector)}"
        resource = os.path.basename(step.area.path)
        disk = self._disks.get(resource) or self._store.disk_of(resource)
        self._disks[resource] = disk
        of_disk = f" of {safe(disk)}" if disk else ""
        log(f"write {place} {len(step.data)} bytes: {step.what}{of_disk} by {who()}")

    # -- acquire -----------------------------------------------------------------------------------

    def acquire(self, wants: Sequence[Want], user: User, *, terms: Terms = NO_TERMS) -> list[Grant]:
        """All of the leases or none. In the order of their names: two commands never deadlock."""
        granted: list[Grant] = []
        undo: list[tuple[Callable[[Grant, Process], None], Grant]] = []
        state = self._directory.require_live()
        self._generation = state.generation
        try:
            self._checks.refuse_openers(state, wants, user.process)
            for want in sorted(wants):
                grant, how_to_undo = self._acquire_one(state, want, user, terms)
                granted.append(grant)
                if how_to_undo is not None:
                    undo.append((how_to_undo, grant))
        except BaseException:
            # Only what this command took: the process may have held, and use, the others before.
            for how_to_undo, grant in reversed(undo):
                how_to_undo(grant, user.process)
            raise
        finally:
            self._driver.close()
        return granted

    def _acquire_one(
        self, state: HostState, want: Want, user: User, terms: Terms
    ) -> tuple[Grant, Optional[Callable[[Grant, Process], None]]]:
        """One lease, and how to undo it; None where the process had it before."""
        with_lock = self._locked(want.resource, want.disk)
        try:
            existing = self._current_claim(state, want.resource)
            if existing is not None:
                existing = self._after_conversion(state, existing)
                if self._may_convert(existing, want, user):
                    return self._to_exclusive(state, existing, terms.expect_lver), self._undo_conversion
                joined = self._join_existing(existing, want, user)
                if joined is not None:
                    return joined, None if user.process in existing.processes else self._undo
            claim = self._new_claim(state, want, user)
            self._store.write(claim)
            return self._acquire_claimed(state, claim, existing, terms), self._undo
        finally:
            self._unlock(with_lock, want.resource)

    @staticmethod
    def _new_claim(state: HostState, want: Want, user: User) -> Claim:
        return Claim(
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

    def _acquire_claimed(
        self, state: HostState, claim: Claim, existing: Optional[Claim], terms: Terms
    ) -> Grant:
        """With the claim written: ask the machine, then the disk."""
        claimant = self._directory.claimant(state)
        writes_before = self._driver.write_count
        try:
            self._checks.refuse_local_conflicts(claim)
            if existing is None:
                self._checks.refuse_forgotten_owner(state, claim)
            held = self._driver.run(
                acquire(
                    claimant,
                    claim.lease,
                    shared=claim.is_shared,
                    expect_lver=terms.expect_lver,
                    vouched=terms.vouched,
                )
            )
            if claim.is_shared:
                confirm_shared(self._driver, claimant, claim._replace(lver=held.leader.lver))
            self._refuse_removed_file(claim, claimant)
        except VmlockctlError as error:
            self._checks.name_vm(claim.lease, error)
            if self._driver.write_count == writes_before or self._retracted(claim, claimant, error):
                self._forget(claim, existing)
            raise
        file = self._driver.file_of(claim.path)
        claim = claim._replace(state=HELD, lver=held.leader.lver, command=None, file=file)
        self._store.write(claim)
        self._write_note(claimant, held, claim)
        return _grant(claim)

    def _refuse_removed_file(self, claim: Claim, claimant: Claimant) -> None:
        """What was won in a file that no path leads to any more is no lease: others use its successor.

        Only its holder removes a lease file (``managers/removal.py``): from here on nobody but us.
        """
        if not self._driver.is_current(claim.path, read_timeout_seconds(claimant.io_timeout)):
            raise RaceLost(f"{claim.path}: the lease file was removed or replaced while it was acquired")

    def _retracted(self, claim: Claim, claimant: Claimant, error: VmlockctlError) -> bool:
        """Give up a ballot that was not won; False leaves the claim to the daemon to settle."""
        if isinstance(error, StorageError):
            return False  # the outcome is unknown until the storage answers again
        try:
            self._driver.run(retract(claimant, claim.lease))
        except VmlockctlError as second:
            log(f"{claim.label}: the daemon will settle it: {second.message}", WARNING)
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
        if existing.state == CONVERTING and users:
            # Its command died; the daemon will settle it.
            raise held_by_claim(self._checks.host_name(), existing, want.disk, users)
        if existing.state != HELD or not users:
            return None  # left by a dead command or a dead process; the ballot decides
        if existing.is_shared != want.shared or not existing.is_shared:
            if user.process in users and existing.is_shared == want.shared:
                return _grant(existing)
            raise held_by_claim(self._checks.host_name(), existing, want.disk, users)
        if user.process not in users:
            existing = existing._replace(processes=(*users, user.process))
            self._store.write(existing)
        return _grant(existing)

    def _current_claim(self, state: HostState, resource: str) -> Optional[Claim]:
        claim = self._store.read(resource)
        return claim if claim is not None and claim.generation == state.generation else None

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
            log(f"{claim.label}: no owner note: {error.message}", WARNING)

    def _undo(self, grant: Grant, process: Process) -> None:
        """Take one grant of a failed acquire back; what cannot be is settled by the daemon."""
        try:
            self.release(grant.resource, pid=process.pid)
        except VmlockctlError as error:
            log(f"{grant.resource}: {safe(grant.disk)}: not released: {error.message}", WARNING)

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
            return Leader.from_bytes(self._driver.run(probe(want.path, want.offset, NOTE_SECONDS))).is_free
        except VmlockctlError:
            return False

    # -- conversion ----------------------------------------------------------------------------------

    @staticmethod
    def _may_convert(existing: Claim, want: Want, user: User) -> bool:
        """Shared and wanted exclusively, by its only local holder (12.2-g: nobody else is shut out)."""
        users = [process for process in existing.processes if is_alive(process)]
        return existing.state == HELD and existing.is_shared and not want.shared and users == [user.process]

    def _to_exclusive(self, state: HostState, claim: Claim, expect_lver: Optional[int]) -> Grant:
        claimant = self._directory.claimant(state)
        exclusive = claim._replace(mode=EXCLUSIVE, acquired_at=clock.wall())
        self._checks.refuse_local_conflicts(exclusive)
        self._store.write(claim._replace(state=CONVERTING, command=_ourselves()))
        try:
            held = self._driver.run(to_exclusive(claimant, claim.lease, expect_lver=expect_lver))
        except VmlockctlError as error:
            self._checks.name_vm(claim.lease, error)
            self._back_to_shared(claim, claimant, error)
            raise
        exclusive = exclusive._replace(lver=held.leader.lver)
        self._store.write(exclusive)
        self._write_note(claimant, held, exclusive)
        return _grant(exclusive)

    def _back_to_shared(self, claim: Claim, claimant: Claimant, error: VmlockctlError) -> None:
        """After a conversion that failed; what cannot be told now is left to the daemon."""
        if isinstance(error, StorageError):
            return
        try:
            self._driver.run(back_to_shared(claimant, claim.lease))
        except VmlockctlError as second:
            log(f"{claim.label}: the daemon will settle it: {second.message}", WARNING)
        else:
            self._store.write(claim)

    def _after_conversion(self, state: HostState, claim: Claim) -> Claim:
        """End a conversion that a dead command left (we hold its lock): shared, as the daemon would."""
        if claim.state != CONVERTING:
            return claim
        claimant = self._directory.claimant(state)
        self._driver.run(back_to_shared(claimant, claim.lease))
        claim = claim._replace(state=HELD, command=None)
        self._store.write(claim)
        return claim

    def to_shared(self, resource: str) -> int:
        """Turn an exclusive lease into a shared one. The caller made sure that nobody writes the disk.

        Raises ``NotHeld``, ``LeaseLost``, ``StorageError``: the daemon tries again after the last.
        """
        state = self._directory.require_live()
        self._generation = state.generation
        lock = self._locked(resource, resource)
        try:
            claim = self._current_claim(state, resource)
            if claim is not None:
                claim = self._after_conversion(state, claim)
            if claim is None or claim.state != HELD:
                raise NotHeld(f"the lease {resource} is not held by this host")
            if not claim.is_shared:
                self._store.write(claim._replace(state=CONVERTING, mode=SHARED, command=_ourselves()))
                claimant = self._directory.claimant(state)
                try:
                    self._driver.run(to_shared(claimant, claim.lease, lver=claim.lver))
                except LeaseLost:
                    # Nothing was written, nothing is left to share; the daemon ends who relied on it.
                    self._store.write(claim)
                    raise
                confirm_shared(self._driver, claimant, claim)
                self._store.write(claim._replace(mode=SHARED))
            return claim.lver
        finally:
            self._unlock(lock, resource)
            self._driver.close()

    def _undo_conversion(self, grant: Grant, _process: Process) -> None:
        try:
            self.to_shared(grant.resource)
        except VmlockctlError as error:
            log(f"{grant.resource}: {safe(grant.disk)}: not converted back: {error.message}", WARNING)

    # -- requests ------------------------------------------------------------------------------------

    def request(self, want: Want, *, force: bool) -> Optional[Asked]:
        """Ask whoever holds the lease exclusively to let it go; None: nobody does.

        The owner's bit goes with our next renewals, for ``bit_stands_seconds``.
        """
        state = self._directory.require_live()
        self._generation = state.generation
        try:
            lease = Resource(want.path, want.offset, want.resource)
            asked = self._driver.run(request(self._directory.claimant(state), lease, force=force))
        finally:
            self._driver.close()
        if asked is not None:
            self._directory.set_bit(asked.owner_id, bit_stands_seconds(state.membership.io_timeout))
        return asked

    def clear_request(self, want: Want) -> bool:
        """Take a request back; whether there was one."""
        state = self._directory.require_live()
        self._generation = state.generation
        try:
            lease = Resource(want.path, want.offset, want.resource)
            return self._driver.run(clear_request(self._directory.claimant(state), lease))
        finally:
            self._driver.close()

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
            self._unlock(lock, resource)
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
            # One without a process is what a command left that died right here; its lock is ours now.
            if claim is not None and (claim.state != RELEASING or claim.processes):
                raise held_by_claim(self._checks.host_name(), claim, want.disk, claim.processes)
            unclaimed = Claim(
                want.resource, want.path, want.offset, want.disk, want.identity, EXCLUSIVE, RELEASING,
                state.membership.host_id, state.generation, 0, (), _ourselves(),
            )  # fmt: skip
            self._checks.refuse_openers(state, [want])
            self._checks.refuse_local_conflicts(unclaimed)
            self._checks.refuse_forgotten_owner(state, unclaimed)
            self._store.write(unclaimed)
            claimant = self._directory.claimant(state)
            self._driver.run(retract(claimant, unclaimed.lease))
            confirm_released(self._driver, claimant, unclaimed)
            self._store.remove(want.resource)
        finally:
            self._unlock(lock, want.resource)
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
            confirm_released(self._driver, claimant, claim)
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

    def _unlock(self, lock: FileLock, resource: str) -> None:
        """Let go of a claim, unless an I/O of ours on its lease is still on its way.

        A timed-out write may still land (design rule 4): the lock stays until this process has ended,
        and the thread that hangs delays that until the I/O is over (``storage/worker.py``).
        """
        claim = self._store.read(resource)
        if claim is None or not self._driver.hangs(claim.path):
            lock.release(unlink=claim is None)


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
