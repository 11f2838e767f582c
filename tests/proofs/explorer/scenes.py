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
    "two": Scene((EX, EX)),
    "two-epochs": Scene((EX * 2, EX * 2)),
    "two-late": Scene((EX, EX), late=1),
    "two-crash": Scene((EX, EX), crashes=1),
    "two-retry": Scene((EX, EX), late=1, attempts=2),
    "two-shared": Scene((SH, SH)),
    "two-mixed": Scene((EX, SH)),
    "to-shared": Scene((("EX>SH",), EX)),
    "to-exclusive": Scene((("SH>EX",), EX)),
    "two-to-exclusive": Scene((("SH>EX",), ("SH>EX",))),
    "two-all": Scene((EX * 2, EX * 2), late=1, crashes=1, attempts=2),
    "three-1": Scene((EX, EX, EX), ballots=1),
    "three-2": Scene((EX, EX, EX), ballots=2),
    "four-1": Scene((EX, EX, EX, EX), ballots=1),
}
