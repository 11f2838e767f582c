"""A resource as one host sees it: who we are, where it is, and what its records say.

Nothing here runs a ballot; ``paxos.py`` acquires and ``release.py`` gives back. ``verify_held`` is what
sanlock lacks: in every renewal cycle the leader of a held lease is read again.
"""

from __future__ import annotations

from vmlockctl.errors import LeaseLost, OnDiskError, WrongDblock
from vmlockctl.lease.ballot import Proposer, dblocks_in, read_dblocks
from vmlockctl.lease.delta import Lockspace, probe, read_record
from vmlockctl.lease.liveness import Observation
from vmlockctl.lease.steps import Area, Procedure, now, read_sectors, write_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds, write_timeout_seconds
from vmlockctl.ondisk.dblock import Dblock, ModeBlock, verify_dblock
from vmlockctl.ondisk.geometry import LEADER_SECTOR
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD, Leader, verify_paxos
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional


class Claimant(NamedTuple):
    """Who we are in the lockspace, and what we have seen of the others there."""

    lockspace: Lockspace
    host_id: int
    generation: int
    io_timeout: int
    observations: Mapping[int, Observation]


class Resource(NamedTuple):
    """A resource by name and place; sizes come from its own leader."""

    path: str
    offset: int
    name: str


class Held(NamedTuple):
    """A lease that we hold: the leader that grants it, and the mode."""

    area: Area
    leader: Leader
    shared: bool


def read_leader(claimant: Claimant, area: Area, resource: Resource) -> Procedure[Leader]:
    data = yield from read_sectors(area, LEADER_SECTOR, 1, read_timeout_seconds(claimant.io_timeout))
    return verified(claimant, resource, data)


def verified(claimant: Claimant, resource: Resource, data: bytes) -> Leader:
    try:
        return verify_paxos(
            data,
            space_name=claimant.lockspace.space_name,
            resource_name=resource.name,
            host_id=claimant.host_id,
        )
    except OnDiskError as error:
        raise error.at(resource.path, resource.offset) from None


def locate(claimant: Claimant, resource: Resource) -> Procedure[tuple[Area, Leader]]:
    """Read the leader of an area whose sizes are not known yet (r0)."""
    head = yield from probe(resource.path, resource.offset, read_timeout_seconds(claimant.io_timeout))
    leader = verified(claimant, resource, head)
    return Area(resource.path, resource.offset, leader.geometry), leader


