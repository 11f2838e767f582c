"""Simulate hosts for years of virtual time, with every fault that is not physical: never two owners."""

from __future__ import annotations

import argparse
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.proofs.progress import Progress
from tests.proofs.simulator.scenario import YEAR_SECONDS, Result, Size, run_seed

# One world: after so many acquisitions its share of quiet time is over, and with it the world.
WORLD = Size(acquisitions=2000, host_seconds=0.02 * YEAR_SECONDS)
DEFAULT_YEARS = 1000.0
TRACE_LINES = 60
SEEDS = Path(__file__).parents[1] / "seeds" / "simulate.txt"


def failed_seeds() -> list[int]:
    """Seeds that ever failed: they are run first."""
    lines = SEEDS.read_text(encoding="ascii").splitlines() if SEEDS.exists() else []
    return [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--years", type=float, default=DEFAULT_YEARS, help="host-years")
    parser.add_argument("--seed", type=int, help="of the seeds of the worlds; default: another one each time")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--no-watchdog", action="store_true", help="violations are found then, with long pauses"
    )
    parser.add_argument("--replay", type=int, metavar="SEED", help="one world again, with its last events")


class Figures:
    """The sums over many worlds."""

    def __init__(self) -> None:
        self.worlds = self.acquisitions = self.events = 0
        self.years = self.skipped = 0.0
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.violating: list[Result] = []  # two owners, or a lost update
        self.stuck: list[Result] = []  # an end at which a host could not acquire, or did not come to rest

    def add(self, result: Result) -> None:
        self.worlds += 1
        self.acquisitions += result.acquisitions
        self.events += result.events
        self.years += result.host_seconds / YEAR_SECONDS
        self.skipped += result.skipped_host_seconds / YEAR_SECONDS
        self.counts += result.counts
        self.faults += result.faults
        if result.violations:
            (self.stuck if result.violations[0].text.startswith("stuck") else self.violating).append(result)

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{self.years:.2f} host-years ({self.skipped:.2f} of them skipped while nothing but renewals lay "
            f"ahead), {self.acquisitions} acquisitions, {len(self.violating)} worlds of {self.worlds} with "
            f"two owners, {len(self.stuck)} not at rest at their end, {counts['crashes']} crashes, "
            f"{counts['resets']} resets by the watchdog, {counts['pauses'] + counts['freezes']} pauses, "
            f"{sum(self.faults.values())} I/O faults, {counts['expiries']} expiries, {self.events} events"
        )


def main(arguments: argparse.Namespace) -> int:
    """Run worlds until the years are over; 1 if one has a violation (without watchdog: if none has)."""
    watchdog = not arguments.no_watchdog
    if arguments.replay is not None:
        result = run_seed(arguments.replay, WORLD, watchdog=watchdog, trace=True)
        print("\n".join(result.trace[-TRACE_LINES:]))
        return 1 if result.violations else 0
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    count = max(1, round(arguments.years * YEAR_SECONDS / WORLD.host_seconds))
    seeds = [*failed_seeds(), *(seed + number for number in range(count))]
    progress = Progress("simulate", len(seeds), seed=seed)
    figures = Figures()
    for result in run_worlds(seeds, watchdog=watchdog, jobs=arguments.jobs):
        figures.add(result)
        progress.add(1, acquisitions=figures.acquisitions, violations=len(figures.violating))
        if result.violations:
            print(f"seed {result.seed}: {result.violations[0].text}")
            print(f"  again: {replay_command(result.seed, watchdog=watchdog)}")
    print(f"simulate: {figures}, seed {seed}, {progress.elapsed_seconds:.0f} s")
    return int(bool(figures.violating) == watchdog)


def replay_command(seed: int, *, watchdog: bool) -> str:
    return f"python -m tests.proofs simulate --replay {seed}{'' if watchdog else ' --no-watchdog'}"


def run_worlds(seeds: Iterable[int], *, watchdog: bool, jobs: int) -> Iterator[Result]:
    with multiprocessing.Pool(jobs, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(_run_guarded if watchdog else _run_unguarded, seeds)


def _run_guarded(seed: int) -> Result:
    return run_seed(seed, WORLD, watchdog=True)


def _run_unguarded(seed: int) -> Result:
    return run_seed(seed, WORLD, watchdog=False)
