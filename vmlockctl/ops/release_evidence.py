"""release --evidence: release somebody else's lease, only if its owner is proven to be gone.

The lease is taken over by the protocol itself and then given back (``takeover.py``). So it is as safe as any
start of a VM after a crash of another host, and what is shown beforehand (``evidence.py``) decides nothing.

An owner is proven gone in one of two ways, and no third:

- its record did not change for 8 x *its* io_timeout + 60 s while this host's daemon looked. At the first term
  the owner itself stops its VMs; within the second its watchdog, if it has one, has reset it;
- its host id has moved on: the record is free (a host leaves only when nothing relies on it), or of a later
  generation (for which somebody had the first proof, or knew its own VMs to be gone; sanlock trusts a host's
  name there, sanlock-format.md 5.6, and so does everybody who then acquires its leases).

``--i-know HOST:GENERATION`` shortens the first way to its first term, for exactly that instance. The silence
of 8 io_timeouts is still observed: an owner that is alive and reaches the storage renews every 2, so nobody
can have a running host declared dead by mistake; and one that runs without the storage has passed the moment
at which it stops its VMs. What the person vouches for is the rest, which nobody can see from here: that every
VM of that instance is gone and none of its writes is still on its way, because it was powered off, or fenced
from the storage, *before* this command. A host that is merely unreachable, or is itself a virtual machine and
paused, is not dead: when it wakes, its VMs write on until its daemon looks at its leases again (faults.md
findings 1 and 5). The generation is asked for so that the word is given for the instance that was fenced, and
not for the one that has booted since.

A wait writes nothing and holds nothing: interrupted, it leaves the disk as it was.
"""

from __future__ import annotations

import os
import shlex

from vmlockctl import clock
from vmlockctl.config import Config, load
from vmlockctl.errors import (
    NoSuchArea,
    NotHeld,
    NotJoined,
    OnDiskError,
    Refused,
)
from vmlockctl.host.openers import find_openers
from vmlockctl.host.process import comm, identify
from vmlockctl.lease.liveness import FAIL, Instance
from vmlockctl.log import WARNING, log, who
from vmlockctl.managers.base import Grant, Want, lock_manager
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ops.disks import find_disk
from vmlockctl.ops.dump_leases import RESOURCE, AreaDump, dump
from vmlockctl.ops.evidence import Evidence, Vouch, gather
from vmlockctl.ops.session import Session, chosen_membership, lease_path, live_directory
from vmlockctl.ops.status import SHARED, Lease, lease_of
from vmlockctl.ops.takeover import take_and_release
from vmlockctl.ops.unproven import gave_up, instance_text, not_proven, owner_text, require_meant
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name
from vmlockctl.storage.driver import Driver
from vmlockctl.storage.patience import exists, names_of
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Optional

    from vmlockctl.daemon.hoststate import HostState, LockspaceDir, Membership

_LOOK_SECONDS = 1.0


class Written(NamedTuple):
    """One change of who owns a lease, on the disk. None: nobody."""

    path: str
    offset: int
    lver: Optional[int]
    old_owner: Optional[Instance]
    new_owner: Optional[Instance]


class Released(NamedTuple):
    """What was released, on which evidence, and how the leases are now."""

    grants: list[Grant]
    evidence: list[Evidence]
    written: list[Written]
    now: list[Lease]


class Watch(NamedTuple):
    """How a command waits and tells: ``seconds`` None waits only where nobody can say anything yet."""

    seconds: Optional[float]
    on_evidence: Callable[[Sequence[Evidence]], None]
    on_wait: Callable[[float, str, float], None]


def release_with_evidence(
    session: Session, disks: Sequence[str], *, vouch: Optional[Vouch], watch: Watch
) -> Released:
    """Release leases of ``disks`` that others hold, only if every owner is proven to be gone.

    Raises ``LeaseHeld`` with the evidence where it is not, ``Refused`` where a process of this host uses a
    disk, ``NotHeld``, ``NotJoined``, ``GaveUpWaiting``, ``OnDiskError`` and ``StorageError`` leaves.
    """
    config = load()
    membership = _membership(session, config, disks)
    directory = live_directory(session, membership)
    wants = {disk: _wants(membership, disk) for disk in disks}
    with Driver(writable=False) as driver:
        evidence, areas = _watch_until_proven(driver, directory, wants, vouch, watch)
    held = {found.resource for found in evidence}
    taken = [want for want in _each(wants) if want.resource in held]
    vouched = next((found.instance for found in evidence if found.vouched), None)
    state = directory.require_live()
    for found in evidence:
        _log_takeover(state, found)
    manager = lock_manager(config.lock_manager, directory)
    grants = take_and_release(manager, taken, command="release --evidence", vouched=vouched)
    written = [change for found in evidence for change in _marks(found, areas[found.resource])]
    written += [change for grant in grants for change in _changes(grant, evidence)]
    leases = [_lease(area, state) for area in _areas(membership, taken).values()]
    return Released(grants, evidence, written, leases)