def read_own(claimant: Claimant, area: Area) -> Procedure[Dblock]:
    sector = area.geometry.dblock_sector(claimant.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    return own_dblock(claimant, area, data)


def own_dblock(claimant: Claimant, area: Area, data: bytes) -> Dblock:
    """The dblock in our own sector. Raises ``WrongDblock``, with its place."""
    try:
        return verify_dblock(data, host_id=claimant.host_id)
    except WrongDblock as error:
        sector = area.geometry.dblock_sector(claimant.host_id)
        raise error.at(area.path, area.byte_offset(sector)) from None


def write_leader(claimant: Claimant, area: Area, leader: Leader, *, what: str) -> Procedure[None]:
    yield from write_sectors(
        area,
        LEADER_SECTOR,
        leader.sector(area.geometry.sector_size),
        write_timeout_seconds(claimant.io_timeout),
        what=what,
    )


def proposer_of(claimant: Claimant, area: Area, leader: Leader) -> Proposer:
    return Proposer(area, claimant.host_id, claimant.generation, claimant.io_timeout, leader.num_hosts)


def lost(area: Area, leader: Leader, claimant: Claimant, lver: int) -> LeaseLost:
    found = "free" if leader.is_free else f"owner {leader.owner_id}:{leader.owner_generation}"
    return LeaseLost(
        f"{area.path}:{area.offset}: the lease is no longer ours, found lver {leader.lver} {found}, "
        f"expected lver {lver} owner {claimant.host_id}:{claimant.generation}",
        details={"lver": leader.lver, "owner_id": leader.owner_id},
    )


def is_ours(claimant: Claimant, leader: Leader) -> bool:
    """Whether the leader says that we hold the lease exclusively, in this generation."""
    return leader.owner == (claimant.host_id, claimant.generation) and not leader.is_free


def states_possession(claimant: Claimant, own: Dblock) -> bool:
    """Whether our own dblock says that its version was decided, or proposed, for us in this generation."""
    return own.bal != 0 and (own.inp, own.inp2) == (claimant.host_id, claimant.generation)


def went_back(leader: Leader, lver: int) -> bool:
    """Whether a host was slow to write an earlier version; a leader that no host wrote was formatted."""
    return leader.lver < lver and leader.write_id != 0


def verify_held(
    claimant: Claimant, resource: Resource, *, lver: int, shared: bool = False
) -> Procedure[None]:
    """Look again, in every renewal cycle, whether a lease is still ours. Raises ``LeaseLost``.

    sanlock never does; a host that was paused past its lease and resumed then writes beside its
    successor for ever (faults.md finding 1). A leader of an *earlier* version is no successor's: a
    co-committer was slow. Where the dblocks still state our possession it is put right.
    """
    area, leader = yield from locate(claimant, resource)
    if not shared:
        if leader.lver == lver and is_ours(claimant, leader):
            return
        if not went_back(leader, lver) or not (yield from _put_right(claimant, area, leader, lver)):
            raise lost(area, leader, claimant, lver)
        return
    sector = area.geometry.dblock_sector(claimant.host_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    mode = ModeBlock.from_bytes(data)
    if not mode.is_shared or mode.generation != claimant.generation:
        raise LeaseLost(
            f"{area.path}:{area.byte_offset(sector)}: our shared mark is gone, "
            f"found flags {mode.flags} generation {mode.generation}, "
            f"expected shared generation {claimant.generation}"
        )


def _put_right(claimant: Claimant, area: Area, behind: Leader, lver: int) -> Procedure[bool]:
    """Write our leader again over an earlier version's. False where the dblocks do not say it is ours.

    What was decided for ``lver`` may be committed by anybody, any number of times. Nobody goes on to the next
    version while we hold this one, and a dblock that does says that we do not.
    """
    proposer = proposer_of(claimant, area, behind)
    own: Optional[Dblock] = None
    for host_id, used in dblocks_in((yield from read_dblocks(proposer)), area, behind.num_hosts):
        try:
            dblock = verify_dblock(used, host_id=host_id)
        except WrongDblock:
            return False
        if dblock.lver > lver:
            return False
        if host_id == claimant.host_id:
            own = dblock
    if own is None or own.lver != lver or own.is_released or not states_possession(claimant, own):
        return False
    committed = behind._replace(
        lver=lver,
        flags=behind.flags & ~FLAG_SHORT_HOLD,
        owner_id=claimant.host_id,
        owner_generation=claimant.generation,
        timestamp=own.inp3,
        write_id=claimant.host_id,
        write_generation=claimant.generation,
        write_timestamp=(yield from now()),
    ).sealed()
    yield from write_leader(claimant, area, committed, what=f"put lver {lver} right, found {behind.lver}")
    return True


def foreign_owner(claimant: Claimant, resource: Resource) -> Procedure[Optional[dict[str, object]]]:
    """Who holds the lease exclusively, if it is another host: for a message, never for a decision."""
    _, leader = yield from locate(claimant, resource)
    if leader.is_free or leader.owner_id == claimant.host_id:
        return None
    record = yield from read_record(claimant.lockspace, leader.owner_id, claimant.io_timeout)
    return {
        "host_id": leader.owner_id,
        "generation": leader.owner_generation,
        "host_name": record.resource,
        "io_timeout": record.io_timeout,
    }


def names_us(claimant: Claimant, resource: Resource) -> Procedure[Optional[Leader]]:
    """The leader, if it says that we hold the lease exclusively; else None."""
    _, leader = yield from locate(claimant, resource)
    return leader if is_ours(claimant, leader) else None


def write_note(claimant: Claimant, area: Area, note: bytes) -> Procedure[None]:
    """Write the owner note; advice for people, so a failure is no failure of the acquire."""
    sector, _ = area.geometry.note_sectors()
    yield from write_sectors(
        area, sector, note, write_timeout_seconds(claimant.io_timeout), what="owner note"
    )


def read_note(area: Area, timeout_seconds: float) -> Procedure[bytes]:
    sector, sector_count = area.geometry.note_sectors()
    return (yield from read_sectors(area, sector, sector_count, timeout_seconds))
