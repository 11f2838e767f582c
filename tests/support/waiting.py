"""Waiting for a condition with a deadline: no test sleeps for a length of time it hopes is enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Optional, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01


def wait_for(
    what: str, condition: Callable[[], Optional[T]], *, within: float, every_seconds: float = POLL_SECONDS
) -> T:
    """Return the first true value of ``condition``; fail with ``what`` when there is none in time."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {within:g} s")
        time.sleep(every_seconds)


def wait_until(moment: float) -> None:
    """Sleep until a moment of ``time.monotonic``: for tests whose subject is the passing of time."""
    remaining = moment - time.monotonic()
    if remaining > 0:
        time.sleep(remaining)


def until(moment: float, *, every_seconds: float = POLL_SECONDS) -> Iterator[float]:
    """Yield the time again and again until ``moment``: for a condition that must hold all along."""
    while (now := time.monotonic()) < moment:
        yield now
        time.sleep(every_seconds)
