"""Processes of this host: without a lease, under a lease that others took, or unknown to libvirt."""

from __future__ import annotations

import shlex

from vmlockctl.daemon.claims import HELD, Claim
from vmlockctl.daemon.hoststate import LIVE
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.libvirt_qemus import forgotten_by_libvirt
from vmlockctl.host.process import cmdline, comm, is_alive
from vmlockctl.host.qemus import RunningQemu
from vmlockctl.ops.orphans import finding as kinds
from vmlockctl.ops.orphans.finding import CRITICAL, WARNING, Finding, of_lease, of_process
from vmlockctl.ops.orphans.view import (
    View,
    host_evidence,
    host_name,
    lease_evidence,
    openers_of,
    process_evidence,
    was_noted_here,
)
from vmlockctl.ops.status import UNKNOWN_MODE, Lease
from vmlockctl.specs import resource_name
from vmlockctl.storage.patience import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional


# -- claims ----------------------------------------------------------------------------------------


def claims_without_lease(view: View) -> Iterator[Finding]:
    """VMs that this host knows, and whose lease on the disk is not what their claim says."""
    leases = {lease.resource: lease for lease in view.seen.leases}
    for claim in view.claims.values():
        lease = leases.get(claim.resource)
        mine = lease is not None and any(
            owner["host_id"] == claim.host_id and owner["generation"] == claim.generation
            for owner in lease.owners
        )
        if not mine and claim.state == HELD:
            yield _claim_without_lease(claim, lease, view)


def _claim_without_lease(claim: Claim, lease: Optional[Lease], view: View) -> Finding:
    pid = next(process.pid for process in claim.processes if is_alive(process))
    owners = lease.owners if lease is not None else []
    other = next((owner for owner in owners if owner["host_id"] != claim.host_id), None)
    said = f"this host acquired version {claim.lver} in generation {claim.generation} for process {pid}"
    process = f"process {pid} ({comm(pid)})" + (f", VM {claim.vm}," if claim.vm else "")
    if lease is not None and other is not None:
        return _taken(lease, other, claim.disk, pid, process, [said], view)
    what = "is gone" if lease is None else "is damaged" if lease.damage else "is not ours"
    where = lease_evidence(lease) if lease is not None else f"there is no lease file {claim.path}"
    found = of_process(
        kinds.PROCESS_WITHOUT_LEASE,
        CRITICAL,
        pid,
        claim.disk,
        f"{process} uses {claim.disk}, but its lease on the disk {what}",
        evidence=[said, where],
        risk="another host can start a second writer; the daemon here ends the process within a cycle",
        command="vmlockctl status",
        advice="see that the daemon runs, and find out who removed or overwrote the lease",
    )
    return found._replace(resource=claim.resource, path=claim.path)


def _taken(
    lease: Lease,
    other: dict[str, Any],
    disk: str,
    pid: int,
    process: str,
    more: Sequence[str],
    view: View,
    severity: str = CRITICAL,
) -> Finding:
    return of_lease(
        kinds.LEASE_TAKEN,
        severity,
        lease._replace(disk=disk),
        f"{process} may write {disk}, but {host_name(other)} has taken its lease",
        owner=other,
        pid=pid,
        evidence=[*more, lease_evidence(lease, other), host_evidence(view, other)],
        risk="both may write the disk at once, and destroy what is on it",
        command=f"vmlockctl explain {shlex.quote(disk)}",
        advice="stop the VM on one of the two hosts now, and check the file systems on the disk",
    )


# -- QEMU ------------------------------------------------------------------------------------------


def about_qemus(view: View) -> Iterator[Finding]:
    """What is wrong with running QEMUs and their writable disks."""
    claimed = {
        claim.identity
        for claim in (*view.seen.claims, *view.claims.values())
        if any(map(is_alive, claim.processes))
    }
    plugged = _written_disks(view)
    for qemu in view.qemus:
        forgotten = _forgotten(qemu)
        if forgotten is not None:
            yield forgotten
        named = [disk.path for disk in qemu.disks if not disk.shared]
        disks = {view.identities.get(path): path for path in (*plugged.get(qemu.pid, ()), *named)}
        for identity, path in disks.items():
            if identity is not None and identity not in claimed:
                yield from _about_disk(qemu, path, view)


def _written_disks(view: View) -> dict[int, list[str]]:
    """The disks of leases that processes have open for writing, by pid: also those that were plugged in."""
    found: dict[int, list[str]] = {}
    for lease in view.seen.leases:
        for opener in openers_of(view, lease.disk):
            if opener.writable and lease.disk is not None:
                found.setdefault(opener.pid, []).append(lease.disk)
    return found


