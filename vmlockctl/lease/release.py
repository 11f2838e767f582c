"""Giving a lease back (sanlock-format.md sections 4.4 and 4.8).

I/Os: r1 own sector, w2 own sector (RELEASED), r3 leader, w4 leader. The order matters: the RELEASED flag
makes a release survive a slow co-committer of the same ballot that writes the old result over our freed
leader (12.1-5).
"""

from __future__ import annotations

from vmlockctl.errors import WrongDblock
from vmlockctl.lease.ballot import write_own
from vmlockctl.lease.resource import (
    Claimant,
    Resource,
    locate,
    lost,
    proposer_of,
    read_leader,
    write_leader,
)
from vmlockctl.lease.steps import Area, Procedure, now, read_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds
from vmlockctl.ondisk.dblock import FLAG_RELEASED, NO_MODE, ModeBlock, verify_dblock
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD, Leader


def release(claimant: Claimant, resource: Resource, *, lver: int, shared: bool = False) -> Procedure[None]:
    """Release a lease that we hold at version ``lver``. Raises ``LeaseLost`` if it is not ours."""
    area, leader = yield from locate(claimant, resource)
    yield from mark_released(claimant, area, leader)
    if not shared:
        yield from free_leader(claimant, area, resource, lver=lver)


def retract(claimant: Claimant, resource: Resource) -> Procedure[None]:
    """Give up whatever a half-made acquire or release of ours left on the disk (section 4.8).

    Others may still commit our value afterwards; our RELEASED flag tells them that it is void.
    """
    area, leader = yield from locate(claimant, resource)
    yield from mark_released(claimant, area, leader)
    leader = yield from read_leader(claimant, area, resource)
    if leader.owner == (claimant.host_id, claimant.generation) and not leader.is_free:
        yield from free_leader(claimant, area, resource, lver=leader.lver)


def mark_released(claimant: Claimant, area: Area, leader: Leader) -> Procedure[None]:
    """Write our own dblock again, unchanged but for RELEASED, and no mode (never zeros: 12.1-5)."""
    sector = area.geometry.dblock_sector(claimant.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    try:
        mine = verify_dblock(data, host_id=claimant.host_id)
    except WrongDblock:
        return  # damaged, so not ours to understand; the leader alone still frees the lease
    if (mine.never_used or mine.is_released) and not ModeBlock.from_bytes(data).flags:
        return
    yield from write_own(
        proposer_of(claimant, area, leader),
        mine._replace(flags=mine.flags | FLAG_RELEASED),
        NO_MODE,
        what=f"release lver {mine.lver}",
    )


def free_leader(claimant: Claimant, area: Area, resource: Resource, *, lver: int) -> Procedure[None]:
    leader = yield from read_leader(claimant, area, resource)
    if leader.owner == (claimant.host_id, claimant.generation) and leader.write_id != claimant.host_id:
        # Another host wrote the leader that names us: to write could overwrite a newer one. Our
        # RELEASED flag says the rest (section 4.4).
        return
    if leader.lver != lver or leader.owner != (claimant.host_id, claimant.generation) or leader.is_free:
        raise lost(area, leader, claimant, lver)
    freed = leader._replace(
        timestamp=0,
        flags=leader.flags & ~FLAG_SHORT_HOLD,
        write_id=claimant.host_id,
        write_generation=claimant.generation,
        write_timestamp=(yield from now()),
    ).sealed()
    yield from write_leader(claimant, area, freed, what=f"free lver {lver}")
