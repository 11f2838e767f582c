"""The host-local lease directory: what protects VMs of this host when nothing is configured.

Made on first use, with this host already in it as host id 1: no wait.
"""

from __future__ import annotations

from vmlockctl.errors import CannotCreate
from vmlockctl.host.rundir import FileLock
from vmlockctl.ops.session import Session, find_membership, local_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlockctl.daemon.hoststate import Membership

LOCAL_HOST_ID = 1


def ensure_local_lockspace(session: Session) -> Membership:
    """This host's membership of its local lease directory; created and joined if need be."""
    target = local_target(session)
    session.run_dir.create()
    with FileLock(session.run_dir.file("local.lock")):
        membership = find_membership(session, target)
        if membership is not None:
            return membership
        from vmlockctl.ops.init_lockspace import Format, init_lockspace

        try:
            made = init_lockspace(session, target.lease_dir, Format(host_id=LOCAL_HOST_ID))
        except CannotCreate:
            # It outlived this host's records (a removed run directory): join it as anybody would.
            from vmlockctl.ops.add_host import add_host

            return add_host(session, target.lease_dir, host_id=LOCAL_HOST_ID).membership
    assert made.joined_as is not None
    return made.joined_as
