"""init-lockspace: format a lockspace, and join it at once where ``host_id`` is given.

A file is published whole, under its final name, with the first host already inside it: nobody else
could have written it before, so that host needs no wait. An existing lockspace is never overwritten
without ``force``, and with it only when every host in it was *observed* dead or free: to format the area of
running hosts stops every guest of the cluster.
"""

from __future__ import annotations

import os
import stat

from vmlockctl import clock
from vmlockctl.config import Config, load
from vmlockctl.daemon.control import ensure_running
from vmlockctl.daemon.hoststate import Membership
from vmlockctl.errors import (
    CannotCreate,
    NoDirectIo,
    NoSuchArea,
    OnDiskError,
    Refused,
    StorageRefused,
    UsageError,
    storage_error,
)
from vmlockctl.lease.delta import check_host_id, identify_lockspace, occupied_records, probe, read_record
from vmlockctl.lease.liveness import DEAD, FREE, NEVER_OBSERVED, Observation, host_state, observe
from vmlockctl.lease.steps import Procedure, now, read_sectors, wait
from vmlockctl.lease.timeouts import (
    DEFAULT_IO_TIMEOUT,
    INIT_IO_SECONDS,
    MAX_IO_TIMEOUT,
    MIN_IO_TIMEOUT,
    host_dead_seconds,
    id_renewal_seconds,
    sane_io_timeout,
)
from vmlockctl.log import log, who
from vmlockctl.ondisk.area import lockspace_area, unpublished_lockspace_area
from vmlockctl.ondisk.geometry import Geometry, choose
from vmlockctl.ondisk.leader import Leader, name_field, new_delta
from vmlockctl.ops.add_host import add_host
from vmlockctl.ops.handover import remember_joined, remember_joining
from vmlockctl.ops.hostnames import host_name_of
from vmlockctl.ops.session import Session, administered_target, find_membership
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, Target
from vmlockctl.storage.driver import Driver
from vmlockctl.storage.publish import format_in_place, publish_file, replace_file
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from vmlockctl.lease.delta import Lockspace


SMALL_SECTOR, LARGE_SECTOR = 512, 4096


class Format(NamedTuple):
    """How the lockspace is to be made; None takes the default or the configuration."""

    name: Optional[str] = None
    io_timeout: Optional[int] = None
    sector_size: Optional[int] = None
    align_size: Optional[int] = None
    owner: Optional[str] = None
    group: Optional[str] = None
    mode: Optional[int] = None
    force: bool = False
    host_id: Optional[int] = None
    host_name: Optional[str] = None


class Initialised(NamedTuple):
    path: str
    offset: int
    name: str
    geometry: Geometry
    io_timeout: int
    created: bool
    joined_as: Optional[Membership]


def init_lockspace(
    session: Session,
    target_text: Optional[str],
    options: Format,
    *,
    on_wait: Optional[Callable[[float, str, float], None]] = None,
) -> Initialised:
    """Format the lockspace of TARGET unless it is there already."""
    config = load()
    target = administered_target(session, target_text, config)
    io_timeout = options.io_timeout or config.io_timeout or DEFAULT_IO_TIMEOUT
    if not MIN_IO_TIMEOUT <= io_timeout <= MAX_IO_TIMEOUT:
        raise UsageError(
            f"io_timeout {io_timeout} is out of range, expected {MIN_IO_TIMEOUT} to {MAX_IO_TIMEOUT}"
        )
    name = options.name or target.name or LIBVIRT_LOCKSPACE
    existing = _existing(target)
    geometry = _geometry_for(target.path, options, existing)
    if options.host_id is not None:
        check_host_id(geometry, options.host_id)
    if existing is not None and not options.force:
        return _keep(session, target, existing, name, geometry, options)
    if existing is not None:
        _require_all_dead(existing, on_wait)
    membership = None
    if options.host_id is not None:
        membership = Membership(
            target.path,
            target.offset,
            name,
            options.host_id,
            host_name_of(session, options.host_name, config),
            io_timeout,
            target.lease_dir,
        )
    again = existing is not None
    try:
        _create(session, target, geometry, name, io_timeout, membership, options, config, again=again)
    except NoDirectIo:
        if again or options.sector_size is not None or geometry.sector_size != SMALL_SECTOR:
            raise
        geometry = choose(LARGE_SECTOR, options.align_size)  # a file system on a disk of larger sectors
        if options.host_id is not None:
            check_host_id(geometry, options.host_id)
        _create(session, target, geometry, name, io_timeout, membership, options, config, again=again)
    return Initialised(
        target.path, target.offset, name, geometry, io_timeout, created=True, joined_as=membership
    )


