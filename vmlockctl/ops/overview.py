"""What a person looks for first in a ``Status``: what is wrong, in words, and the VMs of this host.

Each problem has the next command, which only looks: what is safe to do after it is ``explain``'s and
``check-orphans``' to say.
"""

from __future__ import annotations

import shlex

from vmlockctl.daemon.claims import HELD, Claim
from vmlockctl.daemon.hoststate import LEFT, LIVE, LOST
from vmlockctl.host.process import is_alive
from vmlockctl.lease.liveness import DEAD, FAIL, FREE
from vmlockctl.lease.liveness import LIVE as HOST_LIVE
from vmlockctl.ops.status import FREE_MODE, Host, Lease, Status, is_backed
from vmlockctl.records import NamedTuple
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional

CRITICAL = "critical"
WARNING = "warning"

_NAMED_DISKS = 2
_HOSTS_TOLD_EACH = 3


class Problem(NamedTuple):
    kind: str
    severity: str
    text: str
    command: str


class VmDisk(NamedTuple):
    disk: str
    mode: str
    resource: str
    state: str  # of the claim
    lease_is_ours: Optional[bool]  # None: its lease was not looked at


class Vm(NamedTuple):
    """What this host's claims say of one VM; ``name`` is "" where nobody told it."""

    name: str
    uuid: str
    pids: list[int]  # those that run
    disks: list[VmDisk]


def problems(seen: Status, program: str = "vmlockctl") -> list[Problem]:
    """Everything that somebody should look at, the worst first. ``program`` begins the commands."""
    found = [
        *own_problems(seen, program),
        *_of_claims(seen, program),
        *_of_leases(seen, program),
        *_of_hosts(seen, program),
    ]
    return sorted(found, key=lambda problem: problem.severity != CRITICAL)


def own_problems(seen: Status, program: str = "vmlockctl") -> Iterator[Problem]:
    """Those of this host, which its own records tell."""
    host = seen.this_host
    look_at_storage = f"{program} dump-leases {shlex.quote(seen.lockspace.area.path)}"
    look_at_log = "journalctl -t vmlockctl -n 50"
    if host is None:
        if seen.observed_by == "nobody" and any(h.state != FREE for h in seen.hosts):
            text = "nobody observes these hosts here: whether they are alive is unknown"
            yield Problem("unobserved", WARNING, text, f"{program} status --watch")
        return
    why = f": {host['problem']}" if host["problem"] else ""
    if host["state"] == LOST:
        text = f"this host has lost its host lease: its VMs are stopped, and nothing is granted{why}"
        yield Problem("host-lease-lost", CRITICAL, text, look_at_storage)
    elif host["state"] == LIVE and host["expires_in"] <= host["fail_after"] - host["warn_after"]:
        left = format_seconds(host["expires_in"])
        text = f"this host cannot renew its host lease: in {left} it is lost and the VMs are stopped{why}"
        yield Problem("host-lease-expires", CRITICAL, text, look_at_storage)
    elif why:
        yield Problem("host-problem", WARNING, f"this host is in trouble{why}", look_at_storage)
    if host["state"] == LEFT:
        return
    if not host["daemon_pid"]:
        text = "no daemon runs: nobody renews the host lease of this host, and nobody stops its VMs"
        yield Problem("no-daemon", CRITICAL, text, f"{program} daemon")
    elif not host["standby_pid"]:
        text = "no standby runs: if the daemon dies, nobody stops the VMs of this host in time"
        yield Problem("no-standby", WARNING, text, look_at_log)


def _of_claims(seen: Status, program: str) -> Iterator[Problem]:
    """VMs that run without their lease; where the whole host lease is lost, that is said once."""
    if seen.this_host is None or seen.this_host["state"] != LIVE:
        return
    leases = {lease.resource: lease for lease in seen.leases}
    for claim in seen.claims:
        lease = leases.get(claim.resource)
        pid = next((process.pid for process in claim.processes if is_alive(process)), None)
        if claim.state != HELD or pid is None or is_backed(claim, leases) or lease is None:
            continue
        where = "is free" if lease.mode == FREE_MODE else "is another's"
        if lease.damage:
            where = "is damaged"
        elif lease.owners:
            where = "is held by " + ", ".join(map(_owner_name, lease.owners))
        text = f"VM {claim.vm or '?'}, process {pid} of this host, uses {claim.disk}, but the lease {where}"
        yield Problem("vm-without-lease", CRITICAL, text, f"{program} explain {shlex.quote(claim.disk)}")


