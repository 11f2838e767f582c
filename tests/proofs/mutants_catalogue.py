"""Protocol bugs, each one change of the shipped source, and the check that must find it.

A mutant replaces a snippet that stands exactly once in its module; where it does not any more, the catalogue
is out of date, and that is an error. Rules are those of sanlock-format.md and faults.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BALLOT = "vmlockctl.lease.ballot"
CONVERT = "vmlockctl.lease.convert"
DELTA = "vmlockctl.lease.delta"
PAXOS = "vmlockctl.lease.paxos"
RELEASE = "vmlockctl.lease.release"
RESOURCE = "vmlockctl.lease.resource"
TIMEOUTS = "vmlockctl.lease.timeouts"


class Mutant(NamedTuple):
    """One bug. Without ``old`` the bug is in what runs the protocol, and the check itself has it."""

    name: str
    rule: str  # what is broken, and which rule says so
    check: str  # by name, from CHECKS
    module: str = ""
    old: str = ""
    new: str = ""


class Check(NamedTuple):
    """Something to explore: a scene of the explorer, or a case of the timed check."""

    checker: str
    bounds: dict[str, Any]
    clean: bool = True  # the unchanged code finds nothing there


EX, SH = ("EX",), ("SH",)
EXPLORER, TIMED = "explorer", "timed"

CHECKS = {
    "two": Check(EXPLORER, {"programs": (EX, EX)}),
    "two, shared": Check(EXPLORER, {"programs": (EX, SH)}),
    "twice and once": Check(EXPLORER, {"programs": (EX * 2, EX)}),
    "late write": Check(EXPLORER, {"programs": (EX, EX), "late": 1}),
    "rejoin": Check(EXPLORER, {"programs": (EX, EX), "crashes": 1, "rejoins": 1}),
    "retry": Check(EXPLORER, {"programs": (EX, EX), "attempts": 2}),
    "three": Check(EXPLORER, {"programs": (EX, EX, EX), "ballots": 1}),
    "to shared": Check(EXPLORER, {"programs": (("EX>SH",), EX)}),
    "to exclusive": Check(EXPLORER, {"programs": (("SH>EX",), EX)}),
    "both to exclusive": Check(EXPLORER, {"programs": (("SH>EX",), ("SH>EX",))}),
    "late retry": Check(EXPLORER, {"programs": (EX, EX), "late": 1, "attempts": 2}),
    "race": Check(TIMED, {"ticks": 1, "renewals": 1}),
    "takeover": Check(TIMED, {"ticks": 1, "renewals": 2, "silences": 1}),
    "long hold": Check(TIMED, {"ticks": 1, "renewals": 5}),
    "pause": Check(TIMED, {"ticks": 1, "renewals": 2, "silences": 1, "pauses": True}),
    "pause and leave": Check(
        TIMED, {"ticks": 1, "renewals": 0, "silences": 1, "pauses": True, "leaves": True}
    ),
    "twins": Check(TIMED, {"ticks": 4, "renewals": 1, "twins": True, "slowest": 1}),
    "two io_timeouts": Check(TIMED, {"ticks": 2, "renewals": 1, "io_timeouts": (2, 1)}),
    "ghost": Check(
        EXPLORER, {"programs": (EX, EX), "late": 1, "attempts": 2, "quarantine": False}, clean=False
    ),
}

MUTANTS = (
    # -- the ballot (4.2, 12.1-3) ----------------------------------------------------------------------
    Mutant(
        "abort at an equal ballot",
        "4.2: only a larger mbal aborts; a host's own dblock has an equal one",
        "two", BALLOT,
        "if dblock.lver == mine.lver and dblock.mbal > mine.mbal:",
        "if dblock.lver == mine.lver and dblock.mbal >= mine.mbal:",
    ),
    Mutant(
        "a larger ballot is ignored",
        "4.2: D.mbal > mbal aborts",
        "two", BALLOT,
        "if dblock.lver == mine.lver and dblock.mbal > mine.mbal:",
        "if False:",
    ),
    Mutant(
        "a newer version is ignored",
        "4.2: D.lver > v aborts",
        "twice and once", BALLOT,
        "if dblock.lver > mine.lver:\n        return",
        "if False:\n        return",
    ),
    Mutant(
        "versions are not told apart",
        "4.2: one ballot per lver",
        "twice and once", BALLOT,
        "if dblock.lver < lver or dblock.inp == 0 or dblock.bal == 0:",
        "if dblock.inp == 0 or dblock.bal == 0:",
    ),
    Mutant(
        "no phase 1",
        "4.2 w1: the ballot number is written before the values are read",
        "two", BALLOT,
        'yield from write_own(proposer, mine, mode, what=f"ballot {mbal} phase 1 for lver {lver}")  # w1\n',
        "\n",
    ),
    Mutant(
        "no second read",
        "4.2 r4: the dblocks are read again after phase 2",
        "two", BALLOT,
        "image = yield from read_dblocks(proposer)  # r4",
        "",
    ),
    Mutant(
        "no phase 2",
        "4.2 w3: the value is written before it is committed",
        "two", BALLOT,
        'yield from write_own(proposer, mine, mode, what=f"ballot {mbal} phase 2 for lver {lver}")  # w3\n',
        "\n",
    ),
    Mutant(
        "no value adopted",
        "4.2: the value of the largest bal is proposed again",
        "two", BALLOT,
        "if best is None:\n        value",
        "if True:\n        value",
    ),
    Mutant(
        "the smallest bal is adopted",
        "4.2: the value of the largest bal",
        "three", BALLOT,
        "dblock.bal > best.bal",
        "dblock.bal < best.bal",
    ),
    Mutant(
        "our own earlier value is forgotten",
        "4.2, Disk Paxos: phase 1 keeps bal and inp, which may have been chosen",
        "late retry", BALLOT,
        "earlier = own if own.lver == lver else Dblock(lver=lver)",
        "earlier = Dblock(lver=lver)",
    ),
    Mutant(
        "ballot numbers of several hosts are equal",
        "4.1: mbal is congruent to the host id",
        "twice and once", BALLOT,
        "return highest - highest % max_hosts + max_hosts + host_id",
        "return highest + 1",
    ),
    Mutant(
        "the first ballot is the same for all",
        "4.1: the first mbal is the host id",
        "two", BALLOT,
        "if highest == 0:\n        return host_id",
        "if highest == 0:\n        return 1",
    ),
    # -- the acquire (4.1, 4.3) ------------------------------------------------------------------------
    Mutant(
        "the version does not grow",
        "4.1: v = lver + 1",
        "two", PAXOS,
        "lver = max(leader.lver + 1, survey.newest_lver)",
        "lver = max(leader.lver, survey.newest_lver)",
    ),
    Mutant(
        "our value is committed, not the ballot's",
        "4.1, 12.1-3",
        "two", PAXOS,
        "owner_id=mine.inp,\n        owner_generation=mine.inp2,",
        "owner_id=claimant.host_id,\n        owner_generation=claimant.generation,",
    ),
    Mutant(
        "another host's result is taken for ours",
        "4.1: mine.inp != H fails",
        "two", PAXOS,
        "ours = (mine.inp, mine.inp2) == (claimant.host_id, claimant.generation)",
        "ours = True",
    ),
    Mutant(
        "generation ignored in the result",
        "12.2-e: the committed owner must be our generation",
        "rejoin", PAXOS,
        "ours = (mine.inp, mine.inp2) == (claimant.host_id, claimant.generation)",
        "ours = mine.inp == claimant.host_id",
    ),
    Mutant(
        "generation ignored in a finished ballot",
        "4.1: T.owner == (H, G)",
        "rejoin", PAXOS,
        "if seen.owner != (claimant.host_id, claimant.generation):",
        "if seen.owner_id != claimant.host_id:",
    ),
    Mutant(
        "a live owner is not respected",
        "4.3: alive fails",
        "two", PAXOS,
        "        if alive:\n",
        "        if alive:\n            return\n",
    ),
    Mutant(
        "a void version is granted",
        "a version whose release we stated is no grant",
        "retry", PAXOS,
        "void = own.is_released and own.lver == lver",
        "void = False",
    ),
    Mutant(
        "RELEASED is read from the wrong host",
        "4.3: the owner's dblock",
        "twice and once", PAXOS,
        "sector = area.geometry.dblock_sector(leader.owner_id)",
        "sector = area.geometry.dblock_sector(leader.write_id)",
    ),
    Mutant(
        "RELEASED is not looked for",
        "4.3: a release that was overwritten",
        "late write", PAXOS,
        "if leader.write_id != leader.owner_id and (yield from _owner_released(claimant, area, leader)):",
        "if False:",
    ),
    Mutant(
        "shared holders are not looked for",
        "4.6",
        "two, shared", PAXOS,
        "if not terms.short_hold:",
        "if False:",
    ),
    Mutant(
        "live shared holders are erased",
        "4.6: alive by default",
        "two, shared", PAXOS,
        "live[host_id] = mode.generation",
        "pass",
    ),
    Mutant(
        "a shared acquire leaves no mark",
        "4.5: mode {SHARED, G}",
        "two, shared", PAXOS,
        "ModeBlock.shared(claimant.generation),",
        "NO_MODE,",
    ),
    Mutant(
        "a shared acquire clears the dblock",
        "12.1-7: always rewrite the dblock",
        "two, shared", PAXOS,
        "mine._replace(flags=mine.flags | FLAG_RELEASED),",
        "Dblock(),",
    ),
    Mutant(
        "a leader that goes back is not caught up with",
        "12.1-5, faults.md 3b: liveness",
        "twice and once", PAXOS,
        "lver = max(leader.lver + 1, survey.newest_lver)",
        "lver = leader.lver + 1",
    ),
    # -- giving back (4.4, 4.8, 12.1-5) ----------------------------------------------------------------
    Mutant(
        "RELEASED is forgotten",
        "4.4: flags = RELEASED",
        "two", RELEASE,
        "mine._replace(flags=mine.flags | FLAG_RELEASED),",
        "mine,",
    ),
    Mutant(
        "the dblock is zeroed on release",
        "12.1-5: keep the values",
        "two", RELEASE,
        "mine._replace(flags=mine.flags | FLAG_RELEASED),",
        "type(mine)(flags=FLAG_RELEASED),",
    ),
    Mutant(
        "a retract leaves the dblock",
        "4.8: RELEASED",
        "retry", RELEASE,
        "yield from _mark_released(claimant, area, leader, mode=mode, shared=False, lver=None)",
        "",
    ),
    Mutant(
        "no quarantine",
        "faults.md finding 3: a sector is not touched while a timed-out write to it may land",
        "ghost",
    ),
    # -- conversions (4.7) -----------------------------------------------------------------------------
    Mutant(
        "a ballot clears the shared mark",
        "12.1-6, 12.1-7: one sector, two structures; 4.7: every own sector with mode {SHARED, G}",
        "to exclusive", BALLOT,
        'yield from write_own(proposer, mine, mode, what=f"ballot {mbal} phase 2 for lver {lver}")  # w3',
        'yield from write_own(proposer, mine, NO_MODE, what=f"ballot {mbal} phase 2 for lver {lver}")  # w3',
    ),
    Mutant(
        "a conversion that is refused drops the mark",
        "4.7: release the leader only, keep SH",
        "both to exclusive", PAXOS,
        "yield from release(claimant, resource, lver=leader.lver, mode=terms.mode)",
        "yield from release(claimant, resource, lver=leader.lver)",
    ),
    Mutant(
        "converted to shared without a mark",
        "4.7: write own sector {dblock RELEASED, mode SHARED,G}",
        "to shared", CONVERT,
        "        own_mark(claimant),\n        what=f\"convert lver {lver} to shared\",",
        "        NO_MODE,\n        what=f\"convert lver {lver} to shared\",",
    ),
    # -- the delta lease (section 3) -------------------------------------------------------------------
    Mutant(
        "the settle wait is one second short",
        "3.2, faults.md finding 6: 2 * io_timeout is exactly tight",
        "race", TIMEOUTS,
        "return 2 * io_timeout\n\n\ndef own_record_watch_seconds",
        "return 2 * io_timeout - 1\n\n\ndef own_record_watch_seconds",
    ),
    Mutant(
        "the claim is not read back",
        "3.2: C != W fails",
        "race", DELTA,
        "if settled != claim:",
        "if False:",
    ),
    Mutant(
        "the settle wait is by our own io_timeout",
        "3.2: n_old, not my_N",
        "two io_timeouts", DELTA,
        "yield from wait(join_settle_seconds(holder_timeout),",
        "yield from wait(join_settle_seconds(io_timeout),",
    ),
    Mutant(
        "dead without the watchdog's time",
        "3.1: 8N + 60",
        "takeover", TIMEOUTS,
        "return 8 * io_timeout + WATCHDOG_FIRE_SECONDS",
        "return 8 * io_timeout",
    ),
    Mutant(
        "dead at the bound, not after it",
        "3.1: strictly more",
        "takeover", DELTA,
        "remaining = seconds + 1",
        "remaining = seconds",
    ),
    Mutant(
        "a sign of life is not seen",
        "3.2: R2 != R fails",
        "long hold", DELTA,
        "if again != record:",
        "if again.owner != record.owner:",
    ),
    Mutant(
        "a renewal counts from its end",
        "3.3: t is taken before the write",
        "takeover", DELTA,
        "return lease._replace(record=record), image",
        "yield from now()\n    return lease._replace(record=record), image",
    ),
    Mutant(
        "a renewal does not look",
        "3.3: -260, -261; faults.md finding 1",
        "pause", DELTA,
        "check_own_record(lease, image, expected)\n    start",
        "start",
    ),
    Mutant(
        "leaving does not look",
        "3.4, stricter than sanlock",
        "pause and leave", DELTA,
        "if not any(data.startswith(record) for record in expected):",
        "if False:",
    ),
    Mutant(
        "our own name is taken at once",
        "3.2, 12.2-k, faults.md finding 9",
        "twins", DELTA,
        "seconds = own_record_watch_seconds(holder_timeout)",
        "break",
    ),
)  # fmt: skip

# Changes that were tried and not found: (what, how far it was explored, why none is expected). The last
# column is an argument, not a proof; whoever changes what it leans on moves the change up into MUTANTS.
NOT_FOUND = (
    (
        "a release frees the leader before it marks the dblock",
        "two hosts, two epochs and one: to the end; with an error and a retry: 1.6 M states",
        "the mark follows, or a retract makes it; until then others find the lease busy",
    ),
    (
        "free_leader does not compare write_id",
        "two hosts, two epochs and one: to the end",
        "an earlier version over a newer one is a leader that went back, and is caught up with",
    ),
    (
        "is_ours does not compare the generation",
        "two hosts, a crash and a rejoin: to the end",
        "a host joins its next generation only when everything of the earlier one is gone",
    ),
    (
        "a leader that changed during the back-off is not noticed before the next round",
        "two hosts, two epochs each: 1.5 M states",
        "Disk Paxos decides the same value again, and a dblock of a newer version aborts the ballot",
    ),
    (
        "a conversion to shared does not state RELEASED",
        "one conversion beside an acquire: to the end",
        "the leader is freed next; the mark matters only where that write is lost to a co-committer",
    ),
    (
        "a leader is put right whatever our dblock says, or over a newer owner",
        "two hosts, two epochs and one, a holder that looks again: to the end",
        "the scene has no leader that goes back under a holder: it needs a late write besides",
    ),
)

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
assert len(BY_NAME) == len(MUTANTS)
