"""explain DISK: why a disk is in use: every lock on it, who, where, alive or not, and what is safe to do.

It looks at every layer that can say no, and writes nothing: the leases of all names of the disk, the byte
locks of QEMU and virtlockd, whoever has it open, what the kernel holds, libvirt's domains, and the image
itself. "Free" is said only where everything could be looked at.
"""

from __future__ import annotations

import os
import stat

from vmlockctl.daemon.claims import Claim
from vmlockctl.errors import NoSuchDisk, NotJoined, VmlockctlError
from vmlockctl.host.images import Chain, backing_chain
from vmlockctl.host.libvirt import Domain, domains
from vmlockctl.host.openers import Identity
from vmlockctl.host.process import comm, exists
from vmlockctl.lease.liveness import DEAD
from vmlockctl.ops.disknames import DiskNames
from vmlockctl.ops.explain_advice import advise, summarise
from vmlockctl.ops.explain_local import local_use
from vmlockctl.ops.explain_target import disks_meant
from vmlockctl.ops.explanation import BUSY, FREE, LEASE, STALE, UNKNOWN, Explanation, Holder
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import SHARED, Lease, Status, status
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional


class World(NamedTuple):
    """What is looked at once for all disks of one call."""

    seen: Optional[Status]
    problem: str  # why there is no status
    domains: list[Domain]

    @property
    def claims(self) -> list[Claim]:
        return self.seen.claims if self.seen is not None else []

    @property
    def leases(self) -> list[Lease]:
        return self.seen.leases if self.seen is not None else []


def look_around(session: Session, *, observe_seconds: float = 0.0) -> World:
    """The leases and hosts of the lockspace, and libvirt's domains; what fails is told in the answer."""
    try:
        seen: Optional[Status] = status(session, observe_seconds=observe_seconds)
        problem = ""
    except NotJoined:
        seen, problem = None, ""  # there is no lockspace to look at: no lease protects anything here
    except VmlockctlError as error:
        seen, problem = None, error.message
    return World(seen, problem, domains())


def find_disks(world: World, text: str) -> list[str]:
    """The disks that ``text`` means; empty where it means none."""
    return disks_meant(text, world.claims, world.domains, lambda path: _disk_of_lease(world, path))


def _disk_of_lease(world: World, path: str) -> Optional[str]:
    resource = os.path.basename(path)
    known = next((lease.disk for lease in world.leases if lease.resource == resource), None)
    if known is None:
        found = DiskNames().find(resource)
        known = found.path if found is not None else None
    return known


def explain_disk(world: World, disk: str) -> Explanation:
    """Everything about one disk. Raises ``NoSuchDisk`` where there is neither a disk nor a lease of it."""
    try:
        found: Optional[os.stat_result] = os.stat(disk)
    except OSError as error:
        found, missing = None, error.strerror or "not there"
    identity = Identity.of_stat(found) if found is not None else None
    names = tuple(dict.fromkeys((disk, os.path.realpath(disk))))
    leases = _leases_of(world, names, identity)
    if found is None and not leases:
        raise NoSuchDisk(f"{safe(disk)}: no such disk, and no lease of it: {missing}", details={"disk": disk})
    holders = [holder for lease in leases for holder in _lease_holders(lease, world)]
    unseen = [f"leases: {world.problem}"] if world.problem else []
    if identity is not None and found is not None and not stat.S_ISDIR(found.st_mode):
        local = local_use(disk, identity, world.claims, world.domains)
        holders += local.holders
        unseen += local.unseen
    damaged = any(lease.damage for lease in leases)
    verdict, free_in = _verdict(holders, unseen, damaged=damaged)
    chain = backing_chain(disk) if found is not None else Chain((), "the disk is not there")
    answer = Explanation(
        disk, names, resource_name(disk), verdict, "", holders, free_in, [], [],
        _facts(found, names, leases, chain, world), unseen, damaged,
    )  # fmt: skip
    advice, dont = advise(answer, leases, world.domains, world.seen)
    return answer._replace(summary=summarise(answer), advice=advice, dont=dont)


def _leases_of(world: World, names: Sequence[str], identity: Optional[Identity]) -> list[Lease]:
    """The leases of all names of a disk, also of those that only their owners know."""
    resources = {resource_name(name) for name in names}
    return [
        lease
        for lease in world.leases
        if lease.resource in resources or (identity is not None and _is_disk(lease.disk, identity))
    ]


