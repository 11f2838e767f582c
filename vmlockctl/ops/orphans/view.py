"""What is looked at once for all findings: the lockspace, this host's claims, and who uses which disk."""

from __future__ import annotations

from vmlockctl.daemon.claims import Claim, ClaimStore
from vmlockctl.daemon.hoststate import Membership
from vmlockctl.errors import StorageError
from vmlockctl.host.libvirt import Domain, domains
from vmlockctl.host.openers import Identity, Opener, find_openers
from vmlockctl.host.process import boot_id, comm, identify, is_alive
from vmlockctl.host.qemus import RunningQemu, running_qemus
from vmlockctl.host.sanlockd import SanlockSilent, joined_lockspaces
from vmlockctl.ops.dump_leases import dump
from vmlockctl.ops.session import Session, find_membership
from vmlockctl.ops.status import SHARED, Host, Lease, Status
from vmlockctl.records import NamedTuple
from vmlockctl.specs import Target, resource_name
from vmlockctl.storage.patience import patiently, real_path
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional


class View(NamedTuple):
    """``claims`` and ``claimed`` are of processes that run."""

    seen: Status
    claims: dict[str, Claim]  # by resource: there before the leases were read, and after it
    claimed: set[str]  # the resources of claims that were there at either look
    qemus: list[RunningQemu]
    domains: list[Domain]
    identities: dict[str, Identity]  # by path, of the disks of leases and QEMUs that are there
    openers: dict[Identity, list[Opener]]
    our_host_ids: set[int]  # that programs of this machine hold, as far as they say
    sanlock_problem: str  # why a sanlock daemon of this machine does not say which are its own

    def host(self, host_id: int) -> Optional[Host]:
        return next((host for host in self.seen.hosts if host.host_id == host_id), None)

    @property
    def our_id(self) -> int:
        """This host's id, 0 where it has not joined."""
        return self.seen.this_host["host_id"] if self.seen.this_host is not None else 0


def look_around(session: Session, seen: Status) -> View:
    """Look at this machine. The claims are read again: what changed with the leases is no finding."""
    before = _of_running(seen.claims)
    area = seen.lockspace.area
    membership = membership_of(session, seen)
    store = None if membership is None else ClaimStore(session.directory_of(membership).claims_path)
    after = _of_running(store.all() if store is not None else [])
    qemus = list(running_qemus())
    disks = [lease.disk for lease in seen.leases if lease.disk]
    disks += [disk.path for qemu in qemus for disk in qemu.disks if not disk.shared]
    identities = {disk: found for disk in disks for found in [identity_of(disk)] if found is not None}
    ours = {seen.this_host["host_id"]} if seen.this_host is not None else set()
    sanlocks, problem = _sanlock_host_ids(area.path, area.offset)
    return View(
        seen,
        {resource: claim for resource, claim in after.items() if resource in before},
        {*before, *after},
        qemus,
        domains(),
        identities,
        find_openers(set(identities.values())).openers if identities else {},
        ours | sanlocks,
        problem,
    )


def membership_of(session: Session, seen: Status) -> Optional[Membership]:
    """This host's membership of the lockspace that was looked at."""
    area = seen.lockspace.area
    return find_membership(session, Target(area.path, area.offset, seen.lockspace.space_name, 0, None))


def _of_running(claims: Sequence[Claim]) -> dict[str, Claim]:
    return {claim.resource: claim for claim in claims if any(map(is_alive, claim.processes))}


def _sanlock_host_ids(path: str, offset: int) -> tuple[set[int], str]:
    """The host ids of this machine's sanlock daemon in a lockspace, and why it does not tell them."""
    try:
        joined = joined_lockspaces()
    except SanlockSilent as error:
        return set(), error.message
    real = real_path(path)
    same = [one for one in joined if (real_path(one.path), one.offset) == (real, offset)]
    return {one.host_id for one in same}, ""


def identity_of(path: Optional[str]) -> Optional[Identity]:
    """Of a disk that is there, and answers."""
    try:
        return patiently(path, lambda: Identity.of_path(path)) if path else None
    except (OSError, ValueError, StorageError):
        return None


def is_proven(lease: Lease) -> bool:
    """Whether the disk's path has the digest that names the lease; a note may say anything."""
    return lease.disk is not None and resource_name(lease.disk) == lease.resource


def openers_of(view: View, disk: Optional[str]) -> list[Opener]:
    """Processes of this machine that have a disk open."""
    identity = view.identities.get(disk or "")
    return view.openers.get(identity, []) if identity is not None else []


def users_of(view: View, lease: Lease) -> list[Opener]:
    """Processes of this machine that use the disk of a lease."""
    found = openers_of(view, lease.disk)
    return [opener for opener in found if opener.writable or lease.mode == SHARED]


def noted_process(lease: Lease) -> Optional[Opener]:
    """The process that the owner note names, if exactly that one still runs on this machine."""
    note = owner_note(lease)
    pid = note.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return None
    try:
        process = identify(pid)
    except PermissionError:  # it is there, and hidden from us: in doubt, it is the one
        return Opener(pid, note.get("start_time", 0), "", writable=True)
    if process is None or (note.get("start_time"), note.get("boot_id")) != process[1:]:
        return None
    return Opener(process.pid, process.start_time, comm(process.pid), writable=True)


def was_noted_here(lease: Lease) -> bool:
    """Whether the owner note was written on this machine, in this boot; by another host of it perhaps."""
    return owner_note(lease).get("boot_id") == boot_id()


def was_noted_in_another_boot(lease: Lease) -> bool:
    """Whether the process of the owner note is gone for certain: this machine was booted since."""
    noted: str = owner_note(lease).get("boot_id", boot_id())
    return noted != boot_id()


def owner_note(lease: Lease) -> dict[str, Any]:
    """The owner note of the present possession, whole; empty where there is none."""
    for area in dump([lease.path]):
        if area.offset == lease.offset and area.owner_note and area.owner_note.get("current"):
            return area.owner_note
    return {}


def host_name(owner: dict[str, Any]) -> str:
    return f"host {owner['host_id']} ({owner['host_name'] or 'name unknown'})"


def lease_evidence(lease: Lease, owner: Optional[dict[str, Any]] = None) -> str:
    """Where the lease is, and what its record says."""
    text = f"lease file {lease.path}: {lease.mode}"
    if lease.lver is not None:
        text += f", version {lease.lver}"
    if owner is not None:
        text += f", owner {host_name(owner)} generation {owner['generation']}"
        if owner["vm"] or owner["pid"]:
            text += f", for VM {owner['vm'] or '?'}, process {owner['pid'] or '?'} there"
    return text


def disk_evidence(lease: Lease) -> str:
    return f"the disk's path is known from: {lease.disk_source}"


def host_evidence(view: View, owner: dict[str, Any]) -> str:
    """What is known of an owner's host, with its numbers."""
    host = view.host(owner["host_id"])
    if host is None:
        return f"the lockspace has no record of host {owner['host_id']}"
    text = f"{host_name(owner)} is {host.state}, in generation {host.generation}"
    if host.age is not None and not host.this_host:
        text += f", last sign of life {format_seconds(host.age)} ago"
    return f"{text} (observed by: {view.seen.observed_by})"


def process_evidence(opener: Opener) -> str:
    how = "open for writing" if opener.writable else "open"
    return f"process {opener.pid} ({opener.comm}) has the disk {how}"
