"""One ballot of Disk Paxos for one version of a lease (sanlock-format.md section 4.2).

Gafni and Lamport, "Disk Paxos", Distributed Computing 16(1), 2003, with one disk: write one's own
block, then read everybody's; twice, once for each phase. ``mbal``, ``bal`` and ``inp`` are the
paper's; the proposed value is (owner host_id, its generation, a timestamp). One ballot decides one
``lver``; hosts whose dblock carries another lver take no part in it.

I/Os: w1 own dblock (phase 1), r2 all dblocks, w3 own dblock (phase 2), r4 all dblocks. If w3 or
anything after it fails, other hosts may still commit our value (section 4.8).
"""

from __future__ import annotations

from vmlockctl.errors import StorageError, WrongDblock
from vmlockctl.lease.steps import Area, Procedure, now, read_sectors, write_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds, write_timeout_seconds
from vmlockctl.ondisk.dblock import (
    NO_MODE,
    USED_LEN,
    Dblock,
    ModeBlock,
    own_sector,
    verify_dblock,
)
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional, Union

_UNUSED = bytes(USED_LEN)


class Proposer(NamedTuple):
    """Who runs a ballot, where."""

    area: Area
    host_id: int
    generation: int
    io_timeout: int
    num_hosts: int


class Decided(NamedTuple):
    """The ballot is decided: ``mine`` carries the value to commit, ours or another host's."""

    mine: Dblock
    shared: dict[int, int]  # host_id -> generation of every host that marks the lease shared


class Aborted(NamedTuple):
    """A larger ballot, or a newer lease version, was seen in ``offender``'s dblock; ours is ``mine`` now."""

    mine: Dblock
    offender: int
    dblock: Dblock
    newer_lver: bool


def dblocks_in(image: bytes, area: Area, num_hosts: int) -> Iterator[tuple[int, bytes]]:
    """Every used host sector of an image that starts at sector 0, as (host_id, bytes)."""
    size = area.geometry.sector_size
    start = area.geometry.dblock_sector(1) * size
    for host_id in range(1, num_hosts + 1):
        used = image[start : start + USED_LEN]
        if used != _UNUSED:
            yield host_id, used
        start += size


def write_own(proposer: Proposer, dblock: Dblock, mode: ModeBlock, *, what: str) -> Procedure[None]:
    """Write our own sector: the only way that a dblock or a mode block of ours is changed."""
    geometry = proposer.area.geometry
    yield from write_sectors(
        proposer.area,
        geometry.dblock_sector(proposer.host_id),
        own_sector(dblock, mode, geometry.sector_size),
        write_timeout_seconds(proposer.io_timeout),
        what=what,
    )


def write_own_surely(proposer: Proposer, dblock: Dblock, mode: ModeBlock, *, what: str) -> Procedure[None]:
    """Write our own sector, and look: what comes next must not happen if that write was lost.

    Raises ``StorageError`` where it is not there, besides what the I/O raises.
    """
    yield from write_own(proposer, dblock, mode, what=what)
    sector = proposer.area.geometry.dblock_sector(proposer.host_id)
    data = yield from read_sectors(proposer.area, sector, 1, read_timeout_seconds(proposer.io_timeout))
    _require_written(data, proposer, dblock, mode)


def read_dblocks(proposer: Proposer) -> Procedure[bytes]:
    count = proposer.area.geometry.ballot_sectors(proposer.num_hosts)
    return (yield from read_sectors(proposer.area, 0, count, read_timeout_seconds(proposer.io_timeout)))


def _aborted_by(mine: Dblock, host_id: int, dblock: Dblock) -> Optional[Aborted]:
    if dblock.lver > mine.lver:
        return Aborted(mine, host_id, dblock, newer_lver=True)
    if dblock.lver == mine.lver and dblock.mbal > mine.mbal:
        return Aborted(mine, host_id, dblock, newer_lver=False)
    return None


def _intact(host_id: int, used: bytes) -> Optional[Dblock]:
    """A damaged dblock takes no part in a ballot that has begun: its host cannot have written it."""
    try:
        return verify_dblock(used, host_id=host_id)
    except WrongDblock:
        return None


