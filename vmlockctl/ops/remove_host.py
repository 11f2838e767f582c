"""remove-host: give the host id back, when nothing relies on it any more."""

from __future__ import annotations

import shutil

from vmlockctl import clock
from vmlockctl.config import load
from vmlockctl.daemon.claims import Claim, ClaimStore
from vmlockctl.daemon.control import ensure_running
from vmlockctl.daemon.hoststate import LEFT, LOST, Membership
from vmlockctl.errors import IoTimeout, NotJoined, Refused
from vmlockctl.host.process import is_alive
from vmlockctl.ops.session import Session, administered_target, find_membership, require_area
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_LEAVE_SECONDS = 60.0
_SETTLE_SECONDS = 5.0


def remove_host(session: Session, target_text: Optional[str]) -> Membership:
    """Leave the lockspace. Raises ``Refused`` while leases are held, ``NotJoined``."""
    target = administered_target(session, target_text, load())
    membership = find_membership(session, target)
    if membership is None:
        require_area(target)
        raise NotJoined(f"{target.lease_dir or target.path}: this host has not joined the lockspace")
    directory = session.directory_of(membership)
    claims = _claims_in_use(ClaimStore(directory.claims_path))
    if claims:
        raise _leases_are_held(membership, claims)
    ensure_running(session.run_dir)
    session.memberships.remove(membership)  # the daemon leaves when it sees that
    deadline = clock.monotonic() + _LEAVE_SECONDS
    while True:
        state = directory.read_state()
        if state is None or state.state == LEFT:
            break
        if membership in session.memberships.all():  # the daemon saw that a lease was acquired meanwhile
            raise _leases_are_held(membership, ClaimStore(directory.claims_path).all())
        if state.state == LOST or clock.monotonic() > deadline:
            raise IoTimeout(
                f"{membership.target}: the host id could not be given back: {state.problem or 'no answer'}",
                hint="it becomes free for others when it has been silent long enough",
            )
        clock.sleep(0.05)
    shutil.rmtree(directory.path, ignore_errors=True)
    return membership


def _leases_are_held(membership: Membership, claims: list[Claim]) -> Refused:
    held = [(safe(c.disk), c.processes[0].pid if c.processes else c.state) for c in claims]
    names = ", ".join(f"{disk} (process {user})" for disk, user in held)
    return Refused(
        f"{membership.target}: leases are held: {names or 'by a command that has ended since'}",
        hint="stop those VMs first",
        details={"resources": [claim.resource for claim in claims]},
    )


def _claims_in_use(store: ClaimStore) -> list[Claim]:
    """The claims that are left when those of ended processes have been settled by the daemon."""
    deadline = clock.monotonic() + _SETTLE_SECONDS
    while True:
        claims = store.all()
        used = any(is_alive(process) for claim in claims for process in claim.processes)
        if not claims or used or clock.monotonic() > deadline:
            return claims
        clock.sleep(0.05)
