"""Seeded protocol bugs: each is found by the explorer or the timed check, with its shortest trace.

The unchanged code must be clean in every check that a mutant is run in; that is seen in the same run, up to
a bound on its states. The bugs are in ``mutants_catalogue.py``. A mutant that survives, and a snippet that
the source no longer has, is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Optional

from tests.proofs.mutants_catalogue import BY_NAME, CHECKS, MUTANTS, Mutant
from tests.proofs.mutated import ROOT, Finding
from tests.proofs.progress import Progress

TIMEOUT_SECONDS = 900


class Run(NamedTuple):
    """A check of the unchanged code (no mutant) or of a mutant, and how it ended."""

    check: str
    mutant: Optional[Mutant]
    finding: Finding

    @property
    def is_right(self) -> bool:
        return bool(self.finding.violation) == (self.mutant is not None)

    def __str__(self) -> str:
        name = self.mutant.name if self.mutant else "(unchanged)"
        killer = f"{CHECKS[self.check].checker}: {self.check}"
        found = self.finding.violation.split(":")[0] if self.finding.violation else "-"
        steps = self.finding.steps or "-"
        note = "" if self.is_right else "  SURVIVED" if self.mutant else "  NOT CLEAN"
        return f"{name:45} {killer:28} {found:45} {steps:>5} {self.finding.states:>8}{note}"


def find(check: str, mutant: Optional[Mutant]) -> Run:
    """Run one check in a process of its own."""
    command = [sys.executable, "-m", "tests.proofs.mutated", check, *([mutant.name] if mutant else [])]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return Run(check, mutant, Finding(**json.loads(done.stdout)))


def runs_of(mutants: Iterable[Mutant]) -> list[tuple[str, Optional[Mutant]]]:
    """The unchanged code in each check that is used and claims to be clean, then the mutants."""
    checks = dict.fromkeys(mutant.check for mutant in mutants)
    unchanged: list[tuple[str, Optional[Mutant]]] = [(name, None) for name in checks if CHECKS[name].clean]
    return unchanged + [(mutant.check, mutant) for mutant in mutants]


def run_all(mutants: Iterable[Mutant], workers: int) -> Iterator[Run]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda what: find(*what), runs_of(mutants))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="only these, with their traces")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="print the shortest trace of each")


def main(arguments: argparse.Namespace) -> int:
    mutants = [BY_NAME[name] for name in arguments.names] or list(MUTANTS)
    progress = Progress("mutants", len(runs_of(mutants)))
    print(f"{'mutant':45} {'killed by':28} {'found':45} {'steps':>5} {'states':>8}")
    seen = []
    for run in run_all(mutants, arguments.workers):
        seen.append(run)
        progress.add(1)
        print(run, flush=True)
        if run.finding.trace and (arguments.trace or arguments.names):
            print("    " + "\n    ".join(run.finding.trace))
    unchanged = [run for run in seen if run.mutant is None]
    killed = [run for run in seen if run.mutant is not None and run.is_right]
    steps = [run.finding.steps for run in killed]
    print(
        f"mutants: {len(killed)} of {len(mutants)} killed, shortest traces {min(steps, default=0)} to "
        f"{max(steps, default=0)} steps; unchanged code: {sum(run.is_right for run in unchanged)} of "
        f"{len(unchanged)} checks clean, {sum(run.finding.states for run in unchanged)} states"
    )
    return 0 if all(run.is_right for run in seen) else 1