def _geometry_for(path: str, options: Format, existing: Optional[Lockspace]) -> Geometry:
    """What is there already; else sanlock's defaults: 512 on a file, and on a block device its logical sector
    size, and never less. (Where a file system takes no sectors of 512 bytes, ``init_lockspace`` finds out.)
    """
    smallest = _logical_block_size(path) if _is_block(path) else SMALL_SECTOR
    if existing is not None and options.sector_size is None and options.align_size is None:
        there = existing.area.geometry
        if there.sector_size >= smallest:
            return there
    sector_size = options.sector_size or smallest
    if sector_size < smallest:
        raise UsageError(
            f"{path}: a sector size of {sector_size} bytes is too small for this device, "
            f"expected {smallest}: one write would hit the records of several hosts"
        )
    return choose(sector_size, options.align_size)


def _logical_block_size(path: str) -> int:
    device = _device_number(path)
    with open(f"/sys/dev/block/{device}/queue/logical_block_size", encoding="ascii") as file:
        return int(file.read())


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _device_number(path: str) -> str:
    device = os.stat(path).st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def _existing(target: Target) -> Optional[Lockspace]:
    """The lockspace that is there; None where there is nothing. Raises for what we do not understand."""
    with Driver(writable=False) as driver:
        try:
            head = driver.run(probe(target.path, target.offset, DEFAULT_IO_TIMEOUT))
        except NoSuchArea:
            return None
        if _is_block(target.path) and not any(head):
            return None
        try:
            existing = driver.run(identify_lockspace(target.path, target.offset, space_name=None))
            driver.run(read_record(existing, 1, existing.io_timeout))
            return existing
        except OnDiskError as error:
            error.hint = "it is left as it is; move it away first, or name another place"
            raise


def _keep(
    session: Session, target: Target, existing: Lockspace, name: str, geometry: Geometry, options: Format
) -> Initialised:
    """Same name and geometry, and joined as asked for: nothing to do. Otherwise: exists already."""
    same = existing.space_name == name and existing.area.geometry == geometry
    ours = find_membership(session, target) if options.host_id is not None else None
    if same and ours is None and options.host_id is not None:
        ours = _finish_joining(session, target, existing, options)
    if same and options.host_id == (ours.host_id if ours is not None else None):
        if ours is not None:
            ensure_running(session.run_dir)
        return Initialised(
            target.path, target.offset, name, geometry, existing.io_timeout, created=False, joined_as=ours
        )
    there = existing.area.geometry
    found = f"{safe(existing.space_name)!r} {there.sector_size}/{there.align_size}"
    raise CannotCreate(
        f"{target.path}:{target.offset}: a lockspace is there already, found {found}, "
        f"expected {safe(name)!r} {geometry.sector_size}/{geometry.align_size}"
        if options.host_id is None
        else f"{target.path}:{target.offset}: a lockspace is there already, found {found}",
        hint="join it with 'vmlockctl add-host', or format it again with --force when every host has left",
    )


def _finish_joining(
    session: Session, target: Target, existing: Lockspace, options: Format
) -> Optional[Membership]:
    """Join where the record of the host id carries our name: this command died half way, and is run again.

    With the care of any join; a live clone of this host is found out.
    """
    assert options.host_id is not None
    with Driver(writable=False) as driver:
        record = driver.run(read_record(existing, options.host_id, existing.io_timeout))
    if record.is_free or record.resource != host_name_of(session, options.host_name, load()):
        return None
    return add_host(
        session._replace(lockspace=None),
        target.lease_dir or f"{existing.space_name}:0:{target.path}:{target.offset}",
        host_id=options.host_id,
        host_name=options.host_name,
        io_timeout=options.io_timeout,
    ).membership


def _require_all_dead(existing: Lockspace, on_wait: Optional[Callable[[float, str, float], None]]) -> None:
    """Watch until every host that is not free is certainly dead. Raises ``Refused`` at a sign of life."""
    with Driver(writable=False, on_wait=on_wait) as driver:
        alive = driver.run(_watch_all(existing))
    if alive:
        names = ", ".join(f"{host_id} ({safe(name)})" for host_id, name in alive)
        raise Refused(
            f"{existing.area.path}:{existing.area.offset}: hosts are alive in this lockspace: {names}; "
            "to format it would stop every VM of theirs",
            hint="remove those hosts first: vmlockctl remove-host",
            details={"hosts": [host_id for host_id, _ in alive]},
        )


