"""status: hosts, their state and age, leases, and the VMs and processes behind them.

Liveness is only what was observed: the daemon's table together with what the records say now, else
``observe_seconds`` of watching, else unknown; the result says which.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.config import load
from vmlockctl.daemon.claims import HELD, Claim, ClaimStore
from vmlockctl.daemon.control import daemon_pid, standby_pid
from vmlockctl.daemon.hoststate import LEVEL, LIVE, LOST, HostState, Membership
from vmlockctl.errors import NoSuchArea, NotJoined, StorageError, storage_error
from vmlockctl.host.process import is_alive
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.liveness import (
    DEAD,
    FREE,
    NEVER_OBSERVED,
    Observation,
    dead_in_seconds,
    host_state,
    observe,
)
from vmlockctl.lease.timeouts import (
    host_dead_seconds,
    host_fail_seconds,
    id_renewal_fail_seconds,
    id_renewal_warn_seconds,
    sane_io_timeout,
)
from vmlockctl.ops.disknames import DiskName, DiskNames, noted_disk
from vmlockctl.ops.dump_leases import RESOURCE, AreaDump, dump
from vmlockctl.ops.rereading import HostRecords, LeaseAreas
from vmlockctl.ops.session import (
    Session,
    chosen_membership,
    configured_target,
    find_membership,
    local_target,
)
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, Target, parse_target, resource_name
from vmlockctl.storage.patience import exists, names_of, patiently
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Optional

    from vmlockctl.daemon.hoststate import LockspaceDir
    from vmlockctl.ondisk.leader import Leader

FREE_MODE, EXCLUSIVE, SHARED, UNKNOWN_MODE = "free", "exclusive", "shared", "unknown"


class Host(NamedTuple):
    """One host id of the lockspace. Seconds; ``age`` and ``dead_in`` None where nothing was observed.

    ``warn_after``, ``fail_after``, ``dead_after``: the ages at which a host that does not renew is late, ends
    its VMs, and may be taken for dead.
    """

    host_id: int
    host_name: str
    generation: int
    state: str
    io_timeout: int
    timestamp: int
    age: Optional[float]
    dead_in: Optional[float]
    this_host: bool
    warn_after: int = 0
    fail_after: int = 0
    dead_after: int = 0


class Lease(NamedTuple):
    resource: str
    path: str
    offset: int
    disk: Optional[str]
    mode: str
    lver: Optional[int]
    owners: list[dict[str, Any]]
    takeover_in: Optional[float]
    damage: list[dict[str, Any]]
    disk_source: Optional[str] = None  # who knows the disk, in words


class Status(NamedTuple):
    observed_at: float  # seconds since the epoch
    observed_by: str  # "daemon", "watching" or "nobody"
    lockspace: Lockspace
    this_host: Optional[dict[str, Any]]
    hosts: list[Host]
    leases: list[Lease]
    claims: list[Claim]


def status(
    session: Session,
    disks: Sequence[str] = (),
    *,
    observe_seconds: float = 0.0,
    image_directories: Sequence[str] = (),
    on_look: Callable[[Sequence[tuple[int, Leader]]], None] = lambda _records: None,
) -> Status:
    """Look at a lockspace once; nothing is written.

    ``image_directories`` may know disks of which nothing else tells. ``on_look`` is told the host records of
    each look. Raises ``NotJoined``, ``NoSuchArea``, ``OnDiskError`` and ``StorageError`` leaves.
    """
    with Lookout(session, disks, image_directories=image_directories, again=False) as lookout:
        return lookout.look(observe_seconds=observe_seconds, on_look=on_look)


class Lookout:
    """Looks at a lockspace again and again; ``again`` False: once, and then nothing is kept for more.

    ``image_directories`` may know disks of which nothing else tells.
    """

    def __init__(
        self,
        session: Session,
        disks: Sequence[str] = (),
        *,
        image_directories: Sequence[str] = (),
        again: bool = True,
    ) -> None:
        self._session = session
        self._disks = disks
        self._image_directories = image_directories
        self._again = again
        self._target: Optional[Target] = None
        self._directory: Optional[LockspaceDir] = None
        self._rows: dict[int, Observation] = {}
        self._names: dict[str, Optional[DiskName]] = {}  # by resource; None: nobody knew it

    def __enter__(self) -> Lookout:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._forget()

    def look(
        self,
        *,
        observe_seconds: float = 0.0,
        on_look: Callable[[Sequence[tuple[int, Leader]]], None] = lambda _records: None,
    ) -> Status:
        """What there is now. Raises as ``status`` does; another look may succeed."""
        session = self._session
        membership, target = _which(session)
        self._directory = directory = session.directory_of(membership) if membership is not None else None
        state = directory.read_state() if directory is not None else None
        claims = ClaimStore(directory.claims_path).all() if directory is not None else []
        if target != self._target:
            self._start(target)
        # What we saw ourselves goes on from what the daemon had seen, and is newer.
        rows = {**(directory.read_observations() if directory is not None else {}), **self._rows}
        try:
            lockspace, host_ids = _watch(self._records, rows, observe_seconds, on_look)
        except StorageError as error:
            if state is not None:
                error.hint = _own_hint(state)
            raise
        has_watched, self._rows = bool(self._rows), rows
        own_timeout = membership.io_timeout if membership is not None else lockspace.io_timeout
        # Whole seconds, as the protocol judges: what is shown dead here can be taken over now.
        now = float(clock.monotonic_seconds())
        our_id = state.membership.host_id if state is not None and _shown_state(state) == LIVE else 0
        hosts = [
            _host(host_id, rows[host_id], now, own_timeout, is_ours=host_id == our_id)
            for host_id in sorted(host_ids)
        ]
        observed_by = "daemon" if our_id and daemon_pid(session.run_dir) else "nobody"
        if observe_seconds or (has_watched and observed_by == "nobody"):
            observed_by = "watching"
        leases = self._leases(target, lockspace, hosts, claims, our_id)
        # A claim that its lease denies may have been given up between the two looks: then both are old.
        while directory is not None and not _agree(claims, leases):
            before, claims = claims, ClaimStore(directory.claims_path).all()
            if claims == before:
                break
            leases = self._leases(target, lockspace, hosts, claims, our_id)
        return Status(clock.wall(), observed_by, lockspace, _this_host(session, state), hosts, leases, claims)

    def with_own_state(self, seen: Status) -> Status:
        """An earlier look with what this host's own records say now: the storage is not touched."""
        state = self._directory.read_state() if self._directory is not None else None
        return seen._replace(this_host=_this_host(self._session, state))

    def _start(self, target: Target) -> None:
        self._forget()
        self._target = target
        self._records, self._areas = HostRecords(target, always_whole=not self._again), LeaseAreas()
        self._rows = {}

    def _forget(self) -> None:
        if self._target is not None:
            self._records.close()
            self._areas.close()

    def _leases(
        self,
        target: Target,
        lockspace: Lockspace,
        hosts: Sequence[Host],
        claims: Sequence[Claim],
        our_id: int,
    ) -> list[Lease]:
        paths = lease_paths(target, self._disks)
        by_id = {host.host_id: host for host in hosts}
        by_resource = {claim.resource: claim for claim in claims}
        highest = max(by_id, default=0)
        if self._again:
            joined = [host.host_id for host in hosts if host.state != FREE]
            areas = self._areas.read(paths, lockspace, joined=joined, highest=highest)
        else:
            areas = dump(paths, hosts=highest, missing_ok=True)
        leases = [
            lease_of(area, by_id, by_resource.get(os.path.basename(area.path)), our_id) for area in areas
        ]
        return self._named(leases)

    def _named(self, leases: Sequence[Lease]) -> list[Lease]:
        """Leases whose disk neither their owner note nor our claim tells, with the disk their digest proves.

        The sources are asked once for each lease, however often it is looked at.
        """
        unnamed = {lease.resource for lease in leases if lease.disk is None}
        if not unnamed <= self._names.keys():
            names = DiskNames(self._image_directories)
            self._names.update((resource, names.find(resource)) for resource in unnamed)
        return [_with_name(lease, self._names.get(lease.resource)) for lease in leases]


