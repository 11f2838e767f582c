"""check-orphans: leases without a process, processes without a lease, and what dead hosts left.

It looks and tells; it never kills. ``fix`` releases only what is proven unused: by the protocol itself for a
dead host or an earlier generation (the lease is acquired and released), and for our own generation only
when the disk is known, no process has it open and the process that its note names is gone.
"""

from __future__ import annotations

import os

from vmlockctl.config import load
from vmlockctl.daemon.claims import Claim
from vmlockctl.daemon.hoststate import LIVE
from vmlockctl.errors import Refused, VmlockctlError
from vmlockctl.host.openers import Identity, Opener, find_openers
from vmlockctl.host.process import comm, identify, is_alive
from vmlockctl.host.qemus import running_qemus
from vmlockctl.lease.liveness import DEAD, FREE
from vmlockctl.managers.base import Want, lock_manager
from vmlockctl.managers.embedded import EmbeddedManager
from vmlockctl.ops.session import Session, chosen_membership, live_directory
from vmlockctl.ops.status import EXCLUSIVE, SHARED, Lease, Status, status
from vmlockctl.ops.takeover import take_and_release
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

CRITICAL = "critical"
WARNING = "warning"

LEASE_WITHOUT_PROCESS = "lease-without-process"
PROCESS_WITHOUT_CLAIM = "process-without-claim"
PROCESS_WITHOUT_LEASE = "process-without-lease"
UNPROTECTED_PROCESS = "unprotected-process"
DEAD_HOST = "dead-host"
EARLIER_GENERATION = "earlier-generation"
MISSING_DISK = "missing-disk"
DAMAGED = "damaged"

RELEASE_OURS = "release"
TAKE_AND_RELEASE = "take over and release"


class Finding(NamedTuple):
    """One thing that is not as it should be. ``fix`` None: nothing that is proven safe can be done."""

    kind: str
    severity: str
    resource: Optional[str]
    disk: Optional[str]
    pid: Optional[int]
    owner: Optional[dict[str, Any]]
    text: str
    fix: Optional[str]
    path: Optional[str] = None


class Fixed(NamedTuple):
    finding: Finding
    done: bool
    text: str


def check_orphans(session: Session) -> list[Finding]:
    """Everything that is orphaned or unprotected, the worst first."""
    seen = status(session)
    held = {claim.resource: claim for claim in seen.claims if any(map(is_alive, claim.processes))}
    findings = [finding for lease in seen.leases for finding in _about_lease(lease, held, seen)]
    findings += _claims_without_lease(held, seen)
    findings += _unprotected_qemus(seen)
    return sorted(findings, key=lambda finding: (finding.severity != CRITICAL, finding.kind))


# -- looking at leases -----------------------------------------------------------------------------


def _about_lease(lease: Lease, held: dict[str, Claim], seen: Status) -> list[Finding]:
    if lease.damage:
        text = "; ".join(found["text"] for found in lease.damage)
        return [_finding(DAMAGED, CRITICAL, lease, None, f"{lease.path}: damaged: {text}", None)]
    findings = [
        found
        for owner in lease.owners
        for found in [_about_owner(lease, owner, held.get(lease.resource), seen)]
        if found is not None
    ]
    if lease.disk is not None and not os.path.lexists(lease.disk):
        findings.append(
            _finding(
                MISSING_DISK, WARNING, lease, None, f"the disk {lease.disk} of this lease is not there", None
            )
        )
    return findings


def _about_owner(
    lease: Lease, owner: dict[str, Any], claim: Optional[Claim], seen: Status
) -> Optional[Finding]:
    host = next((host for host in seen.hosts if host.host_id == owner["host_id"]), None)
    name = f"host {owner['host_id']} ({owner['host_name']})"
    disk = lease.disk or lease.resource
    ours = seen.this_host is not None and owner["host_id"] == seen.this_host["host_id"]
    if host is not None and host.generation > owner["generation"]:
        text = f"{disk} is held by an earlier generation of {name}: that host joined again since"
        return _finding(EARLIER_GENERATION, WARNING, lease, owner, text, TAKE_AND_RELEASE)
    if not ours:
        if host is not None and host.state in (DEAD, FREE):
            text = f"{disk} is held by {name}, which is {host.state}"
            return _finding(DEAD_HOST, WARNING, lease, owner, text, TAKE_AND_RELEASE)
        return None
    if claim is not None or seen.this_host is None or seen.this_host["state"] != LIVE:
        return None
    users = _users(lease, owner)
    if users:
        text = (
            f"{disk} is in use by process {users[0].pid} ({users[0].comm}) of this host under a lease "
            "that no claim of this host covers: it would not be stopped if the host lease were lost"
        )
        return _finding(PROCESS_WITHOUT_CLAIM, CRITICAL, lease, {**owner, "pid": users[0].pid}, text, None)
    known = lease.disk is not None and os.path.exists(lease.disk)
    text = f"{disk} is held by this host, but no process of it uses the disk"
    return _finding(LEASE_WITHOUT_PROCESS, WARNING, lease, owner, text, RELEASE_OURS if known else None)


