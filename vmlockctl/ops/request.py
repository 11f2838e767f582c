"""request: ask whoever holds a disk's lease exclusively, on whichever host, to let it go.

Next: ``lease/request.py``. The disk need not exist on this host: its path names the lease.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.config import load
from vmlockctl.errors import NoSuchArea, NotJoined, VmlockctlError
from vmlockctl.lease.liveness import NEVER_OBSERVED, host_state
from vmlockctl.lease.timeouts import id_renewal_seconds, sane_io_timeout
from vmlockctl.managers.base import Want, lock_manager
from vmlockctl.ops.session import Session, chosen_membership, lease_path, live_directory
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name
from vmlockctl.storage.patience import exists, names_of
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from vmlockctl.daemon.hoststate import LockspaceDir


class Requested(NamedTuple):
    """A request that stands on the disk. ``owner`` None: nobody holds the lease exclusively."""

    disk: str
    resource: str
    lver: Optional[int]
    force: bool
    owner: Optional[dict[str, object]]
    heeded_within: Optional[int]  # seconds, where the owner's host is alive: our renewal, then its own


def request(session: Session, disk: str, *, force: bool) -> Requested:
    """Ask. Raises ``NotJoined``, ``NoSuchArea``, ``RequestPending``, ``OnDiskError``, ``StorageError``."""
    lock_manager_name, directory, want = _prepared(session, disk)
    try:
        asked = lock_manager(lock_manager_name, directory).request(want, force=force)
    except VmlockctlError as error:
        error.name_disk(want.resource, safe(want.disk))
        raise
    if asked is None:
        return Requested(want.disk, want.resource, None, force, None, None)
    member = directory.require_live().membership
    row = directory.read_observations().get(asked.owner_id, NEVER_OBSERVED)
    ours = asked.owner_id == member.host_id
    owner = {
        "host_id": asked.owner_id,
        "generation": asked.owner_generation,
        "host_name": member.host_name if ours else row.host_name,
        "state": host_state(row, clock.monotonic_seconds(), own_io_timeout=member.io_timeout, is_ours=ours),
        "this_host": ours,
    }
    owner_timeout = sane_io_timeout(row.io_timeout, member.io_timeout)
    within = id_renewal_seconds(member.io_timeout) + id_renewal_seconds(owner_timeout)
    return Requested(want.disk, want.resource, asked.lver, force, owner, within)


def clear_request(session: Session, disk: str) -> bool:
    """Take back whatever request stands for a disk's lease; whether one did."""
    lock_manager_name, directory, want = _prepared(session, disk)
    try:
        return lock_manager(lock_manager_name, directory).clear_request(want)
    except VmlockctlError as error:
        error.name_disk(want.resource, safe(want.disk))
        raise


def _prepared(session: Session, disk: str) -> tuple[str, LockspaceDir, Want]:
    config = load()
    membership = chosen_membership(session, config)
    if membership is None:
        raise NotJoined("this host has not joined any lockspace, so it can ask nobody")
    directory = live_directory(session, membership)
    path = os.path.join(os.getcwd(), disk)
    for name in names_of(path):
        resource = resource_name(name)
        area = lease_path(membership, resource)
        if exists(area):
            return config.lock_manager, directory, Want(resource, area, 0, name, None, shared=False)
    raise NoSuchArea(
        f"{safe(path)}: there is no lease of it in {membership.target}",
        hint="name the disk by the path that its VM uses",
        details={"disk": path},
    )
