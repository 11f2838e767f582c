"""Lease files: of hosts, processes and disks that are gone, and damaged ones."""

from __future__ import annotations

import os
import shlex

from vmlockctl.daemon.hoststate import LIVE
from vmlockctl.host.openers import Opener
from vmlockctl.lease.liveness import DEAD, FAIL, FREE
from vmlockctl.ops.dump_leases import ONLY_ZEROS
from vmlockctl.ops.orphans import finding as kinds
from vmlockctl.ops.orphans.disks import GONE, THERE, look_for
from vmlockctl.ops.orphans.finding import CRITICAL, INFO, WARNING, Finding, Note, of_lease
from vmlockctl.ops.orphans.view import (
    View,
    disk_evidence,
    host_evidence,
    host_name,
    is_proven,
    lease_evidence,
    noted_process,
    process_evidence,
    users_of,
    was_noted_in_another_boot,
)
from vmlockctl.ops.status import EXCLUSIVE, FREE_MODE, UNKNOWN_MODE, Lease
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional

FIX = "vmlockctl check-orphans --fix"
PRUNE = "vmlockctl check-orphans --prune"


def about_lease(lease: Lease, view: View) -> Iterator[Finding]:
    """Everything that is wrong with one lease."""
    misplaced = lease.resource != os.path.basename(lease.path)
    if lease.mode == UNKNOWN_MODE or lease.damage or misplaced:
        yield _damaged(lease, view)
        return
    for owner in lease.owners:
        found = _about_owner(lease, owner, view)
        if found is not None:
            yield found
    missing = _missing_disk(lease, view)
    if missing is not None:
        yield missing


def note_of(lease: Lease) -> Optional[Note]:
    """A lease that nobody holds: most of those of a lease directory."""
    if lease.mode != FREE_MODE or lease.damage:
        return None
    kind = kinds.RELEASED if lease.lver else kinds.NEVER_ACQUIRED
    return Note(kind, lease.resource, lease.disk, lease.path)


# -- damage ----------------------------------------------------------------------------------------


def _damaged(lease: Lease, view: View) -> Finding:
    """A record that cannot be understood is never overwritten, so there is nothing that we would do."""
    kind, severity, text = _damage_of(lease)
    evidence = [f"{lease.path}:{damage['offset']}: {damage['text']}" for damage in lease.damage]
    evidence += [process_evidence(user) for user in users_of(view, lease)]
    return of_lease(
        kind,
        severity,
        lease,
        text,
        evidence=evidence or [lease_evidence(lease)],
        risk="no VM can start with this disk, and nobody can tell whether one runs under the lease",
        command=f"vmlockctl dump-leases {shlex.quote(lease.path)}",
        advice="make sure on every host that no VM uses the disk, keep a copy of the file, and move it away: "
        "the next start makes a new one",
    )


def _damage_of(lease: Lease) -> tuple[str, str, str]:
    """Kind, severity, and what it is in words."""
    codes = {damage["code"] for damage in lease.damage}
    name = lease.disk or lease.path
    if "truncated-area" in codes:
        return kinds.SHORT, CRITICAL, f"the lease file of {name} is too short: it was cut off"
    if any(ONLY_ZEROS in damage["text"] for damage in lease.damage):
        text = f"the lease file of {name} holds only zeros: it was not made to the end, or was wiped"
        return kinds.UNINITIALISED, WARNING, text
    if lease.damage:
        return kinds.DAMAGED, CRITICAL, f"the lease of {name} is damaged"
    if lease.mode == UNKNOWN_MODE:
        return kinds.CLEARED, WARNING, f"the lease file of {name} holds no lease: it was cleared"
    text = f"{lease.path} holds the lease of another resource, {lease.resource}: a copy, or a renamed file"
    return kinds.DAMAGED, CRITICAL, text


# -- owners ----------------------------------------------------------------------------------------