def _about_disk(qemu: RunningQemu, disk: str, view: View) -> Iterator[Finding]:
    leases = _leases_of(disk, view)
    owners = [(lease, owner) for lease in leases for owner in lease.owners]
    if any(owner["host_id"] in view.our_host_ids or was_noted_here(lease) for lease, owner in owners):
        return  # a host of this machine has it: what is wrong with its lease, the lease tells
    process = f"process {qemu.pid} ({qemu.name or comm(qemu.pid)})"
    domain = next((domain for domain in view.domains if domain.pid == qemu.pid), None)
    for lease, owner in owners:
        if owner["takeover_in"] != 0.0:
            yield _held_elsewhere(lease, owner, disk, qemu.pid, process, view)
            return
    yield _unprotected(qemu, disk, process, leases, domain, view)


def _leases_of(disk: str, view: View) -> list[Lease]:
    """The leases of all names of a disk."""
    resources = {resource_name(path) for path in names_of(disk)}
    identity = view.identities[disk]
    return [
        lease
        for lease in view.seen.leases
        if lease.resource in resources or view.identities.get(lease.disk or "") == identity
    ]


def _held_elsewhere(
    lease: Lease, owner: dict[str, Any], disk: str, pid: int, process: str, view: View
) -> Finding:
    """A VM here, and the lease over there: two writers, or a migration that has not ended."""
    more, severity = [f"{process} may write the disk"], CRITICAL
    if any(word in ("-incoming", "--incoming") for word in cmdline(pid)):
        more.append("it is the target of a migration (-incoming): until that ends, it does not write")
        severity = WARNING
    if view.sanlock_problem:
        more.append(f"sanlock on this machine does not say whether it is that host: {view.sanlock_problem}")
        severity = WARNING
    return _taken(lease, owner, disk, pid, process, more, view, severity)


def _unprotected(
    qemu: RunningQemu, disk: str, process: str, leases: list[Lease], domain: Optional[Domain], view: View
) -> Finding:
    others = [one for one in openers_of(view, disk) if one.writable and one.pid != qemu.pid]
    evidence = [lease_evidence(lease) for lease in leases] or ["there is no lease of any name of the disk"]
    evidence += map(process_evidence, others)
    step, advice = "explain", "stop it, and start it under a lease"
    can_acquire = _is_live(view) and not others and all(map(_can_be_had, leases))
    if domain is not None and domain.state == "paused":
        evidence.append("libvirt says that it is paused; its sanlock plugin lets go of a paused VM's leases")
        can_acquire, advice = False, "resume the VM, or stop it, through libvirt"
    elif can_acquire:
        step = f"acquire --pid {qemu.pid}"
        advice = "the process gets the lease as it runs; from then on it is stopped if the lease is lost"
    return of_process(
        kinds.UNPROTECTED_PROCESS,
        WARNING,
        qemu.pid,
        disk,
        f"{process} may write {disk} without a lease",
        # A disk that never had a lease here may be none of this lockspace's: then a person must say so.
        fix=kinds.ADOPT if can_acquire and leases and not any(lease.owners for lease in leases) else None,
        evidence=evidence,
        risk="nothing keeps another host from starting a VM with this disk",
        command=f"vmlockctl {step} {shlex.quote(disk)}",
        advice=advice,
    )


def _is_live(view: View) -> bool:
    return view.seen.this_host is not None and view.seen.this_host["state"] == LIVE


def _can_be_had(lease: Lease) -> bool:
    """Whether nobody holds it, or nobody that lives."""
    is_whole = lease.mode != UNKNOWN_MODE and not lease.damage
    return is_whole and all(owner["takeover_in"] == 0.0 for owner in lease.owners)


def _forgotten(qemu: RunningQemu) -> Optional[Finding]:
    found = forgotten_by_libvirt(qemu.pid)
    if found is None:
        return None
    disks = [disk.path for disk in qemu.disks]
    return of_process(
        kinds.FORGOTTEN_BY_LIBVIRT,
        WARNING,
        qemu.pid,
        disks[0] if disks else None,
        f"process {qemu.pid} runs libvirt's domain {found.name}, which libvirt does not know to run",
        evidence=[
            f"its command line says -name guest={found.name} and -uuid {found.uuid}",
            f"its parent is process {found.parent}; libvirt has no record of it in {found.records}",
            *(f"it has the disk {disk}" for disk in disks),
        ],
        risk="libvirt lists the domain as shut off: it does not stop it, and may be told to start it again",
        command=f"vmlockctl explain {qemu.pid}",
        advice="libvirt cannot take it back: shut the guest down from inside, or end the process with kill, "
        f"which is like cutting its power; then start {found.name} through libvirt",
    )