def _membership(session: Session, config: Config, disks: Sequence[str]) -> Membership:
    """The lockspace. A host that is not in it is told how to take part for as long as it needs."""
    place = session.lockspace or config.lockspace or "TARGET"
    commands = (
        ["vmlockctl", "add-host", place, "--host-id", "auto"],
        ["vmlockctl", "release", "-L", place, "--evidence", *disks],
        ["vmlockctl", "remove-host", place],
    )
    hint = f"join, release, leave: {' && '.join(map(shlex.join, commands))}"
    try:
        membership = chosen_membership(session, config)
    except NotJoined as error:
        raise NotJoined(error.message, hint=hint) from None
    if membership is None:
        raise NotJoined("this host has not joined any lockspace, so it can take over no lease", hint=hint)
    return membership


def _wants(membership: Membership, disk: str) -> list[Want]:
    """The leases of all names of a disk that there are; it need not exist on this host, or at all."""
    given = os.path.join(os.getcwd(), disk)
    names = dict.fromkeys(names_of(given))
    identity = None
    if exists(given) and not os.path.isdir(given):
        found = find_disk(given, shared=False, allow_alias=True)
        identity = found.identity
        names.update(dict.fromkeys(found.names))
    wants = [
        Want(
            resource_name(name), lease_path(membership, resource_name(name)), 0, name, identity, shared=False
        )
        for name in names
    ]
    there = [want for want in wants if exists(want.path)]
    if not there:
        raise NoSuchArea(
            f"{safe(given)}: there is no lease of it in {membership.target}",
            hint="name the disk by the path that its VM uses",
            details={"disk": given},
        )
    return there


def _each(wants: Mapping[str, Sequence[Want]]) -> list[Want]:
    """Every lease once, also where two of the disks are one."""
    return list({want.resource: want for names in wants.values() for want in names}.values())


# -- looking -----------------------------------------------------------------------------------------


def _areas(membership: Membership, wants: Sequence[Want]) -> dict[str, AreaDump]:
    """The lease areas by resource name. Raises ``OnDiskError`` for one that cannot be understood."""
    found = {}
    # The lockspace first: it says how many hosts there may be marks of.
    for area in dump([membership.path, *(want.path for want in wants)]):
        if area.path == membership.path or area.offset:
            continue
        if area.damage or area.kind != RESOURCE or area.leader is None:
            damage = "; ".join(damage["text"] for damage in area.damage)
            raise OnDiskError(damage or f"found {area.kind}, expected a lease").at(area.path, area.offset)
        found[os.path.basename(area.path)] = area
    return found


def _lease(area: AreaDump, state: HostState) -> Lease:
    """Who owns a lease as its records say, whether that host is gone or not."""
    lease = lease_of(area, {}, None, state.membership.host_id)
    note = area.owner_note or {}
    for owner in lease.owners:
        if note.get("current") and note.get("host_id") == owner["host_id"]:
            owner["host_name"] = note.get("host_name")
    return lease


def _watch_until_proven(
    driver: Driver,
    directory: LockspaceDir,
    wants: Mapping[str, Sequence[Want]],
    vouch: Optional[Vouch],
    watch: Watch,
) -> tuple[list[Evidence], dict[str, AreaDump]]:
    """Look until every owner is proven gone. Raises where one is not and waiting does not help."""
    started = clock.monotonic()
    watching = False
    told: Sequence[Evidence] = ()
    while True:
        state = directory.require_live()
        areas = _areas(state.membership, _each(wants))
        leases = {
            want.resource: _lease(areas[want.resource], state)._replace(disk=want.disk)
            for want in _each(wants)
        }
        _require_held(wants, leases)
        _refuse_local_use(state, _each(wants), areas)
        observer = f"the daemon of this host, {state.membership.host_name}"
        evidence = gather(driver, directory.claimant(state), list(leases.values()), observer, vouch)
        unproven = [found for found in evidence if not found.proof]
        if not told or not unproven:
            watch.on_evidence(evidence)
            told = evidence
        require_meant(evidence, vouch)
        if not unproven:
            return evidence, areas
        watching = watching or watch.seconds is not None or not any(map(_is_answer, unproven))
        worst = max(unproven, key=_hopelessness)
        if worst.takeover_in is None or not watching:
            raise not_proven(worst, evidence)
        if watch.seconds is not None and clock.monotonic() - started >= watch.seconds:
            raise gave_up(watch.seconds, worst, evidence)
        watch.on_wait(_LOOK_SECONDS, _why(worst), worst.takeover_in)
        driver.close()  # the next look opens by path


