"""The paxos lease: exclusive and shared ownership of a resource (sanlock-format.md section 4).

The leader decides: ``timestamp`` != 0 means owned by (owner_id, owner_generation). To acquire is to see
that the owner is gone (``_wait_for_owner``), win the ballot for ``leader.lver + 1`` and commit the
ballot's value, which may be another host's. A shared acquire takes the lease exclusively for a
moment, marks its own mode block, and lets the leader go.

Stricter than sanlock, as section 12 asks: the generation is compared as well as the id (12.2-e);
retries are bounded and the dblock that causes them is named (12.2-j), before anything is written where that
can be seen; a committed leader is read again before success is reported (a lost write is not a grant).

Two rules are ours alone. *A leader can go back*: whoever finished a ballot for another host may be slow to
write its result, and put it over later versions (12.1-5; faults.md 3b). The dblocks still know: we join the
ballot of the newest version among them, which can only decide what it has decided. sanlock ends in endless
retries there. *A version whose release we stated is void*: where another host may still commit our value of
it, our next ballot for that version keeps the RELEASED flag, and what it decides for us is no grant but a
free lease; the next version is. Without that, a host that saw the flag takes the lease while we win it again.

I/Os of an exclusive acquire: r0 leader, r1 whole area, [owner wait], ballot w1 r2 w3 r4, w5 leader,
r6 leader.
"""

from __future__ import annotations

from vmlockctl.errors import (
    LeaseHeld,
    LverMoved,
    RaceLost,
    SharedLeaseHeld,
    StorageError,
    WrongDblock,
)
from vmlockctl.lease.ballot import (
    Aborted,
    Decided,
    dblocks_in,
    first_mbal,
    read_shared_holders,
    run_ballot,
    write_own,
)
from vmlockctl.lease.delta import read_record
from vmlockctl.lease.liveness import (
    NEVER_OBSERVED,
    Instance,
    gone_after_seconds,
    shared_holder_is_alive,
)
from vmlockctl.lease.release import free_leader, release
from vmlockctl.lease.resource import (
    Claimant,
    Held,
    Resource,
    locate,
    proposer_of,
    read_leader,
    read_own,
    verified,
    write_leader,
)
from vmlockctl.lease.steps import (
    Area,
    Procedure,
    now,
    random_wait,
    read_sectors,
    wait,
    write_sectors,
)
from vmlockctl.lease.timeouts import (
    SHARED_RETRIES,
    read_timeout_seconds,
    sane_io_timeout,
    write_timeout_seconds,
)
from vmlockctl.ondisk.dblock import (
    FLAG_RELEASED,
    MAX_MBAL,
    NO_MODE,
    Dblock,
    ModeBlock,
    verify_dblock,
)
from vmlockctl.ondisk.geometry import LEADER_SECTOR
from vmlockctl.ondisk.leader import FLAG_SHORT_HOLD, Leader
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

# Rounds of "somebody's ballot is larger" or "is newer" before we give up. Each backs off for half a
# second on average; honest contention among dozens of hosts ends in far fewer.
BALLOT_RETRIES = 24
# How far a leader can honestly have gone back: more versions than hosts can take turns within the time that
# a write may be late. A dblock that is newer than that is damage, and would burn version numbers (12.2-j).
MAX_VERSIONS_BACK = 1 << 20


class Terms(NamedTuple):
    """How a lease is to be acquired. ``mode`` stands in our sector throughout (a shared lease of ours).

    ``vouched``: a person says that this instance is dead; it is believed after a silence of 8 io_timeouts.
    """

    short_hold: bool = False
    expect_lver: Optional[int] = None
    wait_for_dead_owner: bool = False
    mode: ModeBlock = NO_MODE
    vouched: Optional[Instance] = None


class _Survey(NamedTuple):
    """What the dblocks of an area say together."""

    highest_mbal: int
    newest_lver: int
    own: Dblock


class _Restart(Exception):
    """The leader changed under us: begin again with what is there now."""


