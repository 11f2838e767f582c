"""A fuzz case: bytes over a named scene, for one target. It says everything that a replay needs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from vmlockctl.errors import VmlockctlError

SEEDS = Path(__file__).resolve().parents[2] / "seeds" / "fuzz"

# A case may burn this much CPU, and as much again for every minute that its procedure waits.
CPU_LIMIT_SECONDS = 0.05


class Patch(NamedTuple):
    """Bytes that stand in a file of the scene instead of what the scene has there."""

    path: str
    offset: int
    data: bytes


class Case(NamedTuple):
    target: str
    scene: str
    action: str  # what is done with the bytes; "" where the target does one thing only
    patches: tuple[Patch, ...]
    size: Optional[int] = None  # of the first patched file, which was cut short

    def to_text(self) -> str:
        patches = [[patch.path, patch.offset, patch.data.hex()] for patch in self.patches]
        return json.dumps({**self._asdict(), "patches": patches}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Case:
        record: dict[str, Any] = json.loads(text)
        patches = tuple(Patch(path, at, bytes.fromhex(data)) for path, at, data in record["patches"])
        return cls(**{**record, "patches": patches})


class Found(AssertionError):
    """A case that a reader did not survive, or after which something is not as it must be."""


class Target(NamedTuple):
    """A reader of bytes from the disk. ``share`` is its part of all cases, relative to the others'."""

    name: str
    share: int
    batch: int  # cases between two looks at the CPU clock: together far below the limit
    cases: Callable[[random.Random, int], Iterator[Any]]  # made as cheaply as they can be run
    run: Callable[[Any], float]  # returns the seconds that were waited; raises what is found
    describe: Callable[[Any], Case]
    revive: Callable[[Case], Any]  # the inverse of ``describe``


class Checking:
    """The CPU seconds that the checks of what is printed have taken: they are no reader's."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._begun = time.process_time()

    def __exit__(self, *exc_info: object) -> None:
        Checking.seconds += time.process_time() - self._begun


def check_error(error: VmlockctlError) -> None:
    """An error that a reader raises: one line that a terminal can be given."""
    if not (error.message and error.message.isprintable()):
        raise Found(f"{type(error).__name__} has a message that is not safe to print: {error.message!r}")


def check_text(text: str) -> None:
    """Rendered text: lines, and nothing in them that a terminal might obey."""
    if not text.replace("\n", "").isprintable():
        line = next(line for line in text.split("\n") if not line.isprintable())
        raise Found(f"what is printed is not safe: {line!r}")
