"""Judging other hosts, only from changes that we saw on our own clock (section 3.5).

Another host's timestamp is never compared with our clock, and "greater" is never asked of it, only
"different". Each host keeps a table with one row per host id; a row is updated after each of our
renewal reads.
"""

from __future__ import annotations

from vmlockctl.lease.timeouts import host_dead_seconds, host_fail_seconds, sane_io_timeout
from vmlockctl.ondisk.leader import Leader
from vmlockctl.records import NamedTuple

FREE = "free"
UNKNOWN = "unknown"
LIVE = "live"
FAIL = "fail"
DEAD = "dead"


class Instance(NamedTuple):
    """One life of a host in a lockspace: the id that it acquired, and the generation that this gave it."""

    host_id: int
    generation: int


class Observation(NamedTuple):
    """What we have seen of one host id. Times are our own CLOCK_MONOTONIC, in seconds; 0 = never."""

    owner_id: int = 0
    owner_generation: int = 0
    timestamp: int = 0
    host_name: str = ""
    io_timeout: int = 0
    first_check: float = 0
    last_check: float = 0
    last_live: float = 0

    @property
    def last_change(self) -> float:
        return self.last_live or self.first_check


NEVER_OBSERVED = Observation()


def observe(row: Observation, record: Leader, now: float) -> Observation:
    """The row after one more look at the host's delta record at ``now``."""
    key = (record.owner_id, record.owner_generation, record.timestamp)
    first_check = row.first_check or now
    if row.first_check and key == row[:3]:
        return row._replace(last_check=now)
    if not row.first_check and key == (0, 0, 0):
        return Observation(first_check=first_check, last_check=now)
    return Observation(
        *key,
        host_name=record.resource,
        io_timeout=record.io_timeout,
        first_check=first_check,
        last_check=now,
        last_live=now,
    )


def host_state(row: Observation, now: float, *, own_io_timeout: int, is_ours: bool = False) -> str:
    """free, unknown, live, fail or dead, in sanlock's order of tests."""
    if row.timestamp == 0:
        return FREE
    if is_ours:
        return LIVE
    io_timeout = sane_io_timeout(row.io_timeout, own_io_timeout)
    unchanged_seconds = now - row.last_change
    if unchanged_seconds <= host_fail_seconds(io_timeout):
        return UNKNOWN if row.first_check == row.last_live else LIVE
    if unchanged_seconds > host_dead_seconds(io_timeout):
        return DEAD
    return FAIL


def dead_in_seconds(row: Observation, now: float, *, own_io_timeout: int) -> float:
    """Seconds until the host may be taken for dead if it shows no sign of life; 0 when it may now."""
    io_timeout = sane_io_timeout(row.io_timeout, own_io_timeout)
    return max(0.0, host_dead_seconds(io_timeout) - (now - row.last_change))


def gone_after_seconds(io_timeout: int, *, vouched: bool = False) -> int:
    """The silence after which an owner is certainly gone; *its* io_timeout.

    ``vouched``: a person knows that this very instance of it is dead, and stands in for the watchdog that the
    last 60 seconds wait for. Nobody stands in for the first part: an owner that renewed within it is alive.
    """
    return host_fail_seconds(io_timeout) if vouched else host_dead_seconds(io_timeout)


def shared_holder_is_alive(
    row: Observation, generation: int, now: float, *, own_io_timeout: int, vouched: bool = False
) -> bool:
    """Whether a host that marks a lease shared under ``generation`` must be respected (section 4.6).

    Alive by default: without data, or with doubt, it is. Only time in which somebody looked counts:
    from a table that nobody has updated for a while nothing more can be concluded than when it was. And a row
    of an *earlier* generation says nothing of this one: that host left, or died, and has joined again since
    we looked. (The spec's rule, and sanlock, take its "free" for this generation's.)
    """
    if row.owner_generation < generation:
        return True
    if row.timestamp == 0 or row.owner_generation > generation:
        return False
    io_timeout = sane_io_timeout(row.io_timeout, own_io_timeout)
    return min(now, row.last_check) - row.last_change <= gone_after_seconds(io_timeout, vouched=vouched)