def _about_owner(lease: Lease, owner: dict[str, Any], view: View) -> Optional[Finding]:
    host = view.host(owner["host_id"])
    if host is not None and host.generation > owner["generation"]:
        return _earlier_generation(lease, owner, view)
    if owner["host_id"] == view.our_id:
        return _of_this_host(lease, owner, view)
    if host is not None and host.state in (DEAD, FREE):
        text = f"{_name(lease)} is held by {host_name(owner)}, which is {host.state}"
        return _of_gone_owner(kinds.DEAD_HOST, lease, owner, text, view, None)
    if host is not None and host.state == FAIL:
        return of_lease(
            kinds.SILENT_HOST,
            INFO,
            lease,
            f"{_name(lease)} is held by {host_name(owner)}, which is silent",
            owner=owner,
            evidence=[lease_evidence(lease, owner), host_evidence(view, owner)],
            risk="nobody can start the VM elsewhere before that host is certainly dead",
            command=f"vmlockctl explain --watch {_quoted(lease)}",
            advice=f"it can be taken in {format_seconds(host.dead_in or 0.0)}, if the host stays silent",
        )
    return None


def _earlier_generation(lease: Lease, owner: dict[str, Any], view: View) -> Finding:
    ours = owner["host_id"] == view.our_id
    who = "this host" if ours else host_name(owner)
    text = f"{_name(lease)} is held by an earlier generation of {who}: that host joined again since"
    doubt = _doubt_about_users(lease) if ours else None
    return _of_gone_owner(kinds.EARLIER_GENERATION, lease, owner, text, view, doubt)


def _doubt_about_users(lease: Lease) -> Optional[str]:
    """Why a process of an earlier generation of this host may still write the disk, as far as can be seen.

    The daemon has stopped every process that a claim named; one whose claim was lost it does not know.
    """
    noted = noted_process(lease)
    if noted is not None:
        return f"process {noted.pid} ({noted.comm}), which the owner note names, still runs"
    if _is_there(lease) or was_noted_in_another_boot(lease):
        return None
    return "its disk is not known, or not to be seen, so nobody can tell who uses it"


def _of_gone_owner(
    kind: str, lease: Lease, owner: dict[str, Any], text: str, view: View, doubt: Optional[str]
) -> Finding:
    """The protocol grants the lease to anybody; a process of this machine that uses the disk forbids it."""
    users = users_of(view, lease)
    evidence = [lease_evidence(lease, owner), host_evidence(view, owner), *map(process_evidence, users)]
    if users or doubt is not None:
        return of_lease(
            kind,
            CRITICAL,
            lease,
            text,
            owner=owner,
            pid=users[0].pid if users else None,
            evidence=[*evidence, doubt] if doubt is not None else evidence,
            risk="another host may take the lease, and start a second writer beside a process of this one",
            command=f"vmlockctl explain {_quoted(lease)}",
            advice="end that process in order; then --fix releases the lease",
        )
    return of_lease(
        kind,
        WARNING,
        lease,
        text,
        owner=owner,
        fix=kinds.TAKE_AND_RELEASE,
        evidence=evidence,
        risk="none for the disk: a VM that starts takes the lease over; until then it looks in use",
        command=FIX,
        advice="it acquires the lease by the protocol, which proves that its owner is gone, and releases it",
    )


def _of_this_host(lease: Lease, owner: dict[str, Any], view: View) -> Optional[Finding]:
    """A lease of our own generation: somebody must use it, and a claim must say who."""
    this_host = view.seen.this_host
    if lease.resource in view.claimed or this_host is None or this_host["state"] != LIVE:
        return None
    noted = noted_process(lease)
    users = users_of(view, lease) or ([noted] if noted is not None else [])
    if users:
        return _without_claim(lease, owner, users[0], view)
    there = _is_there(lease)
    evidence = [lease_evidence(lease, owner), "no claim of this host covers it"]
    evidence.append(
        f"no process has {lease.disk} open, and none runs that the owner note names"
        if there
        else "its disk is not known, or not to be seen, so nobody can tell who uses it"
    )
    return of_lease(
        kinds.LEASE_WITHOUT_PROCESS,
        WARNING,
        lease,
        f"{_name(lease)} is held by this host, but no process of it uses the disk",
        owner=owner,
        fix=kinds.RELEASE_OURS if there else None,
        evidence=evidence,
        risk="the VM cannot be started anywhere, as long as this host lives",
        command=FIX if there else "vmlockctl check-orphans --images DIR",
        advice="it looks once more, under a lock, and releases the lease"
        if there
        else "name the directory of the image; a lease of a disk that is gone ends with remove-host",
    )