def run_ballot(
    proposer: Proposer, own: Dblock, *, lver: int, mbal: int, mode: ModeBlock = NO_MODE, flags: int = 0
) -> Procedure[Union[Decided, Aborted]]:
    """Run both phases of ballot ``mbal`` for ``lver``; ``mode`` and ``flags`` stand in our sector meanwhile.

    ``own`` is our dblock as it stands. A value of this version that we proposed before stays in it, as the
    paper has it: it may have been chosen, and only our dblock may know. (sanlock blanks it.) Raises
    ``StorageError`` where a write of ours is not there when we look, besides what the I/O raises.
    """
    earlier = own if own.lver == lver else Dblock(lver=lver)
    mine = earlier._replace(mbal=mbal, flags=flags).sealed()
    yield from write_own(proposer, mine, mode, what=f"ballot {mbal} phase 1 for lver {lver}")  # w1

    image = yield from read_dblocks(proposer)  # r2
    _require_written(_own_in(image, proposer), proposer, mine, mode)
    shared = _shared_in(image, proposer)
    best: Optional[Dblock] = None
    for host_id, used in dblocks_in(image, proposer.area, proposer.num_hosts):
        dblock = _intact(host_id, used)
        if dblock is None:
            continue
        aborted = _aborted_by(mine, host_id, dblock)
        if aborted:
            return aborted
        if dblock.lver < lver or dblock.inp == 0 or dblock.bal == 0:
            continue
        verify_dblock(used, host_id=host_id, num_hosts=proposer.num_hosts)
        if best is None or dblock.bal > best.bal:
            best = dblock

    if best is None:
        value = (proposer.host_id, proposer.generation, (yield from now()))
    else:
        value = (best.inp, best.inp2, best.inp3)
    mine = Dblock(mbal, mbal, *value, lver=lver, flags=flags).sealed()
    yield from write_own(proposer, mine, mode, what=f"ballot {mbal} phase 2 for lver {lver}")  # w3

    image = yield from read_dblocks(proposer)  # r4
    _require_written(_own_in(image, proposer), proposer, mine, mode)
    for host_id, used in dblocks_in(image, proposer.area, proposer.num_hosts):
        dblock = _intact(host_id, used)
        aborted = dblock and _aborted_by(mine, host_id, dblock)
        if aborted:
            return aborted
    return Decided(mine, shared)


def _own_in(image: bytes, proposer: Proposer) -> bytes:
    geometry = proposer.area.geometry
    start = geometry.dblock_sector(proposer.host_id) * geometry.sector_size
    return image[start : start + geometry.sector_size]


def _require_written(found: bytes, proposer: Proposer, mine: Dblock, mode: ModeBlock) -> None:
    """Our own sector too is what we wrote: the paper rests on a write being there for whoever reads later.

    One that the storage acknowledged and lost lets two hosts win, neither of which saw the other.
    """
    area = proposer.area
    if found != own_sector(mine, mode, area.geometry.sector_size):
        sector = area.geometry.dblock_sector(proposer.host_id)
        raise StorageError(
            f"{area.path}:{area.byte_offset(sector)}: ballot {mine.mbal} for lver {mine.lver}: the storage "
            "lost a write that it had acknowledged"
        )


def _shared_in(image: bytes, proposer: Proposer) -> dict[int, int]:
    modes = (
        (host_id, ModeBlock.from_bytes(used))
        for host_id, used in dblocks_in(image, proposer.area, proposer.num_hosts)
    )
    return {host_id: mode.generation for host_id, mode in modes if mode.is_shared}


def read_shared_holders(proposer: Proposer) -> Procedure[dict[int, int]]:
    """host_id -> generation of every host that marks the lease shared."""
    return _shared_in((yield from read_dblocks(proposer)), proposer)


def first_mbal(highest: int, host_id: int, max_hosts: int) -> int:
    """A ballot number above every one that is there, unique to this host (congruent to its id)."""
    if highest == 0:
        return host_id
    return highest - highest % max_hosts + max_hosts + host_id