def _is_disk(path: Optional[str], identity: Identity) -> bool:
    try:
        return path is not None and Identity.of_path(path) == identity
    except OSError:
        return False


# -- the leases ------------------------------------------------------------------------------------


def _lease_holders(lease: Lease, world: World) -> list[Holder]:
    return [_lease_holder(lease, owner, world) for owner in lease.owners]


def _lease_holder(lease: Lease, owner: dict[str, Any], world: World) -> Holder:
    state = owner["state"]
    host = {key: owner[key] for key in ("host_id", "host_name", "generation", "state", "age", "this_host")}
    where = "this host" if owner["this_host"] else f"host {owner['host_name'] or '?'!r}"
    gone = owner["takeover_in"] == 0.0
    name = f" as {lease.disk}" if lease.disk else ""
    text = f"{lease.mode} lease{name} (version {lease.lver}) of {where} (host id {owner['host_id']}"
    text += f", generation {owner['generation']}, {'gone' if gone else state}"
    if owner["age"] is not None and not owner["this_host"]:
        text += f", last sign of life {format_seconds(owner['age'])} ago"
    text += ")"
    pid = owner["pid"]
    if owner["vm"] or pid:
        text += f" for VM {owner['vm'] or '?'!r}" + (f", process {pid} there" if pid else "")
    if owner["this_host"] and pid is None and not gone:
        text += ": no process of this host is known to use it"
    mode = "shared" if lease.mode == SHARED else "exclusive"
    claim = next((c for c in world.claims if c.resource == lease.resource and owner["this_host"]), None)
    return Holder(
        LEASE,
        mode,
        text,
        blocks=not gone,
        host=host,
        pid=pid,
        process=comm(pid) if pid and owner["this_host"] else "",
        vm=owner["vm"] or "",
        uuid=owner["uuid"] or "",
        since=claim.acquired_at if claim is not None else None,
        takeover_in=_takeover_in(owner),
    )


def _takeover_in(owner: dict[str, Any]) -> Optional[float]:
    """Waiting helps only with an owner that is silent: one that is alive renews."""
    if owner["state"] in ("live", "unknown") and owner["takeover_in"] != 0.0:
        return None
    return 0.0 if owner["state"] == DEAD else owner["takeover_in"]


def _verdict(
    holders: Sequence[Holder], unseen: Sequence[str], *, damaged: bool
) -> tuple[str, Optional[float]]:
    blocking = [holder for holder in holders if holder.blocks]
    if damaged:
        return UNKNOWN, None
    if blocking:
        waits = [holder.takeover_in for holder in blocking]
        known = [wait for wait in waits if wait is not None]
        return BUSY, max(known) if len(known) == len(waits) else None
    if unseen:
        return UNKNOWN, None
    if any(holder.layer == LEASE for holder in holders):
        return STALE, 0.0
    return FREE, 0.0


# -- the image -------------------------------------------------------------------------------------


def _facts(
    found: Optional[os.stat_result],
    names: Sequence[str],
    leases: Sequence[Lease],
    chain: Chain,
    world: World,
) -> list[tuple[str, str]]:
    facts = []
    if len(names) > 1:
        facts.append(("also named", names[1]))
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        facts.append(("hard links", f"{found.st_nlink}: names that no lease covers"))
    if chain.images:
        facts.append(("format", chain.images[0].format))
        facts += [("stands on", below) for below in chain.below]
    elif chain.problem:
        facts.append(("format", f"unknown: {chain.problem}"))
    for lease in leases:
        facts.append(("lease file", f"{lease.path} ({lease.mode}, version {lease.lver})"))
        facts += [("damaged", f"{lease.path}:{d['offset']}: {d['text']}") for d in lease.damage]
    for domain in world.domains:
        facts += [("libvirt", _domain_fact(domain, names))] if _uses(domain, names) else []
    return facts


def _uses(domain: Domain, names: Sequence[str]) -> bool:
    return any(disk.path in names for disk in domain.disks) or any(path in names for path in domain.backing)


def _domain_fact(domain: Domain, names: Sequence[str]) -> str:
    reason = f" ({domain.reason})" if domain.reason else ""
    how = "as its disk" if any(d.path in names for d in domain.disks) else "below one of its disks"
    running = f", process {domain.pid}" if domain.is_running else ""
    if domain.is_running and not exists(domain.pid):
        running += ", which is gone"
    return f"domain {domain.name!r} has it {how}: {domain.state}{reason}{running}"
