"""The delta lease against the clock: all latencies, two and three hosts, clean at the bounds, caught below.

The shipped ``join``, ``renew`` and ``leave`` in whole ticks, with io_timeout = D ticks (faults.md finding 6
and section 3b). The two bounds that the lease rests on are tried as they are, and then one tick below, where
a violation must be found: ``2 * io_timeout`` from a claim to its confirmation, and ``8 * io_timeout`` and the
watchdog's time before a silent holder is taken for dead. The watchdog's 60 seconds are one or two ticks here.
A holder that falls silent lives for all of that time, which is the worst that the promise allows.

Never: two live holders of one host id; a claim on the record of a live holder; a holder that lives, and loses
it; a race that nobody wins.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.proofs.progress import Progress
from tests.proofs.timed_world import (
    DONE,
    GRANTED,
    LEAVING,
    LOST,
    RENEWED,
    Due,
    Mark,
    Outcome,
    Player,
    World,
)
from vmlockctl.errors import HostIdBusy, HostLeaseLost
from vmlockctl.lease import delta, timeouts
from vmlockctl.lease.delta import Lockspace, join, leave, renew
from vmlockctl.lease.steps import Area
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import new_delta

HOST_ID = 1
SPACE = "space"

AT_THE_BOUND = "at the bounds"
SHORT_SETTLE = "settle 2D-1"
SHORT_DEAD = "host dead one tick early"


class Case(NamedTuple):
    """One exploration. ``silences``: how often a holder may fall silent; ``leaves``: it gives it back."""

    ticks: int  # D, of one io_timeout: what the lockspace states
    contenders: int
    watchdog: int
    renewals: int
    silences: int
    leaves: bool
    bounds: str = AT_THE_BOUND
    pauses: bool = False  # who falls silent was paused, and goes on
    twins: bool = False  # all have one name, and know of no process of an earlier instance
    slowest: float = float("inf")  # ticks that an I/O takes at most
    io_timeouts: tuple[int, ...] = ()  # of each contender, where they differ

    def __str__(self) -> str:
        what = ("takeover" if self.silences else "race") + (" and leave" if self.leaves else "")
        more = (" with a pause" if self.pauses else "") + (" of twins" if self.twins else "")
        return f"D={self.ticks} {self.contenders} hosts {what}{more}, {self.bounds}"

    @property
    def must_be_clean(self) -> bool:
        return self.bounds == AT_THE_BOUND


def contender(lockspace: Lockspace, name: str, case: Case, io_timeout: int) -> Generator[Any, Any, None]:
    """Join, renew a few times when it is due, and perhaps leave (sections 3.2 to 3.4)."""
    host_name = "twin" if case.twins else name
    try:
        lease = yield from join(
            lockspace,
            host_id=HOST_ID,
            host_name=host_name,
            io_timeout=io_timeout,
            earlier_instance_gone=case.twins,
        )
    except HostIdBusy:
        return
    yield Mark(GRANTED)
    try:
        for _ in range(case.renewals):
            yield Due(timeouts.id_renewal_seconds(io_timeout))
            lease, _ = yield from renew(lease, expected=[lease.record.to_bytes()])
            yield Mark(RENEWED)
        if not case.leaves:
            yield Mark(DONE)
            return
        yield Due(timeouts.id_renewal_seconds(io_timeout))
        yield Mark(LEAVING)
        yield from leave(lease, expected=[lease.record.to_bytes()])
    except HostLeaseLost:
        yield Mark(LOST)


@contextmanager
def bounds_of(case: Case) -> Iterator[None]:
    """The durations of a case."""
    kept = (timeouts.WATCHDOG_FIRE_SECONDS, delta.join_settle_seconds, delta.host_dead_seconds)
    timeouts.WATCHDOG_FIRE_SECONDS = case.watchdog
    if case.bounds == SHORT_SETTLE:
        delta.join_settle_seconds = lambda io_timeout: timeouts.join_settle_seconds(io_timeout) - 1
    if case.bounds == SHORT_DEAD:
        delta.host_dead_seconds = lambda io_timeout: timeouts.host_dead_seconds(io_timeout) - 1
    try:
        yield
    finally:
        timeouts.WATCHDOG_FIRE_SECONDS, delta.join_settle_seconds, delta.host_dead_seconds = kept


def check(case: Case, told: Callable[[int], None] = lambda states: None, *, first: bool = False) -> Outcome:
    """Explore one case to its end, or to the ``first`` violation."""
    lockspace = Lockspace(Area("/space", 0, DEFAULT_GEOMETRY), SPACE, case.ticks)
    record = new_delta(DEFAULT_GEOMETRY, space_name=SPACE, io_timeout=case.ticks)

    def player(number: int) -> Player:
        name = "ABCDEF"[number]
        io_timeout = case.io_timeouts[number] if case.io_timeouts else case.ticks
        return Player(
            name,
            lambda: contender(lockspace, name, case, io_timeout),
            clock=1000 * (number + 1),
            lifetime=timeouts.id_renewal_fail_seconds(io_timeout) + case.watchdog,
        )

    world = World(
        [player(number) for number in range(case.contenders)],
        record.sector(DEFAULT_GEOMETRY.sector_size),
        silences=case.silences,
        pauses=case.pauses,
        slowest=case.slowest,
        alike=not case.io_timeouts,
    )
    with bounds_of(case):
        return world.explore(told, first=first)


# (D, contenders, watchdog, renewals, silences, leaves). A race: who gets it, and may keep it, and gives it
# back. A takeover: the holder falls silent at any moment, and another takes its host id.
FULL = (
    *((ticks, 2, 1, 2, 0, True) for ticks in (1, 2, 3, 4)),
    *((ticks, 2, 2, 2, 1, False) for ticks in (1, 2, 3, 4)),
    (1, 3, 1, 1, 0, False),
    (2, 3, 1, 1, 0, False),
    (1, 3, 1, 1, 1, False),
    (1, 2, 1, 3, 1, False, AT_THE_BOUND, True),
)
SLICE = (
    *((ticks, 2, 1, 1, 0, True) for ticks in (1, 2, 3)),
    *((ticks, 2, 1, 1, 1, False) for ticks in (1, 2, 3)),
    (1, 3, 1, 1, 0, False),
    (1, 2, 1, 3, 1, False, AT_THE_BOUND, True),
)
SMOKE = ((1, 2, 1, 1, 0, False), (1, 2, 1, 1, 1, False))


def cases(shapes: tuple[tuple[Any, ...], ...]) -> list[Case]:
    """Each shape at the bounds, and one tick below the bound that it tries."""
    found = []
    for shape in shapes:
        case = Case(*shape)
        found += [case, case._replace(bounds=SHORT_DEAD if case.silences else SHORT_SETTLE)]
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slice", action="store_true", help="the smaller cases, as CI runs them")
    parser.add_argument("--ticks", type=int, metavar="D", help="only the cases with io_timeout = D ticks")
    parser.add_argument("--trace", action="store_true", help="print a shortest trace of each violation")


def main(arguments: argparse.Namespace) -> int:
    chosen = cases(SLICE if arguments.slice else FULL)
    if arguments.ticks:
        chosen = [case for case in chosen if case.ticks == arguments.ticks]
    progress = Progress("timed", len(chosen))
    states, found, below, wrong = 0, 0, 0, []
    for case in chosen:
        outcome = check(case, lambda reached, case=case: progress.add(0, case=case, level=reached))
        states += outcome.states
        if case.must_be_clean:
            found += outcome.violations
        else:
            below += outcome.violations
        if case.must_be_clean == bool(outcome.violations):
            wrong.append(case)
        progress.add(1)
        print(f"{case}: {outcome.states} states, {outcome.violations} violations")
        if outcome.first and (arguments.trace or case.must_be_clean):
            print(f"  {outcome.first.what}: " + "; ".join(outcome.first.trace))
    deepest, most = max(case.ticks for case in chosen), max(case.contenders for case in chosen)
    print(
        f"timed: D 1-{deepest}, contenders 2-{most}, states {states}, violations {found}; "
        f"one tick below: violations {below}, cases not as expected {len(wrong)}"
    )
    return 1 if wrong else 0
