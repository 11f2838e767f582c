"""What explain looks at once for all disks of a call: leases, hosts, sanlock here, libvirt's domains.

What cannot be looked at is told, because "free" may be said only where everything was seen.
"""

from __future__ import annotations

import os

from vmlockctl.config import LIBVIRT_LEASE_DIR
from vmlockctl.daemon.claims import Claim
from vmlockctl.daemon.hoststate import LIVE
from vmlockctl.errors import NotJoined, VmlockctlError
from vmlockctl.host.libvirt import Domain, domains, unreadable_records
from vmlockctl.host.process import cmdline
from vmlockctl.host.qemu import is_qemu
from vmlockctl.host.sanlockd import SanlockSilent, joined_lockspaces
from vmlockctl.lease.liveness import UNKNOWN
from vmlockctl.ops.explain_disk import is_lease_file
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import Lease, Lookout, Status
from vmlockctl.records import NamedTuple
from vmlockctl.storage.patience import is_there, real_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional

    from vmlockctl.host.sanlockclients import SanlockClient


class World(NamedTuple):
    seen: Optional[Status]
    unseen: list[str]  # what could not be looked at, and why
    domains: list[Domain]

    @property
    def claims(self) -> list[Claim]:
        return self.seen.claims if self.seen is not None else []

    @property
    def leases(self) -> list[Lease]:
        return self.seen.leases if self.seen is not None else []


def session_for(session: Session, text: str) -> Session:
    """The session, with the lockspace of a lease file where ``text`` is one and no other is named."""
    path = os.path.join(os.getcwd(), text)
    if session.lockspace is None and is_lease_file(path) and is_there(path):
        return session._replace(lockspace=os.path.dirname(path))
    return session


def look_around(lookout: Lookout, *, observe_seconds: float = 0.0) -> World:
    """Everything that does not depend on the disk; what fails is told in the answer."""
    unseen = [f"libvirt's domains in {problem}" for problem in unreadable_records()]
    try:
        seen: Optional[Status] = lookout.look(observe_seconds=observe_seconds)
    except NotJoined:  # there is no lockspace to look at: no lease protects anything here
        seen = None
        unseen += [f"leases in {problem}" for problem in unreadable_records([LIBVIRT_LEASE_DIR])]
    except VmlockctlError as error:
        seen = None
        unseen.append(f"leases: {error.message}")
    if seen is not None:
        try:
            seen = _with_sanlock(seen)
        except SanlockSilent as error:
            unseen.append(f"which leases this machine's sanlock holds: {error.message}")
    return World(seen, unseen, domains())


# -- the sanlock daemon of this machine ------------------------------------------------------------


def _with_sanlock(seen: Status) -> Status:
    """The same, with owners that are this machine's sanlock marked, and their processes named."""
    host_ids = _sanlock_host_ids(seen)
    if not host_ids:
        return seen
    from vmlockctl.host.sanlockclients import sanlock_clients

    current = {(host.host_id, host.generation) for host in seen.hosts if host.host_id in host_ids}
    clients = [client for client in sanlock_clients() if client.lockspace == seen.lockspace.space_name]

    def told(lease: Lease) -> Iterator[dict[str, Any]]:
        users = [client for client in clients if client.resource == lease.resource]
        for owner in lease.owners:
            is_here = (owner["host_id"], owner["generation"]) in current and not owner["this_host"]
            yield from _owners_here(owner, users) if is_here else [owner]

    leases = [lease._replace(owners=list(told(lease))) for lease in seen.leases]
    return seen._replace(leases=leases)


def _sanlock_host_ids(seen: Status) -> set[int]:
    area = seen.lockspace.area
    real = real_path(area.path)
    return {
        one.host_id for one in joined_lockspaces() if (real_path(one.path), one.offset) == (real, area.offset)
    }


def _owners_here(owner: dict[str, Any], users: Sequence[SanlockClient]) -> Iterator[dict[str, Any]]:
    """The owner once for each process that shares the lease through it; the daemon answers, so it lives."""
    state = LIVE if owner["state"] == UNKNOWN else owner["state"]
    ours = {**owner, "this_host": True, "state": state, "through": "sanlock", "pid": None}
    for user in users:
        yield {**ours, "pid": user.pid, "vm": user.name if _is_vm(user.pid) else None}
    if not users:
        yield ours


def _is_vm(pid: int) -> bool:
    argv = cmdline(pid)
    return bool(argv) and is_qemu(argv[0])