def _with_name(lease: Lease, found: Optional[DiskName]) -> Lease:
    if lease.disk is not None or found is None:
        return lease
    return lease._replace(disk=found.path, disk_source=found.source)


def _which(session: Session) -> tuple[Optional[Membership], Target]:
    """The lockspace to look at; one that this host has not joined can be looked at too."""
    config = load()
    target = configured_target(session, config)
    if target is not None:
        membership = find_membership(session, target)
        return membership, target
    membership = chosen_membership(session, config)
    if membership is not None:
        return membership, Target(
            membership.path, membership.offset, membership.name, 0, membership.lease_dir
        )
    for candidate in (local_target(session), parse_target("/var/lib/libvirt/sanlock")):
        if exists(candidate.path):
            return None, candidate
    raise NotJoined("this host has not joined any lockspace", hint="name one with -L TARGET")


def _watch(
    records: HostRecords,
    rows: dict[int, Observation],
    seconds: float,
    on_look: Callable[[Sequence[tuple[int, Leader]]], None],
) -> tuple[Lockspace, set[int]]:
    """Bring ``rows`` up to now, by one look or by watching; return the host ids that are in use."""
    end = clock.monotonic() + seconds
    while True:
        lockspace, occupied = records.read()
        now = clock.monotonic()
        on_look(occupied)
        for host_id, record in occupied:
            rows[host_id] = observe(rows.get(host_id, NEVER_OBSERVED), record, now)
        if now >= end:
            return lockspace, {host_id for host_id, _ in occupied}
        clock.sleep(min(1.0, end - now))