def _watch_all(existing: Lockspace) -> Procedure[list[tuple[int, str]]]:
    """Hosts that showed life, or [] once every one was frozen for its host_dead_seconds."""
    area = existing.area
    first = yield from now()
    rows: dict[int, Observation] = {}
    while True:
        image = yield from read_sectors(area, 0, area.geometry.sectors, existing.io_timeout)
        current = yield from now()
        for host_id, record in occupied_records(area, image):
            rows[host_id] = observe(rows.get(host_id, NEVER_OBSERVED), record, current)
        states = {
            host_id: host_state(row, current, own_io_timeout=existing.io_timeout)
            for host_id, row in rows.items()
        }
        alive = [
            (host_id, row.host_name)
            for host_id, row in rows.items()
            if row.last_live > row.first_check and states[host_id] != FREE
        ]
        if alive or all(state in (FREE, DEAD) for state in states.values()):
            return alive
        slowest = max(
            host_dead_seconds(sane_io_timeout(row.io_timeout, existing.io_timeout)) for row in rows.values()
        )
        left = slowest - (current - first)
        yield from wait(
            min(id_renewal_seconds(existing.io_timeout), max(1.0, left)),
            f"watching {len(rows)} hosts for a sign of life",
            left_seconds=max(0.0, left),
        )


def _create(
    session: Session,
    target: Target,
    geometry: Geometry,
    name: str,
    io_timeout: int,
    membership: Optional[Membership],
    options: Format,
    config: Config,
    *,
    again: bool,
) -> None:
    """Write the area: in the place of a lockspace that was judged, else as a file that did not exist.

    A file that somebody else published since we looked is theirs, perhaps with hosts in it already.
    """
    area = lockspace_area(geometry, space_name=name, io_timeout=io_timeout)
    renewed_at, record = clock.boottime(), None
    if membership is not None:
        record, area = _with_first_host(area, geometry, membership)
        remember_joining(session, membership, record.to_bytes(), geometry)
    directory = os.path.dirname(target.path)
    _make_directory(directory)
    if again and _is_all_of_a_file(target, len(area)):
        replace_file(target.path, area, timeout_seconds=INIT_IO_SECONDS)
    elif again or _is_block(target.path):
        format_in_place(
            target.path,
            target.offset,
            (unpublished_lockspace_area(area), area),
            timeout_seconds=INIT_IO_SECONDS,
        )
    else:
        if target.offset:
            raise NoSuchArea(f"{target.path}: no such file or device, so no offset {target.offset} in it")
        mode = (
            options.mode if options.mode is not None else (0o660 if options.group or config.group else 0o600)
        )
        if not publish_file(
            target.path,
            area,
            sector_size=geometry.sector_size,
            owner=_owner(options, config),
            mode=mode,
            timeout_seconds=INIT_IO_SECONDS,
        ):
            raise CannotCreate(f"{target.path}: somebody else created it in the same moment")
    log(f"write {target.path}:{target.offset} {len(area)} bytes: new lockspace {name} by {who()}")
    if membership is not None and record is not None:
        remember_joined(session, membership, record, geometry, renewed_at)


def _is_all_of_a_file(target: Target, size: int) -> bool:
    """Whether the lockspace is a file of its own: that can be replaced whole, in one step."""
    return not _is_block(target.path) and target.offset == 0 and os.stat(target.path).st_size == size


def _with_first_host(area: bytes, geometry: Geometry, membership: Membership) -> tuple[Leader, bytes]:
    """The same area with one host joined in its first generation."""
    free = new_delta(geometry, space_name=membership.name, io_timeout=membership.io_timeout)
    record = free._replace(
        owner_id=membership.host_id,
        owner_generation=1,
        resource_name=name_field(membership.host_name),
        timestamp=clock.monotonic_seconds(),
    ).sealed()
    start = geometry.delta_sector(membership.host_id) * geometry.sector_size
    end = start + geometry.sector_size
    return record, area[:start] + record.sector(geometry.sector_size) + area[end:]


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except NotADirectoryError:
        raise CannotCreate(f"{path}: cannot create the lease directory: not a directory") from None
    except FileExistsError:
        raise CannotCreate(f"{path}: cannot create the lease directory: a file is there") from None
    except OSError as error:
        raise storage_error(error, path, "cannot create the lease directory") from None


def _owner(options: Format, config: Config) -> Optional[tuple[int, int]]:
    """Uid and gid for the file, from the command line or the configuration; only root can give them."""
    user, group = options.owner or config.user, options.group or config.group
    if user is None and group is None:
        return None
    import grp
    import pwd

    try:
        uid = pwd.getpwnam(user).pw_uid if user else os.getuid()
        gid = grp.getgrnam(group).gr_gid if group else os.getgid()
    except KeyError as error:
        raise UsageError(f"no such user or group: {error.args[0]}") from None
    if os.getuid() != 0 and (uid, gid) != (os.getuid(), os.getgid()):
        raise StorageRefused("only root can give the lockspace to another user")
    return uid, gid
