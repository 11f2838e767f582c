"""Changing the mode of a lease that we hold, without letting it go (sanlock-format.md section 4.7).

Our sector carries the shared mark and the ballot together, so a conversion is never without either: an
exclusive owner marks itself shared before it frees the leader, and a shared holder keeps its mark through the
ballot and drops it when it owns the leader. Cut off anywhere, ``to_shared`` or ``back_to_shared`` brings both
back to shared.

I/Os to shared: r1 leader, r2 own sector, w3 own sector, r4 own sector, r5 leader, w6 leader. To exclusive:
those of an acquire, then r own sector, w own sector without the mark.
"""

from __future__ import annotations

from vmlockctl.lease.ballot import write_own, write_own_surely
from vmlockctl.lease.paxos import Terms, acquire_exclusive
from vmlockctl.lease.release import free_leader, retract
from vmlockctl.lease.resource import (
    Claimant,
    Held,
    Resource,
    is_ours,
    locate,
    lost,
    own_dblock,
    proposer_of,
    read_own,
    states_possession,
    verify_held,
    went_back,
)
from vmlockctl.lease.steps import Procedure, read_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds
from vmlockctl.ondisk.dblock import FLAG_RELEASED, NO_MODE, ModeBlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def own_mark(claimant: Claimant) -> ModeBlock:
    """The mode block that says that we hold a lease shared."""
    return ModeBlock.shared(claimant.generation)


def to_shared(claimant: Claimant, resource: Resource, *, lver: int) -> Procedure[None]:
    """Exclusive to shared; the version stays. Nobody may be writing the disk any more.

    Raises ``LeaseLost`` if the lease is not ours at ``lver``, and ``StorageError`` leaves, after which the
    outcome is unknown until this, or ``back_to_shared``, succeeded.
    """
    area, leader = yield from locate(claimant, resource)
    mine = yield from read_own(claimant, area)
    named = leader.lver == lver and is_ours(claimant, leader)
    behind = went_back(leader, lver) and mine.lver == lver and states_possession(claimant, mine)
    if not named and not behind:
        raise lost(area, leader, claimant, lver)
    yield from write_own_surely(
        proposer_of(claimant, area, leader),
        mine._replace(flags=mine.flags | FLAG_RELEASED),
        own_mark(claimant),
        what=f"convert lver {lver} to shared",
    )
    yield from free_leader(claimant, area, resource, lver=lver)


def to_exclusive(
    claimant: Claimant, resource: Resource, *, expect_lver: Optional[int] = None
) -> Procedure[Held]:
    """Shared to exclusive; the version grows by one. The caller is the only local holder (12.2-g).

    Raises ``SharedLeaseHeld`` where other live hosts share the lease (it stays shared then), ``LeaseLost`` if
    our mark is gone, and what an acquire raises: after that, ``back_to_shared``.
    """
    mark = own_mark(claimant)
    yield from verify_held(claimant, resource, lver=0, shared=True)
    held = yield from acquire_exclusive(claimant, resource, Terms(expect_lver=expect_lver, mode=mark))
    mine = yield from read_own(claimant, held.area)
    proposer = proposer_of(claimant, held.area, held.leader)
    yield from write_own(proposer, mine, NO_MODE, what=f"convert lver {held.leader.lver} to exclusive")
    return held


def back_to_shared(claimant: Claimant, resource: Resource) -> Procedure[None]:
    """Settle a conversion that was cut off anywhere, in either direction: the lease is shared.

    Raises ``LeaseLost`` where neither our mark, nor the leader, nor (under a leader that went back) our
    dblock says that it is still ours: a mark written then would stand beside whoever took it.
    ``StorageError`` leaves.
    """
    area, leader = yield from locate(claimant, resource)
    sector = area.geometry.dblock_sector(claimant.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    if ModeBlock.from_bytes(data) != own_mark(claimant) and not is_ours(claimant, leader):
        mine = own_dblock(claimant, area, data)
        behind = went_back(leader, mine.lver) and states_possession(claimant, mine) and not mine.is_released
        if not behind:
            raise lost(area, leader, claimant, mine.lver)
    yield from retract(claimant, resource, mode=own_mark(claimant))