def acquire(
    claimant: Claimant,
    resource: Resource,
    *,
    shared: bool = False,
    expect_lver: Optional[int] = None,
    wait_for_dead_owner: bool = False,
    vouched: Optional[Instance] = None,
) -> Procedure[Held]:
    """Acquire the lease, exclusively or shared.

    ``expect_lver``: succeed only if the lease has had no holder since that version (4.10).
    ``wait_for_dead_owner``: wait here until a silent owner may be taken for dead; without it the
    answer is ``LeaseHeld`` at once, with ``takeover_in`` seconds in its details.
    ``vouched`` shortens that wait for exactly this instance (``gone_after_seconds``), and nothing else.
    Raises ``ContentionError`` leaves, ``OnDiskError`` leaves with the place, and ``StorageError``
    leaves: after one of those the outcome is unknown until ``retract`` succeeded.
    """
    terms = Terms(shared, expect_lver, wait_for_dead_owner, vouched=vouched)
    for attempt in range(SHARED_RETRIES + 1):
        try:
            held = yield from acquire_exclusive(claimant, resource, terms)
            break
        except (LeaseHeld, RaceLost) as error:
            passing = bool(error.details.get("short_hold"))
            if not shared or not passing or attempt == SHARED_RETRIES:
                raise
        # The holder only passes through on its way to a shared lease of its own (12.1-16).
        yield from random_wait("another host is just acquiring the lease shared")
    if not shared:
        return held

    # Rewrite the dblock that won, so that no other structure in its sector is lost.
    mine = yield from read_own(claimant, held.area)
    proposer = proposer_of(claimant, held.area, held.leader)
    yield from write_own(
        proposer,
        mine._replace(flags=mine.flags | FLAG_RELEASED),
        ModeBlock.shared(claimant.generation),
        what=f"share lver {held.leader.lver}",
    )
    yield from free_leader(claimant, held.area, resource, lver=held.leader.lver)
    return held._replace(shared=True)


def acquire_exclusive(claimant: Claimant, resource: Resource, terms: Terms) -> Procedure[Held]:
    """Win the lease: for good, for a moment (``short_hold``), or over our own shared one (``mode``)."""
    for _ in range(BALLOT_RETRIES):
        area, _leader = yield from locate(claimant, resource)  # r0
        try:
            return (yield from _acquire_once(claimant, area, resource, terms))
        except _Restart:
            continue
    raise RaceLost(
        f"the lease {safe(resource.name)} changed hands {BALLOT_RETRIES} times while we tried to acquire it"
    )


def _acquire_once(claimant: Claimant, area: Area, resource: Resource, terms: Terms) -> Procedure[Held]:
    leader, survey = yield from _read_whole(claimant, area, resource)
    lver = max(leader.lver + 1, survey.newest_lver)
    if terms.expect_lver not in (None, lver - 1):
        raise LverMoved(
            f"{safe(resource.name)}: the lease was held since version {terms.expect_lver}, "
            f"found lver {lver - 1}, expected {terms.expect_lver}",
            hint="whoever held it may have written the disk; look before the VM is resumed",
            details={"lver": lver - 1, "expected": terms.expect_lver},
        )
    owned_by_us = leader.owner_id == claimant.host_id and leader.owner_generation <= claimant.generation
    fresh = leader.is_free or owned_by_us
    if not fresh:
        yield from _wait_for_owner(claimant, area, resource, leader, terms)
    went_back = lver > leader.lver + 1
    own = survey.own
    void = own.is_released and own.lver == lver

    mbal = first_mbal(survey.highest_mbal, claimant.host_id, leader.max_hosts)
    proposer = proposer_of(claimant, area, leader)
    for _ in range(BALLOT_RETRIES):
        seen = leader if fresh and not went_back else (yield from read_leader(claimant, area, resource))
        fresh = False
        if seen.lver == lver and not seen.is_free:
            # Somebody finished this ballot; perhaps for us.
            if seen.owner != (claimant.host_id, claimant.generation):
                raise _race_lost(resource, seen)
            if void:
                raise _Restart
            committed, shared = seen, (yield from read_shared_holders(proposer))
            break
        if seen != leader:
            raise _Restart
        flags = FLAG_RELEASED if void else 0
        result = yield from run_ballot(proposer, own, lver=lver, mbal=mbal, mode=terms.mode, flags=flags)
        if isinstance(result, Decided):
            committed = yield from _commit(claimant, area, resource, leader, result, terms)
            shared = result.shared
            break
        aborted, own = result, result.mine
        yield from random_wait("another host is in the same ballot")
        if aborted.newer_lver:
            raise _Restart
        mbal += leader.max_hosts
    else:
        raise _stuck(area, aborted)
    if not terms.short_hold:
        yield from _settle_shared_holders(claimant, area, resource, committed, shared, terms)
    return Held(area, committed, shared=False)


def _read_whole(claimant: Claimant, area: Area, resource: Resource) -> Procedure[tuple[Leader, _Survey]]:
    """Read the leader and all dblocks (r1). A dblock that we cannot understand ends it, by name (12.2-j)."""
    image = yield from read_sectors(
        area, LEADER_SECTOR, area.geometry.sectors, read_timeout_seconds(claimant.io_timeout)
    )
    leader = verified(claimant, resource, image[: area.geometry.sector_size])
    if leader.geometry != area.geometry:
        raise _Restart  # formatted anew between the two looks
    survey = _Survey(0, 0, Dblock())
    for host_id, used in dblocks_in(image, area, leader.num_hosts):
        try:
            dblock = _sane_dblock(host_id, used, leader)
        except WrongDblock as error:
            raise error.at(area.path, area.byte_offset(area.geometry.dblock_sector(host_id))) from None
        survey = _Survey(
            max(survey.highest_mbal, dblock.mbal),
            max(survey.newest_lver, dblock.lver),
            dblock if host_id == claimant.host_id else survey.own,
        )
    return leader, survey


