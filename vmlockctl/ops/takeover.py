"""Take a lease over from an owner that is gone, and give it back: the only way to free what others hold.

Nothing is overwritten outside the protocol: the acquire judges the owner by its record once more, wins the
ballot and erases dead shared marks as any acquire does, under this host's own host id and the guard of its
host lease. Whoever renews in that moment, or wins first, makes it fail as busy.
"""

from __future__ import annotations

import os

from vmlockctl.host.process import identify
from vmlockctl.managers.base import Grant, Terms, User, Want

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from vmlockctl.lease.liveness import Instance
    from vmlockctl.managers.base import LockManager


def take_and_release(
    manager: LockManager, wants: Sequence[Want], *, command: str, vouched: Optional[Instance] = None
) -> list[Grant]:
    """Take leases over, all or none, and release them.

    Raises what an acquire raises. What is taken when this process ends, the daemon releases.
    """
    process = identify(os.getpid())
    assert process is not None
    grants = manager.acquire(wants, User(process, vm=command), terms=Terms(vouched=vouched))
    for grant in grants:
        manager.release(grant.resource, pid=process.pid)
    return grants
