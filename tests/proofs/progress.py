"""What a long proof says while it runs: how far it is, when it will end, and the seed to run it again."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Progress:
    """A line on stderr every few seconds; the figures of the end belong on stdout."""

    def __init__(self, name: str, total: float, *, seed: int | None = None, out: TextIO = sys.stderr) -> None:
        self.name = name
        self.total = total
        self.done = 0.0
        self.seed = seed
        self.started = time.monotonic()
        self._out = out
        self._told = self.started

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, amount: float, **figures: object) -> None:
        """Count ``amount`` as done; ``figures`` stand behind the ETA."""
        self.done += amount
        now = time.monotonic()
        if now - self._told < (0.5 if self._out.isatty() else 10):
            return
        self._told = now
        left = (self.total - self.done) * self.elapsed_seconds / self.done if self.done else 0.0
        words = [
            f"{self.name}: {100 * self.done / self.total:.1f} %",
            f"{format_seconds(self.elapsed_seconds)} run",
            f"ETA {format_seconds(max(0.0, left))}",
            *([] if self.seed is None else [f"seed {self.seed}"]),
            *(f"{key} {value}" for key, value in figures.items()),
        ]
        end = "\r" if self._out.isatty() else "\n"
        print(", ".join(words), end=end, file=self._out, flush=True)
