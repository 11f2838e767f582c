"""The only home of ``time``.

Two clocks, for two purposes (faults.md finding 2). Timestamps on disk and everything that we
conclude about *other* hosts come from CLOCK_MONOTONIC, as sanlock's do: it stops while this host is
suspended, so we never count time in which we were not watching. The age of *our own* host lease is
CLOCK_BOOTTIME: other hosts counted the time that we slept.
"""

from __future__ import annotations

import time

_RFC3339 = "%Y-%m-%dT%H:%M:%SZ"


def monotonic_seconds() -> int:
    """Whole CLOCK_MONOTONIC seconds as they are written to disk; never 0, which means free there."""
    return max(1, int(time.clock_gettime(time.CLOCK_MONOTONIC)))


def monotonic() -> float:
    """Seconds for judging what we observe of other hosts, and for I/O deadlines."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since boot, suspended time included: the age of our own leases."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since the epoch; for people, never for a decision."""
    return time.time()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def rfc3339(epoch_seconds: float) -> str:
    """``2026-11-23T20:09:00Z``."""
    return time.strftime(_RFC3339, time.gmtime(epoch_seconds))


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch, of a time as ``rfc3339`` writes it. Raises ``ValueError``."""
    import calendar

    return float(calendar.timegm(time.strptime(text, _RFC3339)))