def _sane_dblock(host_id: int, used: bytes, leader: Leader) -> Dblock:
    """A dblock whose numbers leave room for ours: we would have to write larger ones, and be read."""
    dblock = verify_dblock(used, host_id=host_id, num_hosts=leader.num_hosts)
    if dblock.mbal > MAX_MBAL - leader.max_hosts * (BALLOT_RETRIES + 2):
        raise WrongDblock(
            f"the dblock of host id {host_id} has an absurd ballot number",
            found=dblock.mbal,
            expected=f"well below {MAX_MBAL}",
        )
    if dblock.lver > leader.lver + MAX_VERSIONS_BACK:
        raise WrongDblock(
            f"the dblock of host id {host_id} has an absurd lver",
            found=dblock.lver,
            expected=f"at most {leader.lver + MAX_VERSIONS_BACK}",
        )
    return dblock


def _commit(
    claimant: Claimant, area: Area, resource: Resource, leader: Leader, decided: Decided, terms: Terms
) -> Procedure[Leader]:
    """Write the ballot's value into the leader; return it if it is a grant to us."""
    mine = decided.mine
    ours = (mine.inp, mine.inp2) == (claimant.host_id, claimant.generation)
    void = ours and mine.is_released
    flags = leader.flags
    if ours:
        flags = flags | FLAG_SHORT_HOLD if terms.short_hold else flags & ~FLAG_SHORT_HOLD
    committed = leader._replace(
        lver=mine.lver,
        flags=flags,
        owner_id=mine.inp,
        owner_generation=mine.inp2,
        timestamp=0 if void else mine.inp3,
        write_id=claimant.host_id,
        write_generation=claimant.generation,
        write_timestamp=(yield from now()),
    ).sealed()
    yield from write_leader(
        claimant, area, committed, what=f"commit lver {mine.lver} owner {mine.inp}:{mine.inp2}"
    )  # w5
    if void or (mine.inp == claimant.host_id and not ours):
        raise _Restart  # given up before; or an older generation of ours, carried on by others (12.2-e)
    if not ours:
        if (yield from _owner_released(claimant, area, committed)):
            raise _Restart  # and has given it up already: nobody to be busy with
        raise _race_lost(resource, committed)
    stored = yield from read_leader(claimant, area, resource)  # r6
    if stored != leader and stored.lver < committed.lver:
        # A co-committer of an earlier version, slow till now, put its leader back (12.1-5). We are not
        # named, so we hold nothing; our caller's retract makes our value void.
        raise _race_lost(resource, stored)
    if stored.lver != committed.lver or stored.owner != committed.owner or stored.is_free:
        raise StorageError(
            f"{area.path}:{area.offset}: the leader that was just written is not there, found "
            f"lver {stored.lver} owner {stored.owner_id}:{stored.owner_generation}, expected "
            f"lver {committed.lver} owner {committed.owner_id}:{committed.owner_generation}",
            hint="the storage lost a write, or another program writes this area outside the protocol",
        )
    return stored


def _settle_shared_holders(
    claimant: Claimant,
    area: Area,
    resource: Resource,
    leader: Leader,
    shared: Mapping[int, int],
    terms: Terms,
) -> Procedure[None]:
    """After winning: respect live shared holders, erase dead ones (section 4.6)."""
    live: dict[int, int] = {}
    for host_id in sorted(shared):
        if host_id == claimant.host_id:
            continue
        sector = area.geometry.dblock_sector(host_id)
        data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
        mode = ModeBlock.from_bytes(data)
        if not mode.is_shared:
            continue  # released since the ballot read it (12.1-9)
        row = claimant.observations.get(host_id, NEVER_OBSERVED)
        if shared_holder_is_alive(
            row,
            mode.generation,
            (yield from now()),
            own_io_timeout=claimant.io_timeout,
            vouched=terms.vouched == (host_id, mode.generation),
        ):
            live[host_id] = mode.generation
            continue
        yield from write_sectors(
            area,
            sector,
            bytes(area.geometry.sector_size),
            write_timeout_seconds(claimant.io_timeout),
            what=f"clear the shared mark of dead host id {host_id} generation {mode.generation}",
        )
    if live:
        yield from release(claimant, resource, lver=leader.lver, mode=terms.mode)
        holders = [
            {
                "host_id": host_id,
                "generation": generation,
                "host_name": claimant.observations.get(host_id, NEVER_OBSERVED).host_name,
            }
            for host_id, generation in live.items()
        ]
        raise SharedLeaseHeld(
            f"the lease {safe(resource.name)} is held shared by live hosts",
            details={"owners": holders, "state": "live", "mode": "shared"},
        )