def _of_leases(seen: Status, program: str) -> Iterator[Problem]:
    """Damaged ones, each; and those of owners that are gone, by owner."""
    left: dict[tuple[int, int], list[Lease]] = {}
    names: dict[tuple[int, int], str] = {}
    for lease in seen.leases:
        if lease.damage:
            text = f"the lease of {_disk_name(lease)} is damaged: {lease.damage[0]['text']}"
            yield Problem("damaged-lease", CRITICAL, text, f"{program} dump-leases {shlex.quote(lease.path)}")
        for owner in lease.owners:
            if owner["takeover_in"] == 0.0:
                key = (owner["host_id"], owner["generation"])
                left.setdefault(key, []).append(lease)
                names[key] = f"{_owner_name(owner)}, {_why_gone(owner, seen.hosts)}"
    for key, leases in left.items():
        count = f"{len(leases)} lease{'s' if len(leases) > 1 else ''}"
        text = f"{count} of {names[key]}, can be taken over: {_disk_names(leases)}"
        yield Problem("leases-of-gone-owner", WARNING, text, f"{program} check-orphans")


def _of_hosts(seen: Status, program: str) -> Iterator[Problem]:
    """Hosts that fail, are late, or are dead and hold nothing: those are told with their leases."""
    disks = {owner["host_id"]: lease.disk for lease in seen.leases for owner in lease.owners if lease.disk}
    owners = {owner["host_id"] for lease in seen.leases for owner in lease.owners}
    others = [host for host in seen.hosts if host.age is not None and not host.this_host]
    failing = [host for host in others if host.state == FAIL]
    late = [host for host in others if host.state == HOST_LIVE and (host.age or 0) >= host.warn_after]
    dead = [host for host in others if host.state == DEAD and host.host_id not in owners]
    disk = next((disks[host.host_id] for host in [*failing, *late] if host.host_id in disks), None)
    look = f"{program} explain {shlex.quote(disk)}" if disk else f"{program} status --watch"
    yield from _hosts_that("failing-host", CRITICAL, "fails", failing, look)
    yield from _hosts_that("late-host", WARNING, "renews late", late, look)
    yield from _hosts_that("dead-host", WARNING, "is dead", dead, f"{program} check-orphans")


def _hosts_that(
    kind: str, severity: str, what: str, hosts: Sequence[Host], command: str
) -> Iterator[Problem]:
    """A line for each of a few hosts, and one for many: what hits a rack shall not hide all else."""
    told = [f"host {host.host_id} {host.host_name} {what}: {_silence(host)}" for host in hosts]
    if len(hosts) > _HOSTS_TOLD_EACH:
        names = ", ".join(f"{host.host_id} {host.host_name}" for host in hosts[:_HOSTS_TOLD_EACH])
        told = [f"{len(hosts)} hosts, each {what}: {names} and {len(hosts) - _HOSTS_TOLD_EACH} more"]
    yield from (Problem(kind, severity, text, command) for text in told)


def _silence(host: Host) -> str:
    dead = f", dead in {format_seconds(host.dead_in)}" if host.dead_in else ""
    return f"no sign of life for {format_seconds(host.age or 0.0)}{dead}"


def _owner_name(owner: dict[str, Any]) -> str:
    return f"host {owner['host_id']} {owner['host_name'] or '?'}"


def _why_gone(owner: dict[str, Any], hosts: Sequence[Host]) -> str:
    host = next((host for host in hosts if host.host_id == owner["host_id"]), None)
    if host is not None and host.generation > owner["generation"]:
        return "which has joined again since"
    if host is not None and host.state == DEAD:
        return f"which is dead, {_silence(host)}"
    return "which has left"


def _disk_name(lease: Lease) -> str:
    return lease.disk or f"an unknown disk ({lease.resource})"


def _disk_names(leases: Sequence[Lease]) -> str:
    names = ", ".join(_disk_name(lease) for lease in leases[:_NAMED_DISKS])
    more = len(leases) - _NAMED_DISKS
    return names + (f" and {more} more" if more > 0 else "")


def vms(seen: Status) -> list[Vm]:
    """The VMs of this host, by name; claims without a VM's name are told apart by their process."""
    leases = {lease.resource: lease for lease in seen.leases}
    by_vm: dict[tuple[object, ...], list[Claim]] = {}
    for claim in seen.claims:
        pid = claim.processes[0].pid if claim.processes else 0
        by_vm.setdefault((claim.vm, claim.uuid) if claim.vm else ("", "", pid), []).append(claim)
    found = []
    for claims in by_vm.values():
        processes = dict.fromkeys(process for claim in claims for process in claim.processes)
        disks = [
            VmDisk(
                c.disk,
                c.mode,
                c.resource,
                c.state,
                is_backed(c, leases) if c.resource in leases else None,
            )
            for c in sorted(claims, key=lambda claim: claim.disk)
        ]
        pids = [process.pid for process in processes if is_alive(process)]
        found.append(Vm(claims[0].vm, claims[0].uuid, pids, disks))
    return sorted(found)
