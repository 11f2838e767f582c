"""Which lockspace a command means, and whether this host is in it.

Command line > environment > configuration > libvirt's configuration > the lockspace that this host has
joined > the host-local lease directory, which protects this host only.
"""

from __future__ import annotations

import os
import stat

from vmlockctl import clock
from vmlockctl.config import LIBVIRT_LEASE_DIR, Config
from vmlockctl.daemon.control import ensure_running, is_running
from vmlockctl.daemon.hoststate import LEFT, LockspaceDir, Membership
from vmlockctl.daemon.memberships import Memberships
from vmlockctl.errors import ConfigError, DaemonNotRunning, IoTimeout, NoSuchArea, NotJoined, UsageError
from vmlockctl.host.rundir import RunDir
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, Target, parse_target
from vmlockctl.storage.patience import exists, patiently

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# How long a command waits for a daemon that it had to start to show that the host lease goes on.
_RESUME_SECONDS = 10.0


class Session(NamedTuple):
    """What every operation is told: this host's records, and the -L option."""

    run_dir: RunDir
    lockspace: Optional[str] = None

    @property
    def memberships(self) -> Memberships:
        return Memberships(self.run_dir)

    def directory_of(self, membership: Membership) -> LockspaceDir:
        return LockspaceDir(self.run_dir.lockspace_dir(membership.name, membership.path, membership.offset))


def open_session(*, run_dir: Optional[str] = None, lockspace: Optional[str] = None) -> Session:
    return Session(RunDir(run_dir), lockspace or os.environ.get("VMLOCKCTL_LOCKSPACE") or None)


def configured_target(session: Session, config: Config) -> Optional[Target]:
    """The lockspace that the command line, the environment or a file names."""
    text = session.lockspace or config.lockspace
    return parse_target(text) if text else None


def administered_target(session: Session, text: Optional[str], config: Config) -> Target:
    """The TARGET of init-lockspace, add-host and remove-host; libvirt's directory by default."""
    if text:
        return parse_target(text)
    return configured_target(session, config) or parse_target(LIBVIRT_LEASE_DIR)


def require_area(target: Target) -> None:
    """Raise ``NoSuchArea`` where a target names nothing: a better answer than "not joined"."""
    if not exists(target.path):
        raise NoSuchArea(f"{target.path}: no such lockspace")


def local_target(session: Session) -> Target:
    directory = session.run_dir.default_lease_dir
    return Target(os.path.join(directory, LIBVIRT_LOCKSPACE), 0, LIBVIRT_LOCKSPACE, 0, directory)


def find_membership(session: Session, target: Target) -> Optional[Membership]:
    """This host's membership of a lockspace, whichever way its path is written."""
    joined = session.memberships.all()
    for membership in joined:
        if (membership.path, membership.offset) == (target.path, target.offset):
            return membership
    wanted = _identity(target.path, target.offset) if joined else None
    for membership in joined:
        if wanted is not None and _identity(membership.path, membership.offset) == wanted:
            return membership
    return None


def _identity(path: str, offset: int) -> Optional[tuple[int, int, int]]:
    try:
        found = patiently(path, lambda: os.stat(path))
    except (OSError, IoTimeout):
        return None
    return (found.st_dev, found.st_ino, offset)


def chosen_membership(session: Session, config: Config) -> Optional[Membership]:
    """The lockspace for a command that takes disks; None: nothing is configured and nothing joined.

    Raises ``NotJoined`` where one is named that this host is not in, ``ConfigError`` where it would
    have to guess.
    """
    target = configured_target(session, config)
    if target is not None:
        membership = find_membership(session, target)
        if membership is None:
            place = target.lease_dir or target.path
            require_area(target)
            raise NotJoined(
                f"{place}: this host has not joined the lockspace",
                hint=f"vmlockctl add-host {place} --host-id auto",
            )
        return membership
    joined = session.memberships.all()
    shared = [m for m in joined if m.lease_dir != session.run_dir.default_lease_dir]
    if len(shared) > 1:
        raise ConfigError(
            "this host has joined several lockspaces: " + ", ".join(m.target for m in shared),
            hint="name one with -L, VMLOCKCTL_LOCKSPACE or 'lockspace' in /etc/vmlockctl.toml",
        )
    candidates = shared or joined
    return candidates[0] if candidates else None


def live_directory(session: Session, membership: Membership) -> LockspaceDir:
    """The lockspace's records, with a daemon that runs and a host lease that is certain.

    A daemon that is not running is started; it continues the host lease or stops the VMs, as the
    time that has passed demands.
    """
    directory = session.directory_of(membership)
    if is_running(session.run_dir):
        directory.require_live()
        return directory
    if not ensure_running(session.run_dir):
        raise DaemonNotRunning("the daemon cannot be started")
    deadline = clock.monotonic() + _RESUME_SECONDS
    while True:
        state = directory.read_state()
        if state is not None and state.is_certain(clock.boottime()) and is_running(session.run_dir):
            return directory
        if clock.monotonic() > deadline:
            directory.require_live()
            return directory
        clock.sleep(0.05)


def lease_path(membership: Membership, resource: str) -> str:
    """The file of a resource. Raises ``UsageError`` where the lockspace has no lease directory."""
    directory = membership.lease_dir or _directory_of_file(membership.path)
    if directory is None:
        raise UsageError(
            f"{membership.target}: a lockspace on a block device has no lease directory",
            hint="use a lease directory for leases of disks",
        )
    return os.path.join(directory, resource)


def _directory_of_file(path: str) -> Optional[str]:
    try:
        is_block = stat.S_ISBLK(patiently(path, lambda: os.stat(path)).st_mode)
    except OSError:
        is_block = False
    return None if is_block else os.path.dirname(path)


def has_joined(session: Session, target: Target) -> bool:
    membership = find_membership(session, target)
    if membership is None:
        return False
    state = session.directory_of(membership).read_state()
    return state is not None and state.state != LEFT