def _wait_for_owner(
    claimant: Claimant, area: Area, resource: Resource, leader: Leader, terms: Terms
) -> Procedure[None]:
    """Return when the owner is gone for certain; the caller reads the leader again (section 4.3)."""
    row = claimant.observations.get(leader.owner_id, NEVER_OBSERVED)
    own_timeout = claimant.io_timeout
    if row.last_check and row.last_live and row[:2] == leader.owner:
        unchanged_since, seen = row.last_live, row.timestamp
    else:
        row, unchanged_since, seen = NEVER_OBSERVED, float((yield from now())), 0
    while True:
        record = yield from read_record(claimant.lockspace, leader.owner_id, own_timeout)
        owner_timeout = sane_io_timeout(record.io_timeout, own_timeout)
        if record.is_free:
            return  # the owner left, or its id was re-acquired and given back
        if record.owner_id != leader.owner_id or record.owner_generation > leader.owner_generation:
            return  # the owner joined again later
        gone_after = gone_after_seconds(owner_timeout, vouched=terms.vouched == leader.owner)
        remaining = gone_after - ((yield from now()) - unchanged_since)
        details = {
            "owners": [
                {
                    "host_id": leader.owner_id,
                    "generation": leader.owner_generation,
                    "host_name": record.resource,
                    "io_timeout": owner_timeout,
                }
            ],
            "lver": leader.lver,
            "mode": "exclusive",
            "state": "unknown",
            "short_hold": bool(leader.flags & FLAG_SHORT_HOLD),
        }
        alive = seen != 0 and (
            record.timestamp != seen or (row.last_live != 0 and row.last_check == row.last_live)
        )
        if alive:
            if leader.write_id != leader.owner_id and (yield from _owner_released(claimant, area, leader)):
                return  # what a co-committer wrote is over
            raise LeaseHeld(
                f"the lease {safe(resource.name)} is held by host {safe(record.resource)!r}",
                details={**details, "state": "live"},
            )
        if seen and remaining < 0:
            return
        if not terms.wait_for_dead_owner and seen:
            raise LeaseHeld(
                f"the lease {safe(resource.name)} is held by host {safe(record.resource)!r}, which is silent",
                details={**details, "state": "fail", "takeover_in": max(0.0, remaining)},
            )
        if not terms.wait_for_dead_owner:
            raise LeaseHeld(
                f"the lease {safe(resource.name)} is held by host {safe(record.resource)!r}",
                details={**details, "takeover_in": max(0.0, remaining)},
            )
        seen = seen or record.timestamp
        yield from wait(1, f"host {safe(record.resource)} is silent: waiting until it is certainly dead")
        if (yield from read_leader(claimant, area, resource)) != leader:
            raise _Restart


def _owner_released(claimant: Claimant, area: Area, leader: Leader) -> Procedure[bool]:
    sector = area.geometry.dblock_sector(leader.owner_id)
    data = yield from read_sectors(area, sector, 1, read_timeout_seconds(claimant.io_timeout))
    dblock = Dblock.from_bytes(data)
    # Every ballot write clears the flag, so it speaks of the owner's last possession, also where a sanlock
    # host blanked the rest of its dblock (12.2-f). Of an earlier version it is an old read: the owner went
    # through a ballot for this one, or nobody could have proposed it.
    if dblock.is_released and dblock.lver in (0, leader.lver):
        return True
    # Or it has gone on to a ballot for a later version: then this one is over, whoever holds the later one.
    try:
        lver = verify_dblock(data, host_id=leader.owner_id).lver
    except WrongDblock:
        return False
    return leader.lver < lver <= leader.lver + MAX_VERSIONS_BACK


def _race_lost(resource: Resource, leader: Leader) -> RaceLost:
    return RaceLost(
        f"host id {leader.owner_id} won the lease {safe(resource.name)} in the same moment",
        details={
            "owners": [{"host_id": leader.owner_id, "generation": leader.owner_generation}],
            "lver": leader.lver,
            "short_hold": bool(leader.flags & FLAG_SHORT_HOLD),
        },
    )


def _stuck(area: Area, aborted: Aborted) -> RaceLost:
    place = area.byte_offset(area.geometry.dblock_sector(aborted.offender))
    kind = "newer lease version" if aborted.newer_lver else "larger ballot"
    return RaceLost(
        f"{area.path}:{place}: the dblock of host id {aborted.offender} kept a {kind} through "
        f"{BALLOT_RETRIES} rounds (mbal {aborted.dblock.mbal}, lver {aborted.dblock.lver})",
        hint="if that host is not acquiring this lease, its dblock is damaged: see 'dump-leases'",
        details={"host_id": aborted.offender},
    )
