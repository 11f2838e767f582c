"""A host of ours behind a faulty mount, and another view of its leases that no fault reaches.

io_timeout is 1: a renewal every 2 s, and the host lease runs out 8 s after the last good one began.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.disk import LOCKSPACE_NAME, RecordWatch, lease_is_free, watch_delta
from tests.support.fusefs import FaultyMount
from tests.support.programs import Child
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

CYCLE_SECONDS = 2
EXPIRY_SECONDS = 8
# The cycle in which it shows, the I/O of that cycle, and the end of a process on a busy machine.
ONE_CYCLE = CYCLE_SECONDS + 3.0
# SIGTERM comes at the expiry; a process that heeds it is gone well before the grace time ends.
IN_TIME = EXPIRY_SECONDS + 3.0

LOCKSPACE_ONLY = f"/leases/{LOCKSPACE_NAME}"


class Stage(NamedTuple):
    """Host id 1 works on ``seen``; ``behind`` is the same directory past the faults."""

    mount: FaultyMount
    host: VmHost
    seen: Path
    behind: Path

    def claim(self, holder: Child, disk: Path) -> None:
        result = self.host.acquire(holder.pid, disk)
        assert result.returncode == 0, result


def make_stage(mount: FaultyMount, host: VmHost) -> Stage:
    stage = Stage(mount, host, mount.path / "leases", mount.backing / "leases")
    host.create(stage.seen)
    return stage


def gone_after(child: Child, moment: float, *, within: float) -> float:
    """Wait for the end of a process; return the seconds from ``moment`` to the time it was reaped."""
    child.wait(within=within + 5)
    assert child.ended_at is not None
    seconds = child.ended_at - moment
    assert seconds <= within, f"gone after {seconds:.1f} s"
    return seconds


@contextmanager
def goes_on(lease_dir: Path, holder: Child) -> Iterator[RecordWatch]:
    """Whatever happens in the block, the holder runs and two more renewals of generation 1 come."""
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        yield renewals
        after = renewals.last
        wait_for("two renewals", lambda: len(renewals.since(after.seen)) >= 2, within=15)
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert holder.running


def assert_released(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    released = host.release(holder.pid, disk)
    assert released.returncode == 0, released
    assert lease_is_free(lease_dir, disk)
