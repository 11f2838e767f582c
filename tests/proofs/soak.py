"""Hand-overs of one lease between real sanlock daemons and hosts of ours, with an unprotected counter.

Two sanlock daemons (host ids 1 and 2) and two of our hosts (3 and 4) own one resource in turn
(``alternate``), ask for it all at once (``contend``), and share and convert it (``shared``). A hand-over is
counted when an exclusive owner finds that the last one was of the other kind. What must come out: every
exclusive grant is in the counter, and no holder saw the count change (faults.md G7).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Optional

from tests.proofs.progress import Progress, format_seconds
from tests.support.contender import DOWNGRADE, EXCLUSIVE, SHARED, UPGRADE, Contender, Outcome, Turn
from tests.support.contest import Contest

MODES = ("alternate", "contend", "shared")
# Of each hundred hand-overs of the mixed mode. Contention is slow: whoever loses a ballot backs off for up to
# a second.
BLOCK = {"alternate": 80, "contend": 10, "shared": 10}

PLANS = {
    "alternate": ([EXCLUSIVE, DOWNGRADE, UPGRADE], [84, 8, 8]),
    "contend": ([EXCLUSIVE], [1]),
    "shared": ([EXCLUSIVE, SHARED, DOWNGRADE, UPGRADE], [30, 40, 15, 15]),
}
HOLD_SECONDS = {"alternate": 0.0, "contend": 0.002, "shared": 0.01}
REST_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--handovers", type=int, default=10_000)
    parser.add_argument("--mode", choices=[*MODES, "mixed"], default="mixed")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--command-line", type=int, default=2, metavar="PERCENT", help="of our turns")
    parser.add_argument("--directory", type=Path, default=None, help="a new one on the storage to soak")


class Soak:
    """The turns of one soak; ``contest`` counts and judges."""

    def __init__(self, contest: Contest, progress: Progress, *, seed: int, command_line: int) -> None:
        self._contest, self._progress = contest, progress
        self._random = random.Random(seed)
        self._command_line = command_line
        kinds = ("sanlock", "ours")
        self._by_kind = [[c for c in contest.contenders if c.setup.kind == kind] for kind in kinds]

    def run(self, mode: str, handovers: int) -> None:
        """So many hand-overs more, or fewer where something was found."""
        target = self._contest.handovers + handovers
        if mode == "mixed":
            while self._goes_on(target):
                for part, share in BLOCK.items():
                    left = target - self._contest.handovers
                    self.run(part, min(-(-share * min(left, 100) // 100), left))
        elif mode == "alternate":
            self._alternate(target)
        else:
            self._together(mode, target)

    def _goes_on(self, target: int) -> bool:
        return self._contest.handovers < target and not self._contest.findings

    def _alternate(self, target: int) -> None:
        """One after the other, so that nobody may ever be refused."""
        turn = 0
        while self._goes_on(target):
            who = self._random.choice(self._by_kind[turn % 2])
            outcome = self._contest.one(who, self._next("alternate", who))
            if outcome.refusals:
                self._contest.findings.append(f"{who.name}: refused {outcome.refusals} times what was free")
            self._count(outcome)
            turn += 1

    def _together(self, mode: str, target: int) -> None:
        def next_turn(who: Contender) -> Optional[Turn]:
            return self._next(mode, who) if self._goes_on(target) else None

        self._contest.all_at_once(next_turn, self._count)

    def _next(self, mode: str, who: Contender) -> Turn:
        plans, weights = PLANS[mode]
        return Turn(
            plan=self._random.choices(plans, weights)[0],
            hold_seconds=self._random.uniform(0, 2 * HOLD_SECONDS[mode]),
            rest_seconds=0.0 if mode == "alternate" else self._random.uniform(0, REST_SECONDS),
            command_line=who.setup.kind == "ours" and self._random.random() * 100 < self._command_line,
        )

    def _count(self, outcome: Outcome) -> None:
        contest = self._contest
        self._progress.add(
            outcome.handovers,
            grants=sum(contest.grants.values()),
            shared=sum(contest.shared.values()),
            refusals=contest.refusals,
            found=len(contest.findings),
        )


def main(arguments: argparse.Namespace) -> int:
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="vmlockctl-soak-"))
    with Contest(directory, sanlock=2, ours=2) as contest:
        progress = Progress("soak", arguments.handovers, seed=seed)
        soak = Soak(contest, progress, seed=seed, command_line=arguments.command_line)
        soak.run(arguments.mode, arguments.handovers)
        contest.check()
    for finding in contest.findings:
        print(f"soak: seed {seed}: {finding}", file=sys.stderr)
    grants = ", ".join(f"{c.name} {contest.grants[c.name]}" for c in contest.contenders)
    print(
        f"soak: {contest.handovers} hand-overs, exclusive grants: {grants}; "
        f"{sum(contest.shared.values())} shared grants, {contest.lost_updates} lost updates, "
        f"{len(contest.findings)} findings, longest wait {contest.longest_wait:.1f} s, "
        f"mode {arguments.mode}, {format_seconds(progress.elapsed_seconds)}"
    )
    if contest.findings:
        print(f"soak: the leases and the logs are in {directory}", file=sys.stderr)
        return 1
    if arguments.directory is None:
        shutil.rmtree(directory)
    return 0
