"""Lease areas as files: make them appear whole, owned like their lockspace."""

from __future__ import annotations

import os
import stat

from vmlockctl.errors import storage_error
from vmlockctl.lease.timeouts import INIT_IO_SECONDS
from vmlockctl.log import log, who
from vmlockctl.ondisk.area import resource_area
from vmlockctl.storage.patience import patiently
from vmlockctl.storage.publish import publish_file
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlockctl.daemon.hoststate import LockspaceDir, Membership


def ensure_lease_file(
    membership: Membership, directory: LockspaceDir, resource: str, path: str, *, disk: str
) -> None:
    """Create the lease file of a resource if it is missing; an existing one is left as it is."""
    if _is_there(path):
        return
    try:
        like = patiently(membership.path, lambda: os.stat(membership.path))
    except OSError as error:
        raise storage_error(error, membership.path, "cannot look at the lockspace") from None
    state = directory.require_live()
    geometry = state.lockspace.area.geometry
    area = resource_area(geometry, space_name=membership.name, resource_name=resource)
    mode = 0o600 | (stat.S_IMODE(like.st_mode) & 0o060)
    owner = (like.st_uid, like.st_gid) if os.getuid() == 0 else None
    if publish_file(
        path, area, sector_size=geometry.sector_size, owner=owner, mode=mode, timeout_seconds=INIT_IO_SECONDS
    ):
        log(f"write {path}:0 {len(area)} bytes: new lease {resource} of {safe(disk)} by {who()}")


def _is_there(path: str) -> bool:
    """Whether anything has that name; storage that cannot say so is no answer."""
    try:
        patiently(path, lambda: os.lstat(path))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path, "cannot look at the lease") from None
    return True
