"""Giving a lease back (sanlock-format.md sections 4.4 and 4.8).

I/Os: r1 own sector, w2 own sector (RELEASED), r3 leader, w4 leader. The order matters: the RELEASED flag
makes a release survive a slow co-committer of the same ballot that writes the old result over our freed
leader (12.1-5).
"""

from __future__ import annotations

from vmlockctl.errors import WrongDblock
from vmlockctl.lease.ballot import write_own, write_own_surely
from vmlockctl.lease.resource import (
    Claimant,
    Resource,
    is_ours,
    locate,
    lost,
    proposer_of,
    read_leader,
    states_possession,
    went_back,
    write_leader,
)
from vmlockctl.lease.steps import Area, Procedure, now, read_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds
from vmlockctl.ondisk.dblock import FLAG_RELEASED, NO_MODE, ModeBlock, verify_dblock
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD, Leader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def release(
    claimant: Claimant, resource: Resource, *, lver: int, shared: bool = False, mode: ModeBlock = NO_MODE
) -> Procedure[None]:
    """Release a lease that we hold at version ``lver``; ``mode`` is what stays in our sector.

    Raises ``LeaseLost`` if somebody else has taken it. Our dblock of that version is marked all the same:
    a co-committer may have put an old leader back, and without the mark whoever repeats the ballot
    would commit us again, for ever. A dblock of another version is another possession, and left alone.
    """
    area, leader = yield from locate(claimant, resource)
    named = leader.lver == lver and is_ours(claimant, leader)
    held = yield from _mark_released(
        claimant, area, leader, mode=mode, shared=shared, lver=None if named else lver
    )
    if shared or (held and went_back(leader, lver)):
        return  # nothing else, or the leader went back: our mark says it all
    if not named:
        raise lost(area, leader, claimant, lver)
    yield from free_leader(claimant, area, resource, lver=lver)


def retract(claimant: Claimant, resource: Resource, *, mode: ModeBlock = NO_MODE) -> Procedure[None]:
    """Give up whatever a half-made acquire or release of ours left on the disk (section 4.8).

    Others may still commit our value afterwards; our RELEASED flag tells them that it is void. ``mode`` is
    what stays in our sector: a shared lease outlives a conversion that was not finished.
    """
    area, leader = yield from locate(claimant, resource)
    yield from _mark_released(claimant, area, leader, mode=mode, shared=False, lver=None)
    leader = yield from read_leader(claimant, area, resource)
    if is_ours(claimant, leader):
        yield from free_leader(claimant, area, resource, lver=leader.lver)


def _mark_released(
    claimant: Claimant, area: Area, leader: Leader, *, mode: ModeBlock, shared: bool, lver: Optional[int]
) -> Procedure[bool]:
    """Write our own dblock again, unchanged but for RELEASED, with ``mode`` (never zeros: 12.1-5).

    ``lver``: only if the dblock is of this version. Returns whether it named us as the owner, unreleased.

    A damaged one is not ours to understand. An exclusive lease is freed by its leader alone then; a
    shared one is nothing but the mark in this sector, and ``WrongDblock`` says that it is still there.
    """
    sector = area.geometry.dblock_sector(claimant.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    found = ModeBlock.from_bytes(data)
    try:
        mine = verify_dblock(data, host_id=claimant.host_id)
    except WrongDblock as error:
        if (shared and found.is_shared) or (mode.is_shared and found != mode):
            raise error.at(area.path, area.byte_offset(sector)) from None
        return False
    if (mine.never_used or mine.is_released) and found == mode:
        return False
    if lver is not None and mine.lver != lver and not shared:
        return False
    write = write_own_surely if mode.is_shared else write_own  # a mark must stand before the leader is freed
    yield from write(
        proposer_of(claimant, area, leader),
        mine._replace(flags=mine.flags | FLAG_RELEASED),
        mode,
        what=f"release lver {mine.lver}",
    )
    return not mine.is_released and states_possession(claimant, mine)


def free_leader(claimant: Claimant, area: Area, resource: Resource, *, lver: int) -> Procedure[None]:
    """Free the leader of a lease whose release our dblock already states.

    Left as it is where another host wrote it: to write could overwrite a newer one, and our RELEASED flag
    says the rest (section 4.4). So it is where the next owner was quicker than we.
    """
    leader = yield from read_leader(claimant, area, resource)
    if leader.lver != lver or not is_ours(claimant, leader) or leader.write_id != claimant.host_id:
        return
    freed = leader._replace(
        timestamp=0,
        flags=leader.flags & ~FLAG_SHORT_HOLD,
        write_id=claimant.host_id,
        write_generation=claimant.generation,
        write_timestamp=(yield from now()),
    ).sealed()
    yield from write_leader(claimant, area, freed, what=f"free lver {lver}")
