"""Four hosts of ours that always want one lease: each gets at least a tenth of the grants (faults.md G13).

Whoever releases asks again at once, which is the unfairest that hosts can be; they wait as ``acquire --wait``
does, and hold the lease for about as long as it takes to count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Optional

from tests.proofs.progress import Progress, format_seconds
from tests.support.contender import Contender, Outcome, Turn
from tests.support.contest import Contest

SHARE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grants", type=int, default=1_000)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=None, help="a new one on the storage to try")


def contend(contest: Contest, grants: int) -> Progress:
    """So many grants, to whoever is quickest."""
    progress = Progress("fairness", grants)

    def next_turn(_who: Contender) -> Optional[Turn]:
        done = sum(contest.grants.values()) >= grants or contest.findings
        return None if done else Turn()

    def count(outcome: Outcome) -> None:
        progress.add(outcome.exclusive, refusals=contest.refusals)

    contest.all_at_once(next_turn, count)
    contest.check()
    total = sum(contest.grants.values())
    for contender in contest.contenders:
        had = contest.grants[contender.name]
        if had < SHARE * total:
            contest.findings.append(f"{contender.name} had {had} of {total} grants")
    return progress


def main(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="vmlockctl-fairness-"))
    with Contest(directory, sanlock=0, ours=arguments.hosts) as contest:
        progress = contend(contest, arguments.grants)
        lost = contest.lost_updates
    for finding in contest.findings:
        print(f"fairness: {finding}", file=sys.stderr)
    total = sum(contest.grants.values())
    shares = ", ".join(f"{c.name} {100 * contest.grants[c.name] / total:.1f} %" for c in contest.contenders)
    print(
        f"fairness: {total} grants: {shares}; {lost} lost updates, {len(contest.findings)} findings, "
        f"longest wait {contest.longest_wait:.1f} s, {format_seconds(progress.elapsed_seconds)}"
    )
    if contest.findings:
        print(f"fairness: the leases and the logs are in {directory}", file=sys.stderr)
        return 1
    if arguments.directory is None:
        shutil.rmtree(directory)
    return 0
