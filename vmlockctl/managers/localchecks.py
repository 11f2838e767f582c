"""Asking this machine before the disk is asked: who uses it here, whatever name or lease they have.

By identity (device number, or file system and inode), not by name. A lease cannot know a process that took
none; the owner note is read only to refuse, and for messages, never to grant.
"""

from __future__ import annotations

import os

from vmlockctl.daemon.claims import EXCLUSIVE, Claim, ClaimStore
from vmlockctl.errors import ContentionError, HeldLocally, LeaseHeld, VmlockctlError
from vmlockctl.host.openers import Opener, find_openers
from vmlockctl.host.process import Process, comm, identify, is_alive
from vmlockctl.lease.delta import probe
from vmlockctl.lease.resource import Resource, foreign_owner, names_us, read_note
from vmlockctl.lease.steps import Area
from vmlockctl.managers.base import Want
from vmlockctl.managers.busy import held_by_claim, open_without_lease
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.leader import Leader
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmlockctl.daemon.hoststate import HostState, LockspaceDir

NOTE_SECONDS = 2.0


class LocalChecks:
    """What a lock manager asks about the users of disks on this host."""

    def __init__(self, directory: LockspaceDir, store: ClaimStore, driver: Driver) -> None:
        self._directory = directory
        self._store = store
        self._driver = driver

    def refuse_local_conflicts(self, claim: Claim) -> None:
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
            raise held_by_claim(self.host_name(), other, claim.disk, users)

    def host_name(self) -> str:
        return self._directory.require_live().membership.host_name

    def refuse_openers(self, state: HostState, wants: Sequence[Want], *users: Process) -> None:
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
            return open_without_lease(want.disk, opener)
        error = LeaseHeld(
            f"the lease {want.resource} is held by host {safe(str(owner['host_name']))!r}",
            details={"owners": [owner], "mode": EXCLUSIVE, "state": "unknown"},
        )
        self.name_vm(lease, error)
        return error

    def refuse_forgotten_owner(self, state: HostState, claim: Claim) -> None:
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

    def name_vm(self, lease: Resource, error: VmlockctlError) -> None:
        """Add the VM and process that a foreign owner noted; only for people, so only if it is easy."""
        owners = error.details.get("owners", [])
        if not isinstance(error, ContentionError) or len(owners) != 1 or "pid" in owners[0]:
            return
        try:
            head = self._driver.run(probe(lease.path, lease.offset, NOTE_SECONDS))
            leader = Leader.from_bytes(head)
            area = Area(lease.path, lease.offset, leader.geometry)
            note = ownernote.from_bytes(self._driver.run(read_note(area, NOTE_SECONDS)))
        except VmlockctlError:
            return
        if note is not None and ownernote.is_current(note, leader):
            owners[0].update({key: note.get(key) for key in ("pid", "vm", "uuid", "acquired_at")})