def _host(host_id: int, row: Observation, now: float, own_timeout: int, *, is_ours: bool) -> Host:
    state = host_state(row, now, own_io_timeout=own_timeout, is_ours=is_ours)
    silent = state == FREE
    io_timeout = sane_io_timeout(row.io_timeout, own_timeout)
    return Host(
        host_id,
        row.host_name,
        row.owner_generation,
        state,
        row.io_timeout,
        row.timestamp,
        None if silent else round(max(0.0, now - row.last_change), 1),
        None if silent else round(dead_in_seconds(row, now, own_io_timeout=own_timeout), 1),
        is_ours,
        id_renewal_warn_seconds(io_timeout),
        host_fail_seconds(io_timeout),
        host_dead_seconds(io_timeout),
    )


def _shown_state(state: HostState) -> str:
    """A host lease that has expired is lost, also where no daemon runs that would say so."""
    return LOST if state.state == LIVE and not state.is_certain(clock.boottime()) else state.state


def _own_hint(state: HostState) -> str:
    """What this host's own records tell while the storage does not answer."""
    member = state.membership
    if _shown_state(state) != LIVE:
        why = state.problem or "it has left"
        return f"this host (host id {member.host_id}) holds no host lease there: {why}"
    left = format_seconds(state.expires_at - clock.boottime())
    why = f" ({state.problem})" if state.problem else ""
    return f"the host lease of this host (host id {member.host_id}) ends in {left}, and its VMs with it{why}"


def _this_host(session: Session, state: Optional[HostState]) -> Optional[dict[str, Any]]:
    if state is None:
        return None
    member = state.membership
    shown = _shown_state(state)
    return {
        "host_id": member.host_id,
        "host_name": member.host_name,
        "generation": state.generation,
        "state": shown,
        "expires_in": round(state.expires_at - clock.boottime(), 1) if shown == LIVE else None,
        "daemon_pid": daemon_pid(session.run_dir) or None,
        "standby_pid": standby_pid(session.run_dir) or None,
        "watchdog": None,
        "level": LEVEL,
        "problem": state.problem,
        "warn_after": id_renewal_warn_seconds(member.io_timeout),
        "fail_after": id_renewal_fail_seconds(member.io_timeout),
    }


def _agree(claims: Sequence[Claim], leases: Sequence[Lease]) -> bool:
    looked_at = {lease.resource: lease for lease in leases}
    return all(
        claim.state != HELD or claim.resource not in looked_at or is_backed(claim, looked_at)
        for claim in claims
    )


def is_backed(claim: Claim, leases: Mapping[str, Lease]) -> bool:
    """Whether the disk says what a claim says: that the lease is this host's, of this generation."""
    lease = leases.get(claim.resource)
    return lease is not None and any(
        owner["this_host"] and owner["generation"] == claim.generation for owner in lease.owners
    )


def lease_paths(target: Target, disks: Sequence[str]) -> list[str]:
    """The lease files of disks, or of everything in the lease directory."""
    directory = target.lease_dir
    if disks and directory is not None:
        paths = []
        for disk in disks:
            given = os.path.join(os.getcwd(), disk)
            paths += [os.path.join(directory, resource_name(name)) for name in names_of(given)]
        found = [path for path in paths if exists(path)]
        if not found:
            raise NoSuchArea(
                f"{', '.join(disks)}: no lease in {directory}",
                hint="a lease is made when a disk is first acquired",
            )
        return found
    if directory is None:
        return []
    try:
        entries = patiently(directory, lambda: os.listdir(directory))
    except OSError as error:
        raise storage_error(error, directory, "cannot read the lease directory") from None
    return sorted(
        os.path.join(directory, name)
        for name in entries
        if name != LIBVIRT_LOCKSPACE and not name.startswith(".")
    )