def _without_claim(lease: Lease, owner: dict[str, Any], user: Opener, view: View) -> Finding:
    users = users_of(view, lease)
    may_adopt = lease.mode == EXCLUSIVE and _is_there(lease) and _is_its_vm(lease, users, view)
    process = f"process {user.pid} ({user.comm}) of this host"
    evidence = [
        lease_evidence(lease, owner),
        "no claim of this host covers it",
        *map(process_evidence, users),
    ]
    if not users:
        evidence.append(f"the owner note names process {user.pid}, which still runs")
    step, advice = "explain", "end that process in order; its lease can be released then"
    if lease.mode == EXCLUSIVE and _is_there(lease) and len(users) < 2:
        step = f"acquire --pid {user.pid}"
        advice = "the process gets its claim back, without letting its lease go: the daemon watches it then"
    return of_lease(
        kinds.PROCESS_WITHOUT_CLAIM,
        CRITICAL,
        lease,
        f"{_name(lease)} is in use by {process} under a lease that no claim covers",
        owner={**owner, "pid": user.pid},
        fix=kinds.ADOPT if may_adopt else None,
        evidence=evidence,
        risk="it would not be stopped if the host lease were lost: another host could start a second writer",
        command=f"vmlockctl {step} {_quoted(lease)}",
        advice=advice,
    )


def _is_its_vm(lease: Lease, users: Sequence[Opener], view: View) -> bool:
    """Whether one process alone uses the disk, and is certainly who the lease is for."""
    noted = noted_process(lease)
    known = [*(qemu.pid for qemu in view.qemus), *([noted.pid] if noted is not None else [])]
    return len(users) == 1 and users[0].pid in known


# -- disks -----------------------------------------------------------------------------------------


def _missing_disk(lease: Lease, view: View) -> Optional[Finding]:
    sight = look_for(lease.disk) if lease.disk is not None else None
    if sight is None or sight.state == THERE:
        return None
    is_held = any(owner["takeover_in"] != 0.0 for owner in lease.owners)
    if is_held and any(owner["host_id"] != view.our_id for owner in lease.owners):
        return None  # it may be a disk of that host alone, and its VM runs there
    owner = lease.owners[0] if lease.owners else None
    evidence = [sight.evidence, lease_evidence(lease, owner), disk_evidence(lease)]
    if not is_proven(lease):
        evidence.append("the digest of that path is not the lease's name, so the disk may be another one")
    gone = sight.state == GONE
    prunable = gone and not is_held and is_proven(lease)
    return of_lease(
        kinds.MISSING_DISK,
        WARNING if gone or is_held else INFO,
        lease,
        f"the disk {lease.disk} of this lease is {'gone' if gone else 'not to be seen from this host'}",
        owner=owner,
        fix=kinds.REMOVE if prunable else None,
        evidence=evidence,
        risk="none: the file is of no use" if gone and not is_held else "none, if the disk is elsewhere",
        command=PRUNE if prunable else f"vmlockctl explain {_quoted(lease)}",
        advice="it acquires the lease, so that nobody else can hold it, and removes the file"
        if prunable
        else "--prune leaves it alone",
    )


def _is_there(lease: Lease) -> bool:
    """Whether its disk is known for certain, and can be looked at: then its users are known, too."""
    return is_proven(lease) and look_for(lease.disk or "").state == THERE


def _name(lease: Lease) -> str:
    return lease.disk or lease.resource


def _quoted(lease: Lease) -> str:
    return shlex.quote(lease.disk or lease.path)
