"""Simulate hosts with every fault that is not physical, for host-years, and count overlaps.

Runs the shipped procedures of ``lease`` on virtual clocks (``tests/proofs/simulator``). One seed is one world
of 2 to 5 hosts, 2,000 acquisitions spread over 0.04 host-years. Most of the time is quiet, with renewals
and nothing else; that is skipped but for the last cycles, and the figures say how much (``World.skip``).

Every 20th world is one of a storage that often acknowledges a write and loses it.

Ctrl-C ends a run early: the line of figures is of the seeds that ended. With ``--keep FILE`` the next run
goes on from there, as long as the code is the same: the full size takes hours.

``--no-watchdog`` runs the same worlds on hosts that nothing resets: there overlaps must be found, by pauses
that outlast the lease. So that a clean run means something.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from tests.proofs.kept import Keeper
from tests.proofs.progress import Progress
from tests.proofs.simulator.checker import Violation
from tests.proofs.simulator.scenario import SIZE, YEAR_SECONDS, Result, run_seed

SEEDS = Path(__file__).parent.parent / "seeds" / "simulate.txt"
_TOLD_EVENTS = 150
_MAX_FAILURES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--years", type=float, default=1000.0, help="host-years to simulate (1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (2)")
    parser.add_argument(
        "--no-watchdog", action="store_true", help="nothing resets a host: must find overlaps"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the results, go on from those kept")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and show its last events")
    parser.add_argument("--events", type=int, default=_TOLD_EVENTS, help="how many events --replay shows")


class Totals:
    """What all seeds together did."""

    def __init__(self) -> None:
        self.results = 0
        self.host_seconds = 0.0
        self.skipped_host_seconds = 0.0
        self.acquisitions = 0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failures: list[Result] = []

    def add(self, result: Result) -> None:
        self.results += 1
        self.host_seconds += result.host_seconds
        self.skipped_host_seconds += result.skipped_host_seconds
        self.acquisitions += result.acquisitions
        self.events += result.events
        self.counts += result.counts
        self.faults += result.faults
        self.errors += result.errors
        if result.violations:
            self.failures.append(result._replace(trace=[]))

    @property
    def overlaps(self) -> int:
        return sum(not is_stuck(result) for result in self.failures)

    @property
    def stuck(self) -> int:
        return len(self.failures) - self.overlaps

    def line(self, seconds: float) -> str:
        counts = self.counts
        skipped = self.skipped_host_seconds / self.host_seconds if self.host_seconds else 0.0
        figures = {
            "seeds": self.results,
            "host-years": f"{self.host_seconds / YEAR_SECONDS:.2f}",
            "skipped": f"{100 * skipped:.2f}%",
            "acquisitions": self.acquisitions,
            "overlaps": self.overlaps,
            "stuck": self.stuck,
            "conversions": counts["conversions"],
            "renewals": counts["renewals"],
            "joins": counts["joins"],
            "crashes": counts["crashes"],
            "watchdog-resets": counts["resets"],
            "pauses": counts["pauses"] + counts["freezes"],
            "daemon-kills": counts["daemon kills"],
            "outages": counts["outages"] + counts["slow storage"],
            "clones": counts["clones"],
            "hostile-dblocks": counts["hostile dblocks"],
            "io-faults": sum(self.faults.values()),
            "expiries": counts["expiries"],
            "leases-lost": counts["leases lost"],
            "refused": sum(self.errors.values()),
            "events": self.events,
            "events/s": f"{self.events / seconds:.0f}",
            "seconds": f"{seconds:.0f}",
        }
        return " ".join(f"{name}={value}" for name, value in figures.items())


def is_stuck(result: Result) -> bool:
    return result.violations[0].text.startswith("stuck")


class Job(NamedTuple):
    seed: int
    watchdog: bool


def to_record(result: Result) -> dict[str, Any]:
    return result._replace(trace=[])._asdict()


def from_record(record: dict[str, Any]) -> Result:
    counters = {name: Counter(record[name]) for name in ("counts", "faults", "errors")}
    violations = [Violation(*violation) for violation in record["violations"]]
    return Result(**{**record, **counters, "violations": violations})


def _run(job: Job) -> Result:
    return run_seed(job.seed, watchdog=job.watchdog)


def simulate(jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """The result of every job, in the order in which they end."""
    if workers == 1:
        yield from map(_run, jobs)
        return
    with get_context("fork").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(_run, jobs)


def kept_seeds() -> list[int]:
    """Seeds that ever failed: they run first."""
    lines = (line.split("#")[0].strip() for line in SEEDS.read_text().splitlines())
    return [int(line) for line in lines if line]


def seeds_of(years: float, first: int) -> list[int]:
    """So many seeds that the worlds live so long together; those that ever failed come first."""
    kept = kept_seeds()
    count = math.ceil(years * YEAR_SECONDS / SIZE.host_seconds)
    return [*kept, *(seed for seed in range(first, first + count) if seed not in kept)]


def replay_command(result: Result, *, watchdog: bool) -> str:
    return f"python -m tests.proofs simulate --replay {result.seed}" + ("" if watchdog else " --no-watchdog")


def replay(seed: int, *, watchdog: bool, events: int = _TOLD_EVENTS) -> Result:
    """Run one seed, and tell the last events of those whom its violation names."""
    result = run_seed(seed, watchdog=watchdog, trace=True)
    if not result.violations:
        print(f"seed {seed}: nothing was found", file=sys.stderr)
        return result
    text = result.violations[0].text
    owners = {
        label for label in (f"{kind}{n}" for kind in ("host", "clone") for n in range(10)) if label in text
    }
    told = [line for line in result.trace if not owners or line[17:].split()[0] in (*owners, "-")]
    print("\n".join(told[-events:]), file=sys.stderr)
    return result


def main(arguments: argparse.Namespace) -> int:
    watchdog = not arguments.no_watchdog
    if arguments.replay is not None:
        result = replay(arguments.replay, watchdog=watchdog, events=arguments.events)
        print(result.violations[0].text if result.violations else "overlaps=0")
        return 1 if result.violations else 0
    keeper = Keeper(arguments.keep, "simulate", watchdog=watchdog)
    totals = Totals()
    for kept in keeper.before:
        totals.add(from_record(kept.result))
    done = keeper.pieces
    seeds = [seed for seed in seeds_of(arguments.years, arguments.seed) if str(seed) not in done]
    progress = Progress("simulate", len(seeds), seed=arguments.seed)
    with contextlib.suppress(KeyboardInterrupt):
        for result in simulate([Job(seed, watchdog) for seed in seeds], arguments.jobs):
            totals.add(result)
            keeper.add(result.seed, to_record(result))
            if result.violations and watchdog:
                print(f"seed {result.seed}: {result.violations[0].text}", file=sys.stderr)
                print(f"  {replay_command(result, watchdog=watchdog)}", file=sys.stderr)
                if len(totals.failures) >= _MAX_FAILURES:
                    break
            progress.add(1, acquisitions=totals.acquisitions, overlaps=totals.overlaps)
    print(totals.line(max(1e-9, keeper.seconds + progress.elapsed_seconds)))
    if watchdog:
        return 1 if totals.failures else 0
    return 0 if totals.overlaps else 1