def lease_of(area: AreaDump, hosts: dict[int, Host], claim: Optional[Claim], our_id: int) -> Lease:
    """What one resource area says, joined with what is known of the hosts and of this host's claim."""
    resource = area.leader["resource_name"] if area.leader else os.path.basename(area.path)
    note = area.owner_note or {}
    disk = claim.disk if claim is not None else noted_disk(note, resource)
    source = None if disk is None else "owner note" if claim is None else "claim"
    if area.kind != RESOURCE or area.leader is None or area.damage:
        lver = area.leader["lver"] if area.leader else None
        return Lease(
            resource, area.path, area.offset, disk, UNKNOWN_MODE, lver, [], None, area.damage, source
        )
    leader = area.leader
    dblocks = {dblock["host_id"]: dblock for dblock in area.dblocks or []}
    owners: list[dict[str, Any]] = []
    mode, takeover_in = FREE_MODE, 0.0
    exclusive = _exclusive_owner(leader, dblocks)
    if exclusive is not None:
        mode = EXCLUSIVE
        owners = [_owner(*exclusive, hosts, claim, note, our_id)]
    else:
        holders = [d for d in dblocks.values() if d["shared"] and _may_hold(d, hosts)]
        if holders:
            mode = SHARED
            owners = [_owner(d["host_id"], d["mode_generation"], hosts, claim, note, our_id) for d in holders]
    waits = [owner["takeover_in"] for owner in owners]
    earliest = None if None in waits else max(waits, default=takeover_in)
    lver = leader["lver"]
    return Lease(resource, area.path, area.offset, disk, mode, lver, owners, earliest, [], source)


def _exclusive_owner(leader: dict[str, Any], dblocks: dict[int, dict[str, Any]]) -> Optional[tuple[int, int]]:
    """Host id and generation of whoever holds the lease exclusively, or may: as an acquire would see it.

    A leader that another host wrote may be late: over a release, or over later versions, which the dblocks
    still know (``lease/paxos.py``).
    """
    later = [d for d in dblocks.values() if d["lver"] > leader["lver"] and d["bal"] and not d["released"]]
    if later:
        newest = max(later, key=lambda dblock: (dblock["lver"], dblock["bal"]))
        return newest["inp"], newest["inp2"]
    own = dblocks.get(leader["owner_id"])
    is_late = leader["write_id"] != leader["owner_id"] and own is not None
    if not leader["timestamp"] or (is_late and own and (own["released"] or own["lver"] > leader["lver"])):
        return None
    return leader["owner_id"], leader["owner_generation"]


def _may_hold(dblock: dict[str, Any], hosts: dict[int, Host]) -> bool:
    """A shared mark of a host that left, or of an earlier generation of it, holds nothing."""
    host = hosts.get(dblock["host_id"])
    return host is None or (host.state != FREE and host.generation <= dblock["mode_generation"])


def _owner(
    host_id: int,
    generation: int,
    hosts: dict[int, Host],
    claim: Optional[Claim],
    note: dict[str, Any],
    our_id: int,
) -> dict[str, Any]:
    host = hosts.get(host_id)
    gone = host is not None and (host.generation > generation or host.state in (FREE, DEAD))
    known: dict[str, Any] = {"pid": None, "vm": None, "uuid": None, "acquired_at": None}
    if claim is not None and host_id == our_id and claim.generation == generation:
        alive = [process.pid for process in claim.processes if is_alive(process)]
        known = {
            "pid": alive[0] if alive else None,
            "vm": claim.vm,
            "uuid": claim.uuid,
            "acquired_at": clock.rfc3339(claim.acquired_at),
        }
    elif note.get("current") and note.get("host_id") == host_id:
        known = {key: note.get(key) for key in known}
    return {
        "host_id": host_id,
        "host_name": host.host_name if host else None,
        "generation": generation,
        "state": host.state if host else "unknown",
        "io_timeout": host.io_timeout if host else None,
        "age": host.age if host else None,
        "dead_in": host.dead_in if host else None,
        **known,
        "this_host": host_id == our_id,
        "takeover_in": 0.0 if gone else (host.dead_in if host else None),
    }
