"""What is proven safe to do about findings, and the writes that it takes. Nothing here ends a process.

*Adopt*: a running VM gets its lease by an ordinary acquire for its process. Where the lease is this host's
already, that wins the next version of it, and between the two it is never free.
*Release*: a lease of our own generation, looked at once more under the lock of its claim.
*Take over and release*: of a dead host or an earlier generation; the acquire proves that its owner is gone.
*Remove*: a lease file whose disk is gone, while its lease is held (``managers/removal.py``).
"""

from __future__ import annotations

import os

from vmlockctl.config import load
from vmlockctl.errors import Refused, VmlockctlError
from vmlockctl.host.openers import find_openers
from vmlockctl.host.process import cmdline, identify
from vmlockctl.host.qemu import vm_name, vm_uuid
from vmlockctl.managers.base import User, Want, lock_manager
from vmlockctl.managers.embedded import EmbeddedManager
from vmlockctl.managers.removal import LeaseRemover
from vmlockctl.ops.acquire import DiskRequest, Options, acquire
from vmlockctl.ops.orphans.disks import GONE, look_for
from vmlockctl.ops.orphans.finding import ADOPT, RELEASE_OURS, REMOVE, TAKE_AND_RELEASE, Finding
from vmlockctl.ops.orphans.view import identity_of
from vmlockctl.ops.session import Session, chosen_membership, live_directory
from vmlockctl.ops.takeover import take_and_release
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmlockctl.daemon.hoststate import LockspaceDir

# In this order: a VM that runs is protected before anything is given away.
_ORDER = (ADOPT, RELEASE_OURS, TAKE_AND_RELEASE, REMOVE)
_DONE = {ADOPT: "adopted", RELEASE_OURS: "released", TAKE_AND_RELEASE: "released", REMOVE: "removed"}


class Fixed(NamedTuple):
    finding: Finding
    done: bool
    text: str


def fixable(findings: Sequence[Finding], *, fix: bool, prune: bool) -> list[Finding]:
    """The findings that the two options ask to do something about, in the order of doing it."""
    wanted = [
        finding
        for finding in findings
        if finding.fix is not None and (prune if finding.fix == REMOVE else fix)
    ]
    return sorted(wanted, key=lambda finding: _ORDER.index(finding.fix or ""))


def apply(session: Session, wanted: Sequence[Finding]) -> list[Fixed]:
    """Do what the fixes of these findings say, each for itself; what refuses is left as it is."""
    if not wanted:
        return []
    membership = chosen_membership(session, load())
    if membership is None:
        raise Refused("this host has not joined the lockspace, so it can change nothing in it")
    directory = live_directory(session, membership)
    results = []
    for finding in wanted:
        try:
            _apply_one(session, directory, finding)
        except VmlockctlError as error:
            results.append(Fixed(finding, False, f"left as it is: {error.message}"))  # noqa: FBT003
        else:
            results.append(Fixed(finding, True, _DONE[finding.fix or ""]))  # noqa: FBT003
    return results


def _apply_one(session: Session, directory: LockspaceDir, finding: Finding) -> None:
    if finding.fix == ADOPT:
        _adopt(session, finding)
    elif finding.fix == RELEASE_OURS:
        EmbeddedManager(directory).release_unclaimed(_want(finding))
    elif finding.fix == TAKE_AND_RELEASE:
        manager = lock_manager(load().lock_manager, directory)
        take_and_release(manager, [_want(finding)], command="check-orphans")
    else:
        _refuse_unless_gone(finding)
        LeaseRemover(directory).remove(_want(finding), _ourselves())


def _adopt(session: Session, finding: Finding) -> None:
    """Acquire for the process, if it is still the one that uses the disk: pids are used again."""
    assert finding.disk is not None
    assert finding.pid is not None
    identity = identity_of(finding.disk)
    openers = find_openers([identity]).openers.get(identity, []) if identity is not None else []
    if finding.pid not in [opener.pid for opener in openers if opener.writable]:
        raise Refused(f"process {finding.pid} does not have {safe(finding.disk)} open for writing any more")
    argv = cmdline(finding.pid)
    options = Options(vm=vm_name(argv) or "", uuid=vm_uuid(argv) or "")
    acquire(session, [DiskRequest(finding.disk)], pid=finding.pid, options=options)


def _refuse_unless_gone(finding: Finding) -> None:
    """Look again: a disk may have come back while somebody was asked."""
    sight = look_for(finding.disk or "")
    if sight.state != GONE:
        raise Refused(safe(sight.evidence))


def _ourselves() -> User:
    process = identify(os.getpid())
    assert process is not None
    return User(process, vm="check-orphans")


def _want(finding: Finding) -> Want:
    assert finding.resource is not None
    assert finding.path is not None
    disk = finding.disk or finding.resource
    return Want(finding.resource, finding.path, 0, disk, identity_of(finding.disk), shared=False)
