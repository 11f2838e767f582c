"""Fuzzing: everything that reads bytes of a disk or of the run directory, given what no writer writes.

Real areas and records in every state, their fields mutated with the checksum repaired or not, sectors moved,
torn and blanked, files cut short. Whatever comes, a reader ends in a value or a ``VmlockctlError`` within
50 ms of CPU and 200 MB; what is printed is safe for a terminal; a procedure writes its own sectors only, and
never over a damaged leader.

Ctrl-C ends a run early, with its figures; with ``--seed N --keep FILE`` the next one goes on from there.

One case is one mutated record or area given to its reader. The figures say how many each reader had: the
decoders of single records have most of them. Checksums are summed by a library (``checksums``).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from tests.proofs.checksums import summing_quickly
from tests.proofs.fuzzing import files, output, procedures, records, rindex
from tests.proofs.fuzzing.cases import CPU_LIMIT_SECONDS, SEEDS, Case, Checking, Target
from tests.proofs.kept import Keeper
from tests.proofs.progress import Progress

RSS_LIMIT_MB = 200
MAX_SAVED = 20  # failing cases of one run that are kept: one bug makes many
_ROUND = 20_000  # cases of one piece of work, over all targets

_MODULES = (records, procedures, output, files, rindex)
TARGETS = {target.name: target for module in _MODULES for target in module.TARGETS}


class Piece(NamedTuple):
    """One piece of work: so many cases for each target, from a seed of its own."""

    seed: str
    counts: dict[str, int]


class Failure(NamedTuple):
    case: Case
    why: str


class Result(NamedTuple):
    seed: str  # of the piece
    counts: dict[str, int]
    failures: list[Failure]
    slowest: float
    rss_mb: int


class Totals:
    """What all pieces came to."""

    def __init__(self, names: list[str]) -> None:
        self.counts = dict.fromkeys(names, 0)
        self.failed = self.rss_mb = 0
        self.slowest = 0.0

    def add(self, counts: dict[str, int], failed: int, slowest: float, rss_mb: int) -> None:
        for name, count in counts.items():
            self.counts[name] += count
        self.failed += failed
        self.slowest, self.rss_mb = max(self.slowest, slowest), max(self.rss_mb, rss_mb)


# -- one case -------------------------------------------------------------------------------------------


def _limit(waited_seconds: float) -> float:
    return CPU_LIMIT_SECONDS * (1 + waited_seconds / 60)


def _why(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines[-3:]).strip()


def try_case(target: Target, made: Any) -> tuple[Optional[str], float]:
    """Run one case by itself: what is wrong with it, and the CPU seconds of the best of five runs."""
    best, waited = float("inf"), 0.0
    for _ in range(5):
        checked, begun = Checking.seconds, time.process_time()
        try:
            waited = target.run(made)
        except Exception as error:  # noqa: BLE001 - whatever leaves a reader is the finding
            return _why(error), 0.0
        best = min(best, time.process_time() - begun - (Checking.seconds - checked))
    if best <= _limit(waited):
        return None, best / _limit(waited) * CPU_LIMIT_SECONDS
    return f"{best * 1000:.0f} ms of CPU, at most {_limit(waited) * 1000:.0f} ms are expected", best


# -- many cases -----------------------------------------------------------------------------------------


def run_piece(piece: Piece) -> Result:
    """Run a piece. Only a batch that took longer than one case may is looked at case by case."""
    failures: list[Failure] = []
    slowest = 0.0
    with summing_quickly():
        for name, count in piece.counts.items():
            target = TARGETS[name]
            source = random.Random(f"{piece.seed}:{name}")
            for begin in range(0, count, target.batch):
                batch = list(target.cases(source, min(target.batch, count - begin)))
                slowest = max(slowest, _run_batch(target, batch, failures))
    return Result(piece.seed, piece.counts, failures, slowest, _peak_rss_mb())


def _peak_rss_mb() -> int:
    """Of this program alone: what getrusage tells may be that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _run_batch(target: Target, batch: list[Any], failures: list[Failure]) -> float:
    """Add what fails to ``failures``; return the CPU seconds of the slowest that was timed by itself."""
    run, begun = target.run, time.process_time()
    for made in batch:
        try:
            run(made)
        except Exception as error:  # noqa: BLE001 - whatever leaves a reader is the finding
            failures.append(Failure(target.describe(made), _why(error)))
    if time.process_time() - begun <= CPU_LIMIT_SECONDS:
        return 0.0
    slowest = 0.0
    for made in batch:
        why, seconds = try_case(target, made)
        slowest = max(slowest, seconds)
        if why is not None and seconds:
            failures.append(Failure(target.describe(made), why))
    return slowest


