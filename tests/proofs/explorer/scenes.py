"""The bounded scenes: who takes part, what they do, and which faults may happen, at any moment each."""

from __future__ import annotations

from typing import NamedTuple, Optional


class Scene(NamedTuple):
    """Bounds of one exploration. Within them everything that can happen is followed."""

    programs: tuple[tuple[str, ...], ...]  # of each host: in which mode it acquires, round by round
    ballots: int = 3  # the rounds of a ballot, and of restarts, before an acquire gives up
    attempts: int = 1  # acquires in a round until one is granted; each that is not is retracted
    crashes: int = 0  # hosts that lose power; what they are just writing may land at any time, or never
    late: int = 0  # writes that time out, and land at any time later, or never
    errors: int = 0  # I/Os that fail at once; a write may have landed
    rejoins: int = 0  # crashed hosts that come back with the next generation
    verify: bool = False  # a holder looks again, before it releases, whether the lease is still its own
    torn: bool = False  # reads of several sectors see them one after the other
    quarantine: bool = True  # a host does not touch the storage while a write of its own is in flight
    finds: Optional[str] = None  # the violation that must be found: the explorer has teeth


EX, SH = ("EX",), ("SH",)

SCENES: dict[str, Scene] = {
    # Two hosts, one epoch.
    "two": Scene((EX, EX)),
    "two-shared": Scene((SH, SH)),
    "two-mixed": Scene((EX, SH)),
    "two-late": Scene((EX, EX), late=1),
    "two-crash": Scene((EX, EX), crashes=1),
    "two-torn": Scene((EX, EX), torn=True),
    "two-verify": Scene((EX * 2, EX), verify=True),
    "two-errors": Scene((EX, EX), ballots=2, attempts=2, errors=2),
    "two-late-twice": Scene((EX, EX), ballots=2, attempts=2, late=2),
    "two-retry": Scene((EX, EX), late=1, attempts=2),
    "two-rejoin": Scene((EX, EX), crashes=1, rejoins=1),
    "shared-late": Scene((SH, EX), ballots=2, late=1),
    "shared-crash": Scene((SH, EX), ballots=2, crashes=1),
    # The mode is changed.
    "to-shared": Scene((("EX>SH",), EX)),
    "to-shared-late": Scene((("EX>SH",), EX), ballots=2, late=1),
    "to-exclusive": Scene((("SH>EX",), EX)),
    "to-exclusive-late": Scene((("SH>EX",), EX), ballots=2, late=1),
    "to-exclusive-crash": Scene((("SH>EX",), EX), ballots=2, crashes=1),
    "to-exclusive-shared": Scene((("SH>EX",), SH), ballots=2),
    "two-to-exclusive": Scene((("SH>EX",), ("SH>EX",)), ballots=2),
    # Several epochs, and everything at once.
    "two-epochs": Scene((EX * 2, EX * 2)),
    "two-all": Scene((EX * 2, EX * 2), late=1, crashes=1, attempts=2),
    # More hosts.
    "three-1": Scene((EX, EX, EX), ballots=1),
    "three-late": Scene((EX, EX, EX), ballots=1, late=1),
    "three-crash": Scene((EX, EX, EX), ballots=1, crashes=1),
    "three-epochs": Scene((EX * 2, EX, EX), ballots=1),
    "three-2": Scene((EX, EX, EX), ballots=2),
    "four-1": Scene((EX, EX, EX, EX), ballots=1),
    # The rule that is missing here is needed (faults.md finding 3).
    "no-quarantine": Scene((EX, EX), ballots=2, attempts=2, late=1, quarantine=False, finds="two owners"),
}
