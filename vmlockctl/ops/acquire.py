"""acquire: all leases of some disks, or none, for a running process.

Next: ``managers/embedded.py``, which works on one lease after the other.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.config import Config, load
from vmlockctl.daemon.hoststate import LEVEL, LockspaceDir, Membership
from vmlockctl.errors import (
    ContentionError,
    GaveUpWaiting,
    LeaseHeld,
    NoSuchArea,
    ProcessError,
    Refused,
    UsageError,
    VmlockctlError,
)
from vmlockctl.host.process import Process, belongs_to_us, identify
from vmlockctl.lease.liveness import NEVER_OBSERVED, host_state
from vmlockctl.lease.resource import Claimant
from vmlockctl.managers.base import Grant, Terms, User, Want, lock_manager
from vmlockctl.ops.areas import ensure_lease_file
from vmlockctl.ops.disks import Disk, find_disk
from vmlockctl.ops.local import ensure_local_lockspace
from vmlockctl.ops.session import Session, chosen_membership, lease_path, live_directory
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Optional

# An attempt of --wait at least so often, whether the lease looks free or not; random, so that no
# host is always second.
_RETRY_SECONDS = (0.4, 1.0)


class DiskRequest(NamedTuple):
    path: str
    shared: bool = False


class Options(NamedTuple):
    """The options that acquire and run share. ``wait_seconds`` None: do not wait."""

    wait_seconds: Optional[float] = None
    vm: str = ""
    uuid: str = ""
    expect_lver: Optional[int] = None
    allow_alias: bool = False
    require_level: int = 0


class Acquired(NamedTuple):
    grants: list[Grant]
    membership: Membership
    host_local: bool


def acquire(
    session: Session,
    requests: Sequence[DiskRequest],
    *,
    pid: int,
    options: Options = Options(),  # noqa: B008 - immutable
    on_wait: Callable[[str, Optional[float]], None] = lambda _why, _left: None,
) -> Acquired:
    """Acquire the leases of every disk for process ``pid``.

    ``on_wait`` is told who holds what, and the seconds left, before each new attempt. Raises
    ``ContentionError`` leaves (or ``GaveUpWaiting`` after waiting), and what the disks, the process, the
    storage and the host lease may raise.
    """
    process = claimable_process(pid)
    if options.require_level > LEVEL:
        raise Refused(
            f"guarantee level {options.require_level} is required, found level {LEVEL}",
            hint="level 1 is this daemon and its standby; a watchdog would make it 2",
            details={"level": LEVEL},
        )
    if not requests:
        raise UsageError("no disk named", hint="name at least one disk")
    disks = [find_disk(r.path, shared=r.shared, allow_alias=options.allow_alias) for r in requests]
    config = load()
    membership = chosen_membership(session, config)
    if membership is None:
        membership = ensure_local_lockspace(session)
    directory = live_directory(session, membership)
    wants = leases_of(membership, disks)
    try:
        user = User(process, options.vm, options.uuid)
        grants = _acquire_waiting(config, membership, directory, wants, user, options, on_wait)
    except VmlockctlError as error:
        _name_disks(error, wants)
        raise
    return Acquired(grants, membership, membership.lease_dir == session.run_dir.default_lease_dir)


def claimable_process(pid: int) -> Process:
    """The process that is to hold the leases. Raises ``ProcessError``, ``Refused``."""
    try:
        process = identify(pid) if pid > 0 else None
        ours = process is not None and belongs_to_us(pid)
    except PermissionError:
        ours, process = False, Process(pid, 0, "")
    except ProcessLookupError:
        process = None
    if process is None:
        raise ProcessError(
            f"process {pid} does not run (no such process, or a zombie)",
            hint="name a running process with --pid",
            details={"pid": pid},
        )
    if not ours:
        raise Refused(
            f"process {pid} belongs to somebody else: it could not be stopped if the lease were lost",
            hint="run as root, or as the user of that process",
            details={"pid": pid},
        )
    return process


def leases_of(membership: Membership, disks: Sequence[Disk]) -> list[Want]:
    """One lease for each name of each disk; a disk that is wanted both ways is wanted exclusively."""
    wants: dict[str, Want] = {}
    for disk in disks:
        for name in disk.names:
            resource = resource_name(name)
            want = Want(resource, lease_path(membership, resource), 0, name, disk.identity, disk.shared)
            if resource not in wants or wants[resource].shared:
                wants[resource] = want
    exclusive = {want.identity for want in wants.values() if not want.shared}
    return [w._replace(shared=False) if w.identity in exclusive else w for w in wants.values()]


def _acquire_waiting(
    config: Config,
    membership: Membership,
    directory: LockspaceDir,
    wants: Sequence[Want],
    user: User,
    options: Options,
    on_wait: Callable[[str, Optional[float]], None],
) -> list[Grant]:
    manager = lock_manager(config.lock_manager, directory)
    deadline = clock.monotonic() + (options.wait_seconds or 0.0)
    removed = False
    while True:
        for want in wants:
            ensure_lease_file(membership, directory, want.resource, want.path, disk=want.disk)
        try:
            return manager.acquire(wants, user, terms=Terms(options.expect_lver))
        except NoSuchArea:
            if removed:
                raise
            removed = True  # since it was made sure of: "check-orphans --prune" of somebody
        except ContentionError as error:
            explain_holder(error, directory, wants)
            if options.wait_seconds is None:
                raise
            left = deadline - clock.monotonic()
            if left <= 0:
                raise GaveUpWaiting(
                    f"gave up waiting after {format_seconds(options.wait_seconds)}: {error.message}",
                    hint=error.hint,
                    details=error.details,
                ) from None
            on_wait(error.message, left if left != float("inf") else None)
            manager.wait_until_free(wants, min(_retry_delay(), max(0.0, left)), error)


def _retry_delay() -> float:
    from random import uniform  # 2 ms to load, and only who waits needs it

    return uniform(*_RETRY_SECONDS)


def _name_disks(error: VmlockctlError, wants: Sequence[Want]) -> None:
    for want in wants:
        error.name_disk(want.resource, safe(want.disk))


def explain_holder(error: ContentionError, directory: LockspaceDir, wants: Sequence[Want]) -> None:
    """Add what the operator asks next: which disk, who, in what state, and when it can be taken."""
    _name_disks(error, wants)
    state = directory.read_state()
    if state is None or not isinstance(error, LeaseHeld) or error.details.get("explained"):
        return
    claimant = directory.claimant(state)
    owners = error.details.get("owners", [])
    for owner in owners:
        _add_observation(owner, claimant)
    foreign = [owner for owner in owners if not owner.get("this_host")]
    disk = next((w.disk for w in wants if w.resource in error.message), None)
    if foreign and disk is not None:
        who = ", ".join(_describe(owner) for owner in foreign)
        mode = error.details.get("mode", "exclusive")
        error.message = f"{safe(disk)} is in use: its lease is held {mode} by {who}"
        if error.details.get("takeover_in") is not None:
            error.message += (
                f"; it can be taken in {format_seconds(error.details['takeover_in'])} at the earliest"
            )
        error.args = (error.message,)
        error.hint = (
            "stop the VM there, or wait with --wait; if that host is down its lease expires by itself"
        )
    error.details.update(disk=disk, explained=True)


def _add_observation(owner: dict[str, object], claimant: Claimant) -> None:
    host_id = owner.get("host_id")
    row = claimant.observations.get(host_id if isinstance(host_id, int) else 0, NEVER_OBSERVED)
    now = float(clock.monotonic_seconds())
    owner.setdefault("host_name", row.host_name)
    owner["state"] = host_state(
        row, now, own_io_timeout=claimant.io_timeout, is_ours=host_id == claimant.host_id
    )
    owner["age"] = round(max(0.0, now - row.last_change), 1) if row.first_check else None


def _describe(owner: dict[str, object]) -> str:
    text = f"host {safe(str(owner.get('host_name') or 'unknown'))!r} (host id {owner.get('host_id')}"
    text += f", generation {owner.get('generation')}, {owner.get('state')}"
    if owner.get("vm") or owner.get("pid"):
        text += f", VM {safe(str(owner.get('vm') or '?'))!r} process {owner.get('pid')}"
    return text + ")"


def parent_pid() -> int:
    """The default process of acquire and release: whoever called us."""
    return os.getppid()
