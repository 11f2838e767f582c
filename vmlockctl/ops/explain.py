"""explain DISK: why a disk is in use: every lock on it, who, where, alive or not, and what is safe to do.

It looks at every layer that can say no, and writes nothing: the leases of all names of the disk, the byte
locks of QEMU and virtlockd, whoever has it open, what the kernel holds, libvirt's domains, and the image
itself. "Free" is said only where everything could be looked at.

``explain_world`` is what is looked at once, ``explain_local`` and ``explain_locks`` this machine,
``explain_facts`` the image, ``explain_advice`` what to do.
"""

from __future__ import annotations

import errno
import os

from vmlockctl import clock
from vmlockctl.errors import IoTimeout, NoSuchDisk
from vmlockctl.host.images import Chain, Image, backing_chain, read_image
from vmlockctl.host.openers import Search
from vmlockctl.host.process import comm
from vmlockctl.lease.liveness import DEAD, LIVE, UNKNOWN
from vmlockctl.ops.disknames import DiskNames
from vmlockctl.ops.explain_advice import advise, summarise
from vmlockctl.ops.explain_disk import NO_ANSWER, Disk, look_at
from vmlockctl.ops.explain_facts import facts_of
from vmlockctl.ops.explain_local import LocalUse, local_use
from vmlockctl.ops.explain_search import Begun
from vmlockctl.ops.explain_target import disks_meant
from vmlockctl.ops.explain_world import World
from vmlockctl.ops.explanation import BUSY, FREE, LEASE, NOBODY_KNOWS, STALE, Explanation, Holder
from vmlockctl.ops.status import SHARED, Lease
from vmlockctl.specs import resource_name
from vmlockctl.storage.patience import PATIENCE_SECONDS, give_up, is_there, patiently, silent_directories
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional


def find_disks(world: World, text: str) -> list[str]:
    """The disks that ``text`` means; empty where it means none."""
    return disks_meant(text, world.claims, world.domains, lambda path: _disk_of_lease(world, path))


def wait_for_disk(search: Search, text: str) -> None:
    """Let the search look at the disk first; where its storage does not answer, nobody looks again."""
    if not search.answers(PATIENCE_SECONDS):
        give_up(os.path.join(os.getcwd(), text))


def are_there(disks: Sequence[str]) -> bool:
    """Whether any of these disks is there, as far as their storage answers."""
    return any(map(is_there, disks))


def _disk_of_lease(world: World, path: str) -> Optional[str]:
    resource = os.path.basename(path)
    known = next((lease.disk for lease in world.leases if lease.resource == resource), None)
    if known is None:
        found = DiskNames().find(resource)
        known = found.path if found is not None else None
    return known


def explain_disk(world: World, path: str, begun: Optional[Begun] = None) -> Explanation:
    """Everything about one disk. Raises ``NoSuchDisk`` where there is neither a disk nor a lease of it.

    ``begun``: what was begun for it before.
    """
    disk = look_at(path)
    leases = _leases_of(world, disk)
    if disk.is_silent and not leases:
        raise IoTimeout(
            f"{safe(path)}: {NO_ANSWER} within {PATIENCE_SECONDS:g} s, and no lease of it was found",
            hint="see whether its server can be reached; whoever has it open there waits too",
            details={"disk": path},
        )
    if disk.found is None and not leases:
        raise NoSuchDisk(
            f"{safe(path)}: no such disk, and no lease of it: {disk.missing}", details={"disk": path}
        )
    holders = [holder for lease in leases for holder in _lease_holders(lease, world)]
    local, chain = LocalUse([], [], {}), Chain(())
    if disk.identity is not None and disk.may_be_locked:
        chain = backing_chain(path, _read_image)
        local = local_use(disk, disk.identity, world.claims, world.domains, begun)
        holders += local.holders
    unseen = [*world.unseen, *local.unseen, *(f"{safe(d)}: {NO_ANSWER}" for d in silent_directories())]
    damaged = any(lease.damage for lease in leases)
    verdict, free_in = _verdict(holders, unseen, damaged=damaged)
    facts = facts_of(disk, chain, leases, world.domains, local.forgotten)
    answer = Explanation(
        path,
        disk.names,
        resource_name(path),
        verdict,
        "",
        holders,
        free_in,
        [],
        [],
        facts.told,
        unseen,
        damaged,
    )
    advice, dont = advise(answer, disk, leases, facts.overlays, world)
    return answer._replace(summary=summarise(answer), advice=advice, dont=dont)


