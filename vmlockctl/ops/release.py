"""release: give leases back, unless a process may still write the disk."""

from __future__ import annotations

import os

from vmlockctl.config import load
from vmlockctl.daemon.claims import Claim, ClaimStore, takers_over
from vmlockctl.errors import NotHeld, NotJoined, Refused, VmlockctlError
from vmlockctl.host.process import comm, is_alive
from vmlockctl.managers.base import lock_manager
from vmlockctl.ops.session import Session, chosen_membership, live_directory
from vmlockctl.specs import resource_name
from vmlockctl.storage.patience import names_of
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from vmlockctl.managers.base import LockManager


def release(session: Session, disks: Sequence[str], *, pid: Optional[int]) -> list[Claim]:
    """Release the leases of ``disks`` held for ``pid``; of all its disks where none is named.

    ``pid`` None means our caller. Raises ``NotHeld``, ``Refused`` (a process may still write the disk),
    ``LeaseLost``, ``StorageError`` leaves.
    """
    manager, claims = _checked(session, disks, pid)
    for claim in claims:
        try:
            manager.release(claim.resource, pid=pid if claim.is_shared else None)
        except VmlockctlError as error:
            error.name_disk(claim.resource, safe(claim.disk))
            raise
    return claims


def _checked(session: Session, disks: Sequence[str], pid: Optional[int]) -> tuple[LockManager, list[Claim]]:
    """The claims of these disks, none of which a process may still write, and who holds them."""
    config = load()
    membership = chosen_membership(session, config)
    if membership is None:
        raise NotJoined("this host has not joined any lockspace, so it holds no lease")
    directory = live_directory(session, membership)
    claims = _claims_for(ClaimStore(directory.claims_path), disks, pid)
    for claim in claims:
        _refuse_if_used(claim, pid)
    return lock_manager(config.lock_manager, directory), claims


def release_to_shared(session: Session, disks: Sequence[str], *, pid: Optional[int]) -> list[Claim]:
    """Turn exclusive leases into shared ones without letting them go; what is shared already stays.

    The same checks and errors as ``release``: whoever holds a lease shared may only read.
    """
    manager, claims = _checked(session, disks, pid)
    for claim in claims:
        try:
            manager.to_shared(claim.resource)
        except VmlockctlError as error:
            error.name_disk(claim.resource, safe(claim.disk))
            raise
    return claims


def _claims_for(store: ClaimStore, disks: Sequence[str], pid: Optional[int]) -> list[Claim]:
    holder = os.getppid() if pid is None else pid
    if not disks:
        claims = [c for c in store.all() if any(p.pid == holder for p in c.processes)]
        if not claims:
            raise NotHeld(f"process {holder} holds no lease", details={"pid": holder})
        return claims
    claims = []
    for disk in disks:
        path = os.path.join(os.getcwd(), disk)
        names = names_of(path)
        found = [claim for claim in map(store.read, map(resource_name, names)) if claim is not None]
        if pid is not None:
            found = [c for c in found if any(p.pid == pid for p in c.processes)]
        if not found:
            raise NotHeld(
                f"{safe(path)}: this host holds no lease of it"
                + (f" for process {pid}" if pid is not None else ""),
                details={"disk": path},
            )
        claims += [claim for claim in found if claim not in claims]
    return claims


def _refuse_if_used(claim: Claim, pid: Optional[int]) -> None:
    """No lease is released while a process that may still write the disk exists, whoever it is."""
    writers = [process.pid for process in takers_over(claim._replace(processes=()))]
    if claim.is_shared:
        writers = [writer for writer in writers if writer == pid]
    if writers:
        raise Refused(
            f"{safe(claim.disk)} is still open in process {writers[0]} ({safe(comm(writers[0]))})",
            hint="stop that process; the lease is then released by itself",
            details={"disk": claim.disk, "pids": writers},
        )
    trusted = pid if pid is not None else os.getppid()
    for process in claim.processes:
        if process.pid != trusted and is_alive(process) and not claim.is_shared:
            raise Refused(
                f"{safe(claim.disk)}: process {process.pid} ({safe(comm(process.pid))}) runs and may still "
                "open the disk",
                hint=f"stop it, or say --pid {process.pid} if it is certain not to use the disk any more",
                details={"disk": claim.disk, "pid": process.pid},
            )
