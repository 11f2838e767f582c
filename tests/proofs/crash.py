"""Every I/O call of every command that writes, met by every fault: killed before it, failed, short, lost.

After each: what has its final name is whole, real sanlock reads it, the command run again succeeds, and
another host (one of ours, and a real sanlock) acquires within the bound without repair. See ``crashpoints``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

from tests.proofs.crashpoints.faults import FAULTS
from tests.proofs.crashpoints.runner import CASES, Enumeration, Runner, enumerations
from tests.proofs.progress import Progress

# What a command makes of its calls, roughly: for the first ETA; from then on the counts are known.
_POINTS_GUESSED = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--command", action="append", choices=sorted(CASES), help="only this one; repeatable")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="points at a time (default %(default)s)")
    parser.add_argument(
        "--one-order", action="store_true", help="recover in one order after a point, not in both"
    )


class _Teller:
    """Progress over all enumerations, and each violation as it is found."""

    def __init__(self, todo: list[Enumeration]) -> None:
        self._progress = Progress("crash", len(todo) * _POINTS_GUESSED)
        self._told: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._todo = todo
        self._mutex = threading.Lock()

    def __call__(self, done: Enumeration) -> None:
        with self._mutex:
            for violation in done.violations[self._told.get(id(done), 0) :]:
                print(violation, file=sys.stderr)
            self._told[id(done)] = len(done.violations)
            self._progress.total = sum(
                each.count if each.count is not None else max(_POINTS_GUESSED, len(each.reached))
                for each in self._todo
            )
            violations = sum(len(each.violations) for each in self._todo)
            self._progress.add(1, command=done.case.name, fault=done.fault.name, violations=violations)


def main(arguments: argparse.Namespace) -> int:
    commands = arguments.command or list(CASES)
    faults = arguments.fault or list(FAULTS)
    todo = enumerations(commands, faults, both_orders=not arguments.one_order)
    with tempfile.TemporaryDirectory(prefix="vmlockctl-crash.") as directory:
        Runner(Path(directory), jobs=arguments.jobs, on_point=_Teller(todo)).run(todo)
    points = sum(len(each.reached) for each in todo)
    complete = sum(each.is_complete for each in todo)
    violations = sum(len(each.violations) for each in todo)
    slowest = max(each.slowest_seconds for each in todo)
    print(
        f"crash: {len(commands)} commands, {len(faults)} faults, {points} points, "
        f"{100 * complete / len(todo):.0f} % enumerated to their end, "
        f"slowest recovery {slowest:.1f} s, {violations} violations"
    )
    return 0 if not violations and complete == len(todo) else 1