def _users(lease: Lease, owner: dict[str, Any]) -> list[Opener]:
    """Processes that use, or by the owner note may use, a disk of ours."""
    users: list[Opener] = []
    try:
        identity = Identity.of_path(lease.disk) if lease.disk else None
    except OSError:
        identity = None
    if identity is not None:
        found = find_openers([identity]).openers.get(identity, [])
        users = [opener for opener in found if opener.writable or lease.mode == SHARED]
    pid = owner.get("pid")
    process = identify(pid) if isinstance(pid, int) and pid > 0 else None
    if process is not None and not users:
        users = [Opener(process.pid, process.start_time, comm(process.pid), True)]  # noqa: FBT003
    return users


def _finding(
    kind: str,
    severity: str,
    lease: Lease,
    owner: Optional[dict[str, Any]],
    text: str,
    fix: Optional[str],
) -> Finding:
    pid = owner.get("pid") if owner else None
    return Finding(kind, severity, lease.resource, lease.disk, pid, owner, text, fix, lease.path)


# -- looking at processes --------------------------------------------------------------------------


def _claims_without_lease(held: dict[str, Claim], seen: Status) -> list[Finding]:
    leases = {lease.resource: lease for lease in seen.leases}
    findings = []
    for claim in held.values():
        lease = leases.get(claim.resource)
        mine = lease is not None and any(
            owner["this_host"] and owner["generation"] == claim.generation for owner in lease.owners
        )
        if mine or claim.state != "held":
            continue
        pid = next(process.pid for process in claim.processes if is_alive(process))
        where = "is gone" if lease is None else f"is {lease.mode} and not ours"
        text = f"process {pid} ({comm(pid)}) uses {claim.disk}, but its lease on the disk {where}"
        findings.append(
            Finding(
                PROCESS_WITHOUT_LEASE, CRITICAL, claim.resource, claim.disk, pid, None, text, None, claim.path
            )
        )
    return findings


def _unprotected_qemus(seen: Status) -> list[Finding]:
    """QEMU processes of this host that may write a disk which nobody's lease covers."""
    claimed = {claim.identity for claim in seen.claims if any(map(is_alive, claim.processes))}
    leased = {lease.resource for lease in seen.leases if lease.mode in (EXCLUSIVE, SHARED) and lease.owners}
    findings = []
    for qemu in running_qemus():
        for disk in qemu.disks:
            if disk.shared or resource_name(disk.path) in leased:
                continue
            try:
                identity = Identity.of_path(disk.path)
            except OSError:
                continue
            if identity in claimed:
                continue
            text = f"process {qemu.pid} ({qemu.name or comm(qemu.pid)}) may write {disk.path} without a lease"
            findings.append(
                Finding(UNPROTECTED_PROCESS, WARNING, None, disk.path, qemu.pid, None, text, None)
            )
    return findings


# -- fixing ----------------------------------------------------------------------------------------


def fix(session: Session, findings: Sequence[Finding]) -> list[Fixed]:
    """Release what is proven unused; every other finding is left alone."""
    wanted = [finding for finding in findings if finding.fix is not None]
    if not wanted:
        return []
    config = load()
    membership = chosen_membership(session, config)
    if membership is None:
        raise Refused("this host has not joined the lockspace, so it can release nothing in it")
    directory = live_directory(session, membership)
    results = []
    for finding in wanted:
        try:
            if finding.fix == RELEASE_OURS:
                EmbeddedManager(directory).release_unclaimed(_want(finding))
            else:
                manager = lock_manager(config.lock_manager, directory)
                take_and_release(manager, [_want(finding)], command="check-orphans")
        except VmlockctlError as error:
            results.append(Fixed(finding, False, f"left as it is: {error.message}"))  # noqa: FBT003
        else:
            results.append(Fixed(finding, True, "released"))  # noqa: FBT003
    return results


def _want(finding: Finding) -> Want:
    assert finding.resource is not None
    assert finding.path is not None
    identity = None
    if finding.disk is not None and os.path.exists(finding.disk):
        identity = Identity.of_path(finding.disk)
    return Want(finding.resource, finding.path, 0, finding.disk or finding.resource, identity, shared=False)