def _is_answer(found: Evidence) -> bool:
    """Whether more can be said of an owner than "not yet": that it never is proven, or that it is failing."""
    return found.takeover_in is None or (found.owner["state"] == FAIL and not found.vouched)


def _hopelessness(found: Evidence) -> float:
    return float("inf") if found.takeover_in is None else found.takeover_in


def _require_held(wants: Mapping[str, Sequence[Want]], leases: Mapping[str, Lease]) -> None:
    for disk, names in wants.items():
        if not any(leases[want.resource].owners for want in names):
            raise NotHeld(
                f"{safe(disk)}: nobody holds its lease",
                hint="there is nothing to release: a VM can be started",
                details={"disk": disk},
            )


def _refuse_local_use(state: HostState, wants: Sequence[Want], areas: dict[str, AreaDump]) -> None:
    """No lease is released while a process of this host may still write the disk, whoever it is."""
    disks = {want.identity: want.disk for want in wants if want.identity is not None}
    users = {
        opener.pid: disks[identity]
        for identity, openers in find_openers(list(disks), skip={os.getpid()}).openers.items()
        for opener in openers
        if opener.writable
    }
    for want in wants:
        pid = _noted_process(state, areas[want.resource])
        if pid:
            users.setdefault(pid, want.disk)
    for pid, disk in users.items():
        raise Refused(
            f"{safe(disk)} is still open in process {pid} ({safe(comm(pid))}) of this host",
            hint="stop that process first; its lease may be an earlier one of this host",
            details={"disk": disk, "pids": sorted(users)},
        )


def _noted_process(state: HostState, area: AreaDump) -> int:
    """The process that an earlier generation of this host noted, if it still runs: nobody stopped it."""
    note = area.owner_note or {}
    pid, host_id, generation = note.get("pid"), note.get("host_id"), note.get("generation")
    if not note.get("current") or host_id != state.membership.host_id or generation == state.generation:
        return 0
    process = identify(pid) if isinstance(pid, int) and pid > 0 else None
    noted = (note.get("start_time"), note.get("boot_id"))
    return process.pid if process is not None and noted == (process.start_time, process.boot_id) else 0


def _why(worst: Evidence) -> str:
    name = safe(str(worst.owner["host_name"] or "?"))
    return f"watching host {name!r} (host id {worst.owner['host_id']}) for a sign of life"


# -- telling -----------------------------------------------------------------------------------------


def _log_takeover(state: HostState, found: Evidence) -> None:
    member = state.membership
    text = f"take over and release {member.name}:{found.resource}:{found.path}:{found.offset}"
    text += f" ({safe(found.disk)}) lver {found.lver}: old owner {owner_text(found)}, {found.proof}"
    text += f"; new owner {member.host_id}:{state.generation}, then none; by {who()}"
    if found.vouched:
        text += f", who vouches that {instance_text(found)} is dead"
    log(text, WARNING)


def _marks(found: Evidence, area: AreaDump) -> list[Written]:
    """The shared mark of an owner that was erased."""
    if found.mode != SHARED:
        return []
    assert area.sector_size is not None
    assert area.align_size is not None
    geometry = Geometry(area.sector_size, area.align_size)
    offset = area.offset + geometry.dblock_sector(found.instance.host_id) * geometry.sector_size
    return [Written(area.path, offset, found.lver, found.instance, None)]


def _changes(grant: Grant, evidence: Sequence[Evidence]) -> list[Written]:
    """The leader: from its owner to us, and to nobody."""
    owners = [e.instance for e in evidence if e.resource == grant.resource and e.mode != SHARED]
    ours = Instance(grant.host_id, grant.generation)
    return [
        Written(grant.path, grant.offset, grant.lver, owners[0] if owners else None, ours),
        Written(grant.path, grant.offset, grant.lver, ours, None),
    ]