def _read_image(path: str) -> Optional[Image]:
    try:
        return patiently(path, lambda: read_image(path))
    except IoTimeout:
        raise TimeoutError(errno.ETIMEDOUT, NO_ANSWER) from None


def _leases_of(world: World, disk: Disk) -> list[Lease]:
    """The leases of all names of a disk, also of those that only their owners know."""
    resources = {resource_name(name) for name in disk.names}
    if os.path.basename(disk.path) in {lease.resource for lease in world.leases}:
        resources.add(os.path.basename(disk.path))  # a lease file of which nobody knows the disk
    return [lease for lease in world.leases if lease.resource in resources or disk.is_at(lease.disk)]


# -- the leases ------------------------------------------------------------------------------------


def _lease_holders(lease: Lease, world: World) -> list[Holder]:
    return [_lease_holder(lease, owner, world) for owner in lease.owners]


def _lease_holder(lease: Lease, owner: dict[str, Any], world: World) -> Holder:
    host = {key: owner[key] for key in ("host_id", "host_name", "generation", "state", "age", "this_host")}
    here, pid = owner["this_host"], owner["pid"]
    claim = next((c for c in world.claims if c.resource == lease.resource and here), None)
    since = claim.acquired_at if claim is not None else _noted_time(owner["acquired_at"])
    gone = owner["takeover_in"] == 0.0 and not owner.get("through")
    return Holder(
        LEASE,
        "shared" if lease.mode == SHARED else "exclusive",
        _lease_text(lease, owner, since, gone=gone),
        blocks=not gone,
        host=host,
        pid=pid,
        process=comm(pid) if pid and here else "",
        vm=owner["vm"] or "",
        uuid=owner["uuid"] or "",
        since=since,
        takeover_in=_takeover_in(owner, gone=gone),
    )


def _noted_time(text: Optional[str]) -> Optional[float]:
    """A time from an owner note, which may say anything."""
    try:
        return clock.parse_rfc3339(text) if text else None
    except ValueError:
        return None


def _lease_text(lease: Lease, owner: dict[str, Any], since: Optional[float], *, gone: bool) -> str:
    here, state, pid = owner["this_host"], owner["state"], owner["pid"]
    where = f"{'this host' if here else 'host'} {owner['host_name'] or '?'!r}"
    name = f" as {lease.disk}" if lease.disk else ""
    text = f"{lease.mode} lease{name} (version {lease.lver}) of {where} (host id {owner['host_id']}"
    text += f", generation {owner['generation']}, {'gone' if gone else state}"
    if owner["age"] is not None and not here:
        text += f", last sign of life {format_seconds(owner['age'])} ago"
    text += ")"
    if owner["vm"] or pid:
        text += f" for VM {owner['vm']!r}" if owner["vm"] else ""
        text += f"{',' if owner['vm'] else ' for'} process {pid}{'' if here else ' there'}" if pid else ""
    if owner.get("through"):
        text += f", held through {owner['through']}"
    if since is not None:
        text += f", taken {format_seconds(clock.wall() - since)} ago"
    if here and pid is None and not gone:
        text += ": no process of this host is known to use it"
    if state == UNKNOWN and not gone and owner["dead_in"] is not None:
        text += f"; if that host stays silent, it can be taken in {format_seconds(owner['dead_in'])}"
    return text


def _takeover_in(owner: dict[str, Any], *, gone: bool) -> Optional[float]:
    """Waiting helps only with an owner that is silent: one that is alive renews."""
    if owner["state"] in (LIVE, UNKNOWN) and not gone:
        return None
    return 0.0 if gone or owner["state"] == DEAD else owner["takeover_in"]


def _verdict(
    holders: Sequence[Holder], unseen: Sequence[str], *, damaged: bool
) -> tuple[str, Optional[float]]:
    blocking = [holder for holder in holders if holder.blocks]
    if blocking:
        waits = [None if damaged else holder.takeover_in for holder in blocking]
        known = [wait for wait in waits if wait is not None]
        return BUSY, max(known) if len(known) == len(waits) else None
    if damaged or unseen:
        return NOBODY_KNOWS, None
    if any(holder.layer == LEASE for holder in holders):
        return STALE, 0.0
    return FREE, 0.0
