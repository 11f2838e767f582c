"""Hosts, daemons and VMs that stand still, and daemons that the kernel takes away (faults.md 2b, finding 1).

On waking, a host looks before it writes: what ran out while it slept is lost, its VMs are stopped first,
and a lease that somebody else took meanwhile is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.faults.stage import CYCLE_SECONDS, EXPIRY_SECONDS, ONE_CYCLE, goes_on, gone_after
from tests.support import cgroups
from tests.support.disk import lease_is_free, lease_leader, lease_owner, read_delta, watch_delta, watch_lease
from tests.support.programs import Child, is_running, send_signal
from tests.support.qemu import make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import until, wait_for, wait_until

pytestmark = pytest.mark.long

HOST_DEAD_SECONDS = 8 * 1 + 60

# Time and memory, taken and given back all the time.
BURNER = "while True: bytearray(8 << 20)[::4096]; sum(range(100000))"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")


def claim(host: VmHost, holder: Child, disk: Path) -> None:
    result = host.acquire(holder.pid, disk)
    assert result.returncode == 0, result


def test_a_vm_that_stands_still_keeps_its_lease(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """SIGSTOP of the VM alone: the daemon renews, and the lease is released when it ends."""
    claim(host, holder, disk)
    with goes_on(lease_dir, holder):
        send_signal(holder.pid, signal.SIGSTOP)
    assert lease_owner(lease_dir, disk) == 1
    holder.kill()
    wait_for("the release", lambda: lease_is_free(lease_dir, disk), within=5)


@contextmanager
def paused(host: VmHost, holder: Child) -> Iterator[None]:
    """Everything of a host stands still: its daemon, the standby, and the VM."""
    everybody = (*host.wait_for_pair(), holder.pid)
    for pid in everybody:
        send_signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in everybody:
            send_signal(pid, signal.SIGCONT)


def test_a_host_that_slept_too_long_stops_its_vm_before_it_writes(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """All three are woken together: the record changes only when the VM is gone."""
    claim(host, holder, disk)
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        with paused(host, holder):
            before = renewals.last
            wait_until(before.seen + EXPIRY_SECONDS + 2)
        assert_gone_before_the_record_changes(holder, lease_dir)


def assert_gone_before_the_record_changes(holder: Child, lease_dir: Path) -> None:
    """Look at the disk first and at the process second: no order of events makes a mistake pass."""
    before = read_delta(lease_dir, 1)
    for _ in until(time.monotonic() + 30):
        record = read_delta(lease_dir, 1)
        if record != before:
            assert not is_running(holder.pid), "the record was written while the process still ran"
            assert record.owner_generation == 2
            return
    raise AssertionError("the host id was never joined again")


@pytest.mark.timeout(240)
def test_a_host_that_was_taken_over_in_its_sleep_stops_its_vm_within_a_cycle(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Finding 1: sanlock goes on for ever here. The overlap is one cycle; only a watchdog can take that away.

    What the new owner has is left alone, by the release too.
    """
    here, there = two_hosts
    claim(here, holder, disk)
    wait_for("B to see A live", lambda: there.seen_state(1) == "live", within=15)
    new_owner = Child(["sleep", "infinity"])
    try:
        with watch_lease(lease_dir, disk) as leader, paused(here, holder):
            waiting = there.start("acquire", "--pid", str(new_owner.pid), "--wait=120", disk)
            taken = leader.wait_for("the takeover", lambda record: record.owner_id == 2, within=100)
            assert waiting.wait(within=10) == 0
            woken = time.monotonic()
        gone_after(holder, woken, within=ONE_CYCLE)
        for _ in until(time.monotonic() + 2 * CYCLE_SECONDS):
            assert lease_leader(lease_dir, disk) == taken.leader
        assert new_owner.running
    finally:
        new_owner.kill()


# -- the freezer --------------------------------------------------------------------------------------


