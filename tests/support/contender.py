"""A process that takes turns with one lease and counts under it: ``python -m tests.support.contender``.

It is told one turn a line and answers one line. Long-lived, because a grant takes milliseconds and a process
much longer; one turn in so many is given to the real command line instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.counter import Counter
from tests.support.leases import CommandLine, Lease, NotGranted, Setup, lease_of

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 150.0

EXCLUSIVE, SHARED, DOWNGRADE, UPGRADE = "exclusive", "shared", "downgrade", "upgrade"


class Turn(NamedTuple):
    plan: str = EXCLUSIVE
    hold_seconds: float = 0.001
    rest_seconds: float = 0.0  # before asking
    patience_seconds: float = 60.0
    command_line: bool = False


class Outcome(NamedTuple):
    """What one turn came to."""

    exclusive: int  # grants
    shared: int
    handovers: int
    refusals: int  # of attempts before the grant, and of conversions
    waited_seconds: float
    wrong: list[str]
    error: str


def take_turn(lease: Lease, counter: Counter, turn: Turn) -> Outcome:
    """Acquire, count or watch, convert where the plan says so, and give back."""
    exclusive = shared = handovers = 0
    error = ""
    counter.wrong.clear()
    lease.refusals = 0
    time.sleep(turn.rest_seconds)
    started = time.monotonic()
    waited = turn.patience_seconds
    try:
        begins_shared = turn.plan in (SHARED, UPGRADE)
        lease.acquire(shared=begins_shared, patience_seconds=turn.patience_seconds)
        waited = time.monotonic() - started
        if begins_shared:
            shared += 1
            counter.watch(turn.hold_seconds)
        if not begins_shared or (turn.plan == UPGRADE and lease.to_exclusive()):
            exclusive += 1
            handovers += counter.increment(turn.hold_seconds)
        if turn.plan == DOWNGRADE:
            lease.to_shared()
            shared += 1
            counter.watch(turn.hold_seconds)
        counter.let_go()
        lease.release()
    except (NotGranted, OSError) as reason:  # OSError: a daemon that does not answer, or is gone
        error = f"{type(reason).__name__}: {reason}"
    return Outcome(exclusive, shared, handovers, lease.refusals, waited, [*counter.wrong], error)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    setup = Setup(*json.loads(sys.argv[1]))
    lease = lease_of(setup)
    counter = Counter(Path(setup.counter), kind=setup.kind, name=setup.name)
    _say("ready")
    for line in sys.stdin:
        turn = Turn(*json.loads(line))
        by = CommandLine(setup) if turn.command_line and setup.kind == "ours" else lease
        _say(json.dumps(take_turn(by, counter, turn)))


class Contender:
    """The other side: a contender as a child process. One turn at a time."""

    def __init__(self, setup: Setup, log: Path) -> None:
        self.setup, self.log = setup, log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VMLOCKCTL_")}
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.support.contender", json.dumps(setup)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._turns, self._answers = self._child.stdin, self._child.stdout
        assert self._answers.readline() == "ready\n", log.read_text()

    @property
    def name(self) -> str:
        return self.setup.name

    def fileno(self) -> int:
        """Readable when the answer to the last turn is there."""
        return self._answers.fileno()

    def begin(self, turn: Turn) -> None:
        self._turns.write(json.dumps(turn) + "\n")
        self._turns.flush()

    def outcome(self) -> Outcome:
        line = self._answers.readline()
        assert line, f"{self.name} died:\n{self.log.read_text()}"
        return Outcome(*json.loads(line))

    def close(self) -> None:
        self._child.kill()
        self._child.wait(10)
        self._turns.close()
        self._answers.close()


if __name__ == "__main__":
    main()
