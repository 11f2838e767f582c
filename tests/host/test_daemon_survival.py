"""A daemon that dies or stops: its standby or a restart goes on in its generation, or the VM is stopped.

io_timeout is 1: a renewal every 2 s, and the margin within which a restart may go on is 8 s.
"""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.disk import RecordWatch, lease_is_free, lease_owner, read_delta, watch_delta
from tests.support.programs import is_running, send_signal
from tests.support.qemu import Qemu, QemuStarter, drive, machine, make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import until, wait_for, wait_until

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")

MARGIN_SECONDS = 8
RENEWAL_SECONDS = 2


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


@pytest.fixture
def vm(host: VmHost, qemu: QemuStarter, disk: Path) -> Qemu:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    host.wait_for_pair()
    return vm


def assert_untouched(host: VmHost, vm: Qemu, lease_dir: Path, disk: Path) -> None:
    """The VM runs on, under the first generation, and its release still works."""
    assert vm.answers()
    assert host.generation == 1
    assert lease_owner(lease_dir, disk) == 1
    assert host.lease_status(disk)["owners"][0]["pid"] == vm.pid
    assert vm.quit() == 0
    wait_for("the release by the new daemon", lambda: lease_is_free(lease_dir, disk), within=2)


def is_daemon(host: VmHost, pid: int) -> bool:
    return host.daemon_pid == pid


def between_renewals(renewals: RecordWatch) -> None:
    """Return a second after a renewal: the next one has another timestamp, whenever it comes."""
    wait_until(renewals.wait_for_change(within=10).seen + 1)


def test_the_standby_goes_on_within_two_seconds(host: VmHost, vm: Qemu, lease_dir: Path, disk: Path) -> None:
    with watch_delta(lease_dir, 1) as renewals:
        for _ in range(3):
            killed_daemon, standby = host.wait_for_pair()
            between_renewals(renewals)
            killed = host.kill_daemon()
            renewed = renewals.wait_for_change(within=10)
            assert renewed.seen - killed <= 2
            assert renewed.leader.owner_generation == 1
            wait_for("the standby to be the daemon", partial(is_daemon, host, standby), within=5)
            assert host.daemon_pid != killed_daemon
            assert vm.running
        steady = renewals.sightings[1:]
        gaps = [later.seen - earlier.seen for earlier, later in zip(steady, steady[1:])]
        assert max(gaps) < MARGIN_SECONDS / 2, gaps
    assert_untouched(host, vm, lease_dir, disk)


@pytest.mark.long
def test_the_standby_goes_on_again_and_again(host: VmHost, vm: Qemu, lease_dir: Path, disk: Path) -> None:
    """Thirty crashes at thirty moments of the renewal cycle: never a gap that costs the VM."""
    with watch_delta(lease_dir, 1) as renewals:
        for number in range(30):
            host.wait_for_pair()
            wait_until(renewals.wait_for_change(within=10).seen + number * RENEWAL_SECONDS / 30)
            killed = host.kill_daemon()
            # One more second: a renewal in the second of the one before it changes nothing on the disk.
            wait_for("a renewal", partial(renewals.since, killed), within=2 + 1)
            assert vm.running
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert_untouched(host, vm, lease_dir, disk)


def test_a_killed_standby_is_replaced(host: VmHost, vm: Qemu, lease_dir: Path, disk: Path) -> None:
    daemon, standby = host.wait_for_pair()
    send_signal(standby, signal.SIGKILL)
    wait_for("another standby", lambda: host.standby_pid not in (0, standby), within=5)
    assert host.daemon_pid == daemon
    assert_untouched(host, vm, lease_dir, disk)