@root_only
def test_a_frozen_host_stops_its_vm_before_it_writes(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Cgroup freezer: no signal reaches anybody meanwhile, and all are thawed at once."""
    claim(host, holder, disk)
    everybody = (*host.wait_for_pair(), holder.pid)
    with watch_delta(lease_dir, 1) as renewals, cgroups.freezer(f"vmlockctl-{holder.pid}", everybody) as ice:
        renewals.wait_for_change(within=10)
        ice.freeze()
        before = renewals.last
        wait_until(before.seen + EXPIRY_SECONDS + 2)
        ice.thaw()
        assert_gone_before_the_record_changes(holder, lease_dir)


@root_only
def test_a_frozen_vm_of_a_lost_host_lease_is_waited_for(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """SIGKILL waits for the thaw: until then the process counts as running, and the host id is not joined."""
    claim(host, holder, disk)
    host.wait_for_pair()
    with cgroups.freezer(f"vmlockctl-{holder.pid}", [holder.pid]) as ice:
        ice.freeze()
        with watch_delta(lease_dir, 1) as renewals:
            host.crash()
            wait_until(renewals.last.seen + EXPIRY_SECONDS + 1)
            lost = renewals.last
            host.start("daemon", log="daemon.log")
            for _ in until(time.monotonic() + EXPIRY_SECONDS):
                assert renewals.last == lost
            assert holder.running
            ice.thaw()
            renewals.wait_for("the next generation", lambda record: record.owner_generation == 2, within=30)
            assert not holder.running


@root_only
def test_a_frozen_daemon_does_not_keep_its_standby_from_stopping_the_vm(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Its SIGKILL waits for the thaw, and so do its locks; it will never run an instruction of ours again."""
    claim(host, holder, disk)
    daemon, standby = host.wait_for_pair()
    with cgroups.freezer(f"vmlockctl-{holder.pid}", [daemon]) as ice, watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        ice.freeze()
        before = renewals.last
        gone_after(holder, before.seen, within=HOST_DEAD_SECONDS - 30)
        assert renewals.last == before, "the lock of the host lease is the frozen daemon's"
        ice.thaw()
        renewals.wait_for("the next generation", lambda record: record.owner_generation == 2, within=30)
    assert host.daemon_pid == standby


# -- the daemon is taken away -------------------------------------------------------------------------


@root_only
def test_a_daemon_that_is_killed_for_want_of_memory_costs_no_vm(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    daemon, standby = host.wait_for_pair()
    with goes_on(lease_dir, holder):
        with cgroups.no_more_memory(f"vmlockctl-{holder.pid}", [daemon]):
            wait_for("the OOM kill of the daemon", lambda: not is_running(daemon), within=20)
        wait_for("the standby to be the daemon", lambda: host.daemon_pid == standby, within=5)


def test_daemon_and_standby_that_nobody_restarts_are_seen_from_every_host(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Level L1 has nobody left to stop the VM: its own host and the others say so, and none of them acts."""
    here, there = two_hosts
    claim(here, holder, disk)
    wait_for("B to see A live", lambda: there.seen_state(1) == "live", within=15)
    here.crash()
    wait_for("B to see A fail", lambda: there.seen_state(1) == "fail", within=30, every_seconds=0.2)
    this_host = here.status()["this_host"]
    assert this_host["daemon_pid"] is None
    assert this_host["state"] != "live"
    assert holder.running
    with_other = Child(["sleep", "infinity"])
    try:
        refused = there.acquire(with_other.pid, disk)
        assert refused.returncode == 75, refused
    finally:
        with_other.kill()
    here.call("run", "--disk", make_disk(disk.with_name("b.img")), "--", "true")
    assert_gone_before_the_record_changes(holder, lease_dir)


def test_renewals_are_in_time_on_a_machine_that_has_no_time(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Swapped, collected or not scheduled: whatever delays a renewal, it is measured on the disk."""
    claim(host, holder, disk)
    burners = [Child([sys.executable, "-c", BURNER]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        with watch_delta(lease_dir, 1) as renewals:
            wait_for("eight renewals", lambda: len(renewals.sightings) > 8, within=60)
            steady = renewals.sightings[1:]
            gaps = [later.seen - earlier.seen for earlier, later in zip(steady, steady[1:])]
        assert max(gaps) < EXPIRY_SECONDS - CYCLE_SECONDS, gaps
    finally:
        for burner in burners:
            burner.kill()
    assert holder.running
    assert host.generation == 1
