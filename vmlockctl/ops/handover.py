"""What a command that joins a lockspace writes down for the daemon, and for itself if it dies half way.

In this order: the record that it is about to write (``remember_joining``), the record on the disk, then the
host lease and the membership (``remember_joined``). Wherever a command dies, running it again finds out how
far it came: it need not wait for its own record as a stranger would, and never has to be told by a person.
"""

from __future__ import annotations

from vmlockctl.daemon.claims import ClaimStore
from vmlockctl.daemon.control import ensure_running
from vmlockctl.daemon.hoststate import JOINING, LEFT, HostState, LockspaceDir, Membership
from vmlockctl.daemon.renewal import joined_state
from vmlockctl.host.process import boot_id
from vmlockctl.host.rundir import FileLock
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.leader import Leader
from vmlockctl.ops.session import Session


def remember_joining(session: Session, membership: Membership, record: bytes, geometry: Geometry) -> None:
    """Write down the record that we are about to write, where that loses nothing.

    The caller has made sure that every earlier instance of this host is gone, or never was.
    """
    session.run_dir.create()
    directory = session.directory_of(membership).create()
    before = directory.read_state()
    if before is None or nothing_relies_on(directory, before):
        attempts = (record.hex(),)
        directory.write_state(
            HostState(membership, JOINING, 0, *geometry, "", attempts, renewed_at=0.0, boot_id=boot_id())
        )


def nothing_relies_on(directory: LockspaceDir, state: HostState) -> bool:
    """Whether no process can be relying on the host lease of host.json, which nobody renews now.

    ``JOINING`` with an attempt was written when every earlier instance was known to be gone, and nothing is
    granted in that state. Otherwise whoever was granted a lease has a claim beside host.json.
    """
    if state.state == LEFT or not state.is_this_boot:
        return True
    if state.state == JOINING:
        return bool(state.attempts)
    return not ClaimStore(directory.claims_path).all()


def remember_joined(
    session: Session, membership: Membership, record: Leader, geometry: Geometry, renewed_at: float
) -> None:
    """Write down that this host joined, so that its daemon renews from here on, and see that it runs."""
    session.run_dir.create()
    directory = session.directory_of(membership).create()
    with FileLock(directory.host_lock_path):
        directory.write_state(
            joined_state(membership, record.to_bytes(), record.owner_generation, geometry, renewed_at)
        )
        session.memberships.add(membership)
    ensure_running(session.run_dir)