def test_a_release_is_not_forgotten_when_the_daemon_is_killed_with_the_vm(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    send_signal(host.daemon_pid, signal.SIGSTOP)
    vm.kill()
    host.kill_daemon()
    wait_for("the release by the standby", lambda: lease_is_free(lease_dir, disk), within=4)


@pytest.mark.parametrize("way", ["daemon", "add-host", "run"])
def test_a_restart_within_the_margin_goes_on(
    host: VmHost, vm: Qemu, qemu: QemuStarter, lease_dir: Path, disk: Path, tmp_path: Path, way: str
) -> None:
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        host.crash()
        crashed = renewals.last
        wait_until(crashed.seen + 4)
        assert renewals.last == crashed, "somebody renewed for a dead daemon"
        if way == "daemon":
            host.start("daemon", log="daemon.log")
        elif way == "add-host":
            host.succeed("add-host", lease_dir, "--host-id", "1", "--host-name", host.name)
        else:
            other = make_disk(tmp_path / "other.img")
            assert qemu(*machine(), *drive(other), host=host).wait_ready().quit() == 0
        wait_for("three renewals", lambda: len(renewals.since(crashed.seen + 4)) >= 3, within=15)
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert_untouched(host, vm, lease_dir, disk)


def test_a_restart_after_the_margin_stops_the_vm_before_it_joins(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        host.crash()
        crashed = renewals.last
        wait_until(crashed.seen + MARGIN_SECONDS + 2)
        assert vm.running, "nobody was left to stop it"
        host.start("daemon", log="daemon.log")
        assert_gone_before_the_next_generation(vm, lease_dir)
    assert is_running(host.daemon_pid)
    wait_for(
        "the new generation to be live", lambda: host.status()["this_host"]["state"] == "live", within=15
    )
    # The lease of the older generation is nobody's now: this host takes it at once.
    result = host.call("run", "--wait=5", "--disk", disk, "--", "true")
    assert result.returncode == 0, result


def assert_gone_before_the_next_generation(vm: Qemu, lease_dir: Path) -> None:
    """Look at the disk first and at the VM second: no order of events makes a mistake pass."""
    for _ in until(time.monotonic() + 40):
        generation = read_delta(lease_dir, 1).owner_generation
        if generation > 1:
            assert not is_running(vm.pid), "the host id was joined again while the VM still ran"
            assert generation == 2
            return
    raise AssertionError("the host id was never joined again")


def test_a_vm_that_ignores_sigterm_is_gone_before_the_next_generation(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    """A stopped process does not die of SIGTERM: it takes SIGKILL, and the join comes after that."""
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        host.crash()
        send_signal(vm.pid, signal.SIGSTOP)
        wait_until(renewals.last.seen + MARGIN_SECONDS + 2)
        host.start("daemon", log="daemon.log")
        assert_gone_before_the_next_generation(vm, lease_dir)
    assert vm.wait(within=1) == -signal.SIGKILL


def test_a_daemon_that_is_stopped_for_a_moment_goes_on(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        daemon = host.daemon_pid
        send_signal(daemon, signal.SIGSTOP)
        stopped = renewals.last.seen
        wait_until(stopped + 4)
        send_signal(daemon, signal.SIGCONT)
        wait_for("two renewals", lambda: len(renewals.since(stopped + 4)) >= 2, within=10)
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert_untouched(host, vm, lease_dir, disk)


def test_a_daemon_that_was_stopped_too_long_stops_the_vm_before_it_renews(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    """The host lease ran out behind its back: no renewal and no new generation while the VM runs."""
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        daemon, standby = host.wait_for_pair()
        for pid in (daemon, standby):
            send_signal(pid, signal.SIGSTOP)
        before = renewals.last
        wait_until(before.seen + MARGIN_SECONDS + 2)
        assert renewals.last == before
        for pid in (daemon, standby):
            send_signal(pid, signal.SIGCONT)
        for _ in until(time.monotonic() + 20):
            changed = read_delta(lease_dir, 1) != before.leader
            if changed:
                assert not is_running(vm.pid), "the record was written while the VM still ran"
                break
            if not vm.running:
                break
        vm.wait(within=10)
    assert not lease_is_taken_over(lease_dir, disk)


def test_a_daemon_that_hangs_for_good_is_replaced(
    host: VmHost, vm: Qemu, lease_dir: Path, disk: Path
) -> None:
    """A standby behind a stopped daemon: it takes over in time, or the VM is stopped and then it joins."""
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        daemon, standby = host.wait_for_pair()
        send_signal(daemon, signal.SIGSTOP)
        stopped, before = time.monotonic(), renewals.last
        for _ in until(stopped + 40):
            late = [seen for seen in renewals.since(stopped + 1) if seen.leader.owner_generation == 1]
            if late or not vm.running:
                break
        wait_for("the standby to be the daemon", partial(is_daemon, host, standby), within=10)
        assert not is_running(daemon)
        if vm.running:
            assert late[0].seen - before.seen < MARGIN_SECONDS
            assert_untouched(host, vm, lease_dir, disk)
        else:
            assert_gone_before_the_next_generation(vm, lease_dir)


def lease_is_taken_over(lease_dir: Path, disk: Path) -> bool:
    return lease_owner(lease_dir, disk) not in (0, 1)


def test_two_daemons_of_one_run_directory_do_not_both_renew(host: VmHost, vm: Qemu, lease_dir: Path) -> None:
    daemon, _ = host.wait_for_pair()
    second = host.start("daemon", log="second.log")
    with watch_delta(lease_dir, 1) as renewals:
        start = time.monotonic()
        wait_until(start + 3 * RENEWAL_SECONDS + 1)
        assert len(renewals.since(start)) <= 4
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert host.daemon_pid == daemon
    assert vm.answers()
    second.kill()
