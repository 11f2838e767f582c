"""add-host: claim a host id in a lockspace, and see that the daemon renews it.

The command joins directly on the disk, then hands the host lease to the daemon, which continues it as it
would continue its own after a crash.
"""

from __future__ import annotations

from vmlockctl import clock
from vmlockctl.config import load
from vmlockctl.daemon.control import ensure_running
from vmlockctl.daemon.hoststate import LEAVING, LEFT, Membership
from vmlockctl.daemon.renewal import log_write
from vmlockctl.errors import ContentionError, HostIdBusy, SetupError
from vmlockctl.host.rundir import FileLock
from vmlockctl.host.sanlockd import joined_lockspaces
from vmlockctl.lease.delta import Lockspace, check_host_id, identify_lockspace, join, occupied_records
from vmlockctl.lease.steps import read_sectors
from vmlockctl.lease.timeouts import DEFAULT_IO_TIMEOUT
from vmlockctl.ops.handover import nothing_relies_on, remember_joined, remember_joining
from vmlockctl.ops.hostnames import host_name_of
from vmlockctl.ops.session import Session, administered_target, find_membership
from vmlockctl.records import NamedTuple
from vmlockctl.specs import check_host_name
from vmlockctl.storage.driver import Driver
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

_AUTO_ATTEMPTS = 20


class Joined(NamedTuple):
    membership: Membership
    generation: int
    already: bool


def add_host(
    session: Session,
    target_text: Optional[str],
    *,
    host_id: Optional[int],
    host_name: Optional[str] = None,
    io_timeout: Optional[int] = None,
    on_wait: Optional[Callable[[float, str, float], None]] = None,
) -> Joined:
    """Join the lockspace as ``host_id``; None chooses one: our own from before, else a free one.

    Raises ``HostIdBusy``, ``OnDiskError`` and ``StorageError`` leaves, ``UsageError``, ``NoSuchArea``.
    """
    config = load()
    target = administered_target(session, target_text, config)
    if host_name is not None:
        check_host_name(host_name)
    known = find_membership(session, target)
    if known is not None:
        already = _already_joined(session, known, host_id, host_name)
        if already is not None:
            return already
    with Driver(writable=False) as reader:
        lockspace = reader.run(identify_lockspace(target.path, target.offset, space_name=target.name))
    if host_id is not None:
        check_host_id(lockspace.area.geometry, host_id)
    name = host_name_of(session, host_name, config)
    timeout = io_timeout or config.io_timeout or lockspace.io_timeout or DEFAULT_IO_TIMEOUT
    session.run_dir.create()
    for _ in range(_AUTO_ATTEMPTS):
        chosen = host_id if host_id is not None else _choose(lockspace, name, target.path)
        _refuse_sanlock_host_id(lockspace, chosen)
        membership = Membership(
            target.path, target.offset, lockspace.space_name, chosen, name, timeout, target.lease_dir
        )
        try:
            return _join(session, lockspace, membership, on_wait)
        except HostIdBusy:
            if host_id is not None:
                raise  # auto: somebody else was faster; choose again
    raise ContentionError("every free host id was claimed by another host in the same moment; try again")


def _already_joined(
    session: Session, known: Membership, host_id: Optional[int], host_name: Optional[str]
) -> Optional[Joined]:
    """The answer when this host is in the lockspace; None if it is not, in fact."""
    state = session.directory_of(known).read_state()
    if state is None or state.state in (LEAVING, LEFT):
        return None
    if host_id not in (None, known.host_id) or host_name not in (None, known.host_name):
        raise SetupError(
            f"{known.target}: this host has joined already as host id {known.host_id} "
            f"({safe(known.host_name)})",
            hint="leave first with 'vmlockctl remove-host'",
        )
    ensure_running(session.run_dir)
    return Joined(known, state.generation, already=True)


def _join(
    session: Session,
    lockspace: Lockspace,
    membership: Membership,
    on_wait: Optional[Callable[[float, str, float], None]],
) -> Joined:
    directory = session.directory_of(membership).create()
    started = 0.0

    def note_start() -> None:
        nonlocal started
        started = clock.boottime()

    def journal(record: bytes) -> None:
        remember_joining(session, membership, record, lockspace.area.geometry)

    lock = FileLock(directory.host_lock_path)
    if not lock.try_acquire():
        raise HostIdBusy(f"{membership.target}: another process of this host is joining or leaving it")
    try:
        before = directory.read_state()
        if before is not None and before.membership == membership and before.is_certain(clock.boottime()):
            # A command joined, and died before it handed the host lease over: the daemon continues it.
            session.memberships.add(membership)
            ensure_running(session.run_dir)
            return Joined(membership, before.generation, already=False)
        earlier_gone = before is not None and nothing_relies_on(directory, before)
        with Driver(on_write=log_write, on_wait=on_wait, guard=note_start, journal=journal) as driver:
            lease = driver.run(
                join(
                    lockspace,
                    host_id=membership.host_id,
                    host_name=membership.host_name,
                    io_timeout=membership.io_timeout,
                    earlier_instance_gone=earlier_gone,
                )
            )
    finally:
        lock.release()
    remember_joined(session, membership, lease.record, lockspace.area.geometry, started)
    return Joined(membership, lease.generation, already=False)


def _choose(lockspace: Lockspace, host_name: str, path: str) -> int:
    """Our own host id from before, else the lowest that is free."""
    area = lockspace.area
    with Driver(writable=False) as reader:
        image = reader.run(read_sectors(area, 0, area.geometry.sectors, lockspace.io_timeout))
    records = dict(occupied_records(area, image))
    for host_id, record in records.items():
        if record.resource == host_name:
            return host_id
    for host_id in range(1, area.geometry.max_hosts + 1):
        if host_id not in records or records[host_id].is_free:
            return host_id
    raise ContentionError(f"{path}: every host id of the lockspace is taken")


def _refuse_sanlock_host_id(lockspace: Lockspace, host_id: int) -> None:
    """A sanlock daemon of this machine holds that host id: two programs never hold one."""
    for joined in joined_lockspaces():
        if joined.name == lockspace.space_name and joined.host_id == host_id:
            raise HostIdBusy(
                f"host id {host_id} is held by the sanlock daemon of this machine",
                hint="give vmlockctl a host id of its own",
                details={"host_id": host_id},
            )
