"""Clocks that jump, run apart or stop (faults.md 2b and finding 2), on real daemons.

``time`` is used in ``vmlockctl/clock.py`` only (``tests/test_architecture.py``), so a daemon whose functions
there are shifted lives on another clock; the amount is read from a file, and can change as it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.host.faults.stage import CYCLE_SECONDS, EXPIRY_SECONDS, ONE_CYCLE, assert_released, goes_on
from tests.support.disk import RecordWatch, lease_owner, read_delta, watch_delta
from tests.support.fixtures import MakeHost
from tests.support.programs import Child, find_program, is_running
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for, wait_until

pytestmark = pytest.mark.long

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a time namespace for the boot time needs root")

YEAR = 365 * 86400

SHIFTED = """
import sys
from vmlockctl import clock
path, names = sys.argv.pop(1), sys.argv.pop(1).split(",")

def shifted(real):
    return lambda: real() + float(open(path).read())

for name in names:
    setattr(clock, name, shifted(getattr(clock, name)))
from vmlockctl.cli.main import main
main()
"""


class Shift:
    """How far the clocks of the daemon are off, in seconds."""

    def __init__(self, path: Path, *clocks: str) -> None:
        self._path = path
        self.by(0)
        self.command = [sys.executable, "-c", SHIFTED, str(path), ",".join(clocks)]

    def by(self, seconds: float) -> None:
        replacement = self._path.with_suffix(".new")
        replacement.write_text(str(seconds))
        replacement.replace(self._path)


def shifted_daemon(host: VmHost, shift: Shift) -> None:
    """Replace the daemon of a host within the margin by one with other clocks."""
    host.crash()
    daemon = host.start("daemon", command=shift.command, log="daemon.log")
    wait_for("the daemon", lambda: host.daemon_pid == daemon.pid, within=8)


def after_a_cycle(renewals: RecordWatch) -> None:
    wait_until(renewals.last.seen + CYCLE_SECONDS + 0.5)


def test_a_jump_of_the_wall_clock_has_no_effect_at_all(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """A summer time, a step of NTP, years back and forth: the same generation, and the same VM."""
    shift = Shift(tmp_path / "shift", "wall")
    shifted_daemon(host, shift)
    with goes_on(lease_dir, holder) as renewals:
        assert host.acquire(holder.pid, disk).returncode == 0
        for seconds in (3600, -3600, 0.7, 10 * YEAR, -30 * YEAR, 0):
            shift.by(seconds)
            after_a_cycle(renewals)
        gaps = [
            later.seen - earlier.seen for earlier, later in zip(renewals.sightings, renewals.sightings[1:])
        ]
        assert max(gaps) < EXPIRY_SECONDS / 2, gaps
    assert_released(host, holder, lease_dir, disk)


def test_a_jump_of_the_wall_clock_of_commands_has_no_effect_either(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    shift = Shift(tmp_path / "shift", "wall")
    for seconds in (-30 * YEAR, 10 * YEAR):
        shift.by(seconds)
        command = host.start("acquire", "--pid", str(holder.pid), disk, command=shift.command)
        assert command.wait(within=20) == 0
        command = host.start("release", "--pid", str(holder.pid), disk, command=shift.command)
        assert command.wait(within=20) == 0
    assert host.generation == 1


def test_a_sleep_within_the_margin_costs_nothing(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """Suspended for 3 s: CLOCK_BOOTTIME jumps, CLOCK_MONOTONIC does not."""
    shift = Shift(tmp_path / "shift", "boottime")
    shifted_daemon(host, shift)
    assert host.acquire(holder.pid, disk).returncode == 0
    with goes_on(lease_dir, holder) as renewals:
        renewals.wait_for_change(within=10)
        shift.by(3)


def test_a_sleep_beyond_the_margin_stops_the_vm_before_anything_is_written(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """Suspended for 100 s, as CLOCK_BOOTTIME tells on waking: others may have taken over meanwhile."""
    shift = Shift(tmp_path / "shift", "boottime")
    shifted_daemon(host, shift)
    assert host.acquire(holder.pid, disk).returncode == 0
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        shift.by(100)
        before = read_delta(lease_dir, 1)
        wait_for("the end of the process", lambda: not is_running(holder.pid), within=ONE_CYCLE)
        assert renewals.last.leader == before
        renewals.wait_for("the next generation", lambda record: record.owner_generation == 2, within=30)


def test_a_clock_that_is_a_percent_fast_or_slow_keeps_its_margins(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """All clocks of the daemon drift by 1 % of what passes, which no oscillator does."""
    shift = Shift(tmp_path / "shift", "boottime", "monotonic")
    shifted_daemon(host, shift)
    assert host.acquire(holder.pid, disk).returncode == 0
    with goes_on(lease_dir, holder) as renewals:
        start = renewals.last.seen
        for percent in (0.01, -0.01):
            for _ in range(2):
                after_a_cycle(renewals)
                shift.by((renewals.last.seen - start) * percent)
        gaps = [
            later.seen - earlier.seen for earlier, later in zip(renewals.sightings, renewals.sightings[1:])
        ]
        assert max(gaps) < EXPIRY_SECONDS / 2, gaps


@root_only
def test_hosts_whose_clocks_are_days_apart_agree(
    host: VmHost, make_host: MakeHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """In time namespaces of their own: timestamps on the disk are compared for change, never subtracted."""
    there = make_host("hostB")
    there.lease_dir, there.host_id = lease_dir, 2
    apart = [find_program("unshare"), "--time", "--monotonic", "1000000", "--boottime", "1000000"]
    joined = there.call(
        "add-host", lease_dir, "--host-id", "2", "--host-name", "hostB", "--io-timeout", "1", prefix=apart
    )
    assert joined.returncode == 0, joined
    assert read_delta(lease_dir, 2).timestamp > read_delta(lease_dir, 1).timestamp + 900000
    wait_for("A to see B live", lambda: host.seen_state(2) == "live", within=15)
    own = there.start("run", "--disk", str(disk), "--", "sleep", "infinity", command=[*apart, *OUR_COMMAND])
    wait_for("B's lease", lambda: lease_owner(lease_dir, disk) == 2, within=15)
    refused = host.acquire(holder.pid, disk)
    assert refused.returncode == 75, refused
    own.kill()
    granted = host.acquire(holder.pid, disk, options=["--wait=10"])
    assert granted.returncode == 0, granted
    assert (lease_owner(lease_dir, disk), there.generation) == (1, 1)