def _pieces(total: int, seed: int, names: list[str]) -> Iterator[Piece]:
    """Pieces in which every target has its share, and at least one case in all."""
    shares = sum(TARGETS[name].share for name in names)
    wanted = {name: max(1, total * TARGETS[name].share // shares) for name in names}
    wanted[names[0]] += max(0, total - sum(wanted.values()))
    rounds = max(1, total // _ROUND)
    given = dict.fromkeys(names, 0)
    for number in range(1, rounds + 1):
        counts = {name: wanted[name] * number // rounds - given[name] for name in names}
        given = {name: given[name] + counts[name] for name in names}
        yield Piece(f"{seed}:{number}", counts)


# -- saved cases ----------------------------------------------------------------------------------------


def saved_cases() -> list[Path]:
    return sorted(SEEDS.glob("*.json"))


def replay(path: Path) -> Optional[str]:
    """Run a saved case; return what is wrong with it."""
    case = Case.from_text(path.read_text())
    target = TARGETS[case.target]
    return try_case(target, target.revive(case))[0]


def _save(failure: Failure) -> Path:
    text = failure.case.to_text()
    name = f"{failure.case.target}-{random.Random(text).getrandbits(32):08x}.json"
    SEEDS.mkdir(parents=True, exist_ok=True)
    (SEEDS / name).write_text(text)
    return SEEDS / name


def _report(failures: list[Failure], saved: dict[str, Path]) -> None:
    """Save and name each kind of failure once, with the command that repeats it."""
    for failure in failures:
        kind = f"{failure.case.target} {failure.why.splitlines()[-1][:60]}"
        if kind in saved or len(saved) >= MAX_SAVED:
            continue
        saved[kind] = _save(failure)
        print(
            f"{failure.case.target} {failure.case.scene} {failure.case.action}\n{failure.why}\n"
            f"replay: python -m tests.proofs fuzz --case {saved[kind]}",
            file=sys.stderr,
        )


# -- the command ----------------------------------------------------------------------------------------


def parse_count(text: str) -> int:
    """``100M``, ``50k`` or a plain number."""
    factors = {"k": 1000, "M": 1_000_000}
    number, factor = (text[:-1], factors[text[-1]]) if text[-1:] in factors else (text, 1)
    return int(float(number) * factor)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=parse_count, default=100_000_000, help="cases in all, as 100M")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this reader")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep the results, and go on from those kept (with --seed)"
    )
    parser.add_argument("--case", type=Path, action="append", help="only replay this saved case")


def main(arguments: argparse.Namespace) -> int:
    if arguments.case:
        return _replay_all(arguments.case)
    if arguments.keep and arguments.seed is None:
        print("fuzz: --keep needs --seed: the next part has to know it", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    old = _replay_all(saved_cases()) if saved_cases() else 0
    names = arguments.target or list(TARGETS)
    keeper = Keeper(arguments.keep, "fuzz", seed=seed, cases=arguments.cases, targets=names)
    totals, saved = Totals(names), dict[str, Path]()
    for kept in keeper.before:
        totals.add(**kept.result)
    done = keeper.pieces
    pieces = (piece for piece in _pieces(arguments.cases, seed, names) if piece.seed not in done)
    progress = Progress("fuzz", arguments.cases - sum(totals.counts.values()), seed=seed)
    print(f"fuzz: {progress.total:,} cases, seed {seed}, {arguments.jobs} jobs", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        for result in _results(pieces, arguments.jobs):
            figures = {**result._asdict(), "failed": len(result.failures)}
            record = {name: figures[name] for name in ("counts", "failed", "slowest", "rss_mb")}
            totals.add(**record)
            keeper.add(result.seed, record)
            _report(result.failures, saved)
            progress.add(sum(result.counts.values()), failed=totals.failed)
    hangs = sum("ms of CPU" in kind for kind in saved)
    each = ", ".join(f"{name} {count:,}" for name, count in totals.counts.items())
    print(
        f"fuzz: {sum(totals.counts.values()):,} cases ({each}), {totals.failed} failed of {len(saved)} kinds,"
        f" {hangs} kinds over {CPU_LIMIT_SECONDS * 1000:.0f} ms, slowest batch member "
        f"{totals.slowest * 1000:.0f} ms, {totals.rss_mb} MB, seed {seed}, "
        f"{keeper.seconds + progress.elapsed_seconds:.0f} s"
    )
    return int(bool(totals.failed or old or totals.rss_mb > RSS_LIMIT_MB))


def _results(pieces: Iterator[Piece], jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(run_piece, pieces)
        return
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("fork").Pool(jobs, signal.signal, ignoring) as pool:
        yield from pool.imap_unordered(run_piece, pieces)
        pool.close()
        pool.join()


def _replay_all(paths: list[Path]) -> int:
    found = 0
    for path in paths:
        why = replay(path)
        found += why is not None
        print(f"{path}: {why or 'passes'}", file=sys.stderr)
    print(f"fuzz: {len(paths)} saved cases, {found} failed")
    return int(bool(found))
