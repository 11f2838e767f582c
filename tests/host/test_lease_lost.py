"""A lease that is taken away: the VM that relied on it is gone before anybody else may rely on it.

io_timeout is 1: a renewal cycle is 2 s, the host lease runs out 8 s after the last good renewal, and
others may take over after 68 s.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.disk import (
    LOCKSPACE_NAME,
    lease_leader,
    lease_owner,
    lockspace_path,
    read_delta,
    resource_name,
    resource_path,
    watch_delta,
    watch_lease,
    write_leader,
)
from tests.support.fusefs import FaultyMount
from tests.support.programs import standing_process
from tests.support.qemu import Qemu, QemuStarter, drive, machine, make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import until, wait_for, wait_until

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")

CYCLE_SECONDS = 2
# One renewal cycle, the I/O of that cycle, and the end of a QEMU on a busy machine.
WITHIN_ONE_CYCLE = CYCLE_SECONDS + 1.5
EXPIRY_SECONDS = 8
HOST_DEAD_SECONDS = 8 + 60
OTHER_HOST = b"intruder".ljust(48, b"\0")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def gone_after(vm: Qemu, moment: float, *, within: float) -> float:
    """Wait for the end of a VM; return the seconds from ``moment`` to the time it was reaped."""
    vm.wait(within=within + 5)
    assert vm.ended_at is not None
    seconds = vm.ended_at - moment
    assert seconds <= within, f"gone after {seconds:.1f} s"
    return seconds


# -- somebody writes where nobody but us may ------------------------------------------------------


def test_a_host_lease_that_is_overwritten_kills_the_vm(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    with watch_delta(lease_dir, 1) as record:
        # Right after a renewal, so that the one under way does not write over the intruder at once.
        ours = record.wait_for_change(within=10).leader
        stolen = ours._replace(
            resource_name=OTHER_HOST, owner_generation=ours.owner_generation + 1, timestamp=ours.timestamp + 1
        ).sealed()
        write_leader(lockspace_path(lease_dir), stolen)
        overwritten = time.monotonic()
        gone_after(vm, overwritten, within=WITHIN_ONE_CYCLE)
        for _ in until(overwritten + 3 * CYCLE_SECONDS):
            assert read_delta(lease_dir, 1) == stolen, "a host id that is another's was written"
    result = host.call("run", "--disk", disk, "--", "true")
    assert result.returncode in (69, 75, 76), result


def test_a_host_lease_with_a_changed_timestamp_kills_the_vm(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """A clone of this host under the same name and generation (-261): the record is not our last write."""
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    with watch_delta(lease_dir, 1) as record:
        ours = record.wait_for_change(within=10).leader
        write_leader(lockspace_path(lease_dir), ours._replace(timestamp=ours.timestamp + 1000))
        gone_after(vm, time.monotonic(), within=WITHIN_ONE_CYCLE)


def test_a_destroyed_host_lease_kills_the_vm_and_is_left_alone(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    with watch_delta(lease_dir, 1) as record:
        ours = record.wait_for_change(within=10).leader
        damaged = ours.sealed()._replace(checksum=ours.checksum ^ 1)
        path = lockspace_path(lease_dir)
        with path.open("r+b") as file:
            file.write(damaged.to_bytes())
        overwritten = time.monotonic()
        gone_after(vm, overwritten, within=WITHIN_ONE_CYCLE)
        for _ in until(overwritten + 3 * CYCLE_SECONDS):
            assert read_delta(lease_dir, 1) == damaged, "a damaged record was overwritten"


def test_a_leader_that_is_overwritten_kills_that_vm_only(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    other_disk = make_disk(tmp_path / "b.img")
    other = qemu(*machine(), *drive(other_disk), host=host).wait_ready()
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    stolen = leader._replace(
        owner_id=7, owner_generation=3, lver=leader.lver + 1, write_id=7, write_generation=3
    ).sealed()
    write_leader(resource_path(lease_dir, disk), stolen)
    overwritten = time.monotonic()
    gone_after(vm, overwritten, within=WITHIN_ONE_CYCLE)
    for _ in until(overwritten + 2 * CYCLE_SECONDS):
        assert lease_leader(lease_dir, disk) == stolen, "another host's lease was released"
    assert other.answers(), "the lease of the other VM was never touched"
    assert host.generation == 1


def test_a_lease_that_is_formatted_anew_kills_the_vm(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """What `sanlock direct init -r` does to a held lease: lver 0, free, and anybody may take it."""
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    fresh = leader._replace(
        owner_id=0, owner_generation=0, lver=0, timestamp=0, write_id=0, write_generation=0, write_timestamp=0
    )
    write_leader(resource_path(lease_dir, disk), fresh)
    gone_after(vm, time.monotonic(), within=WITHIN_ONE_CYCLE)


def test_a_lease_file_that_is_deleted_kills_the_vm(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    resource_path(lease_dir, disk).unlink()
    gone_after(vm, time.monotonic(), within=WITHIN_ONE_CYCLE)


# -- the storage stops answering --------------------------------------------------------------------


class HungStorage:
    """Host id 1 sees its leases through a mount that hangs; host id 2 works on the directory behind it."""

    def __init__(self, mount: FaultyMount, here: VmHost, there: VmHost) -> None:
        self.mount, self.here, self.there = mount, here, there
        self.seen_here, self.seen_there = mount.path / "leases", mount.backing / "leases"
        here.create(self.seen_here)
        there.join(self.seen_there, 2)
        wait_for("B to see A live", lambda: there.seen_state(1) == "live", within=15)


@pytest.fixture
def hung(faulty: FaultyMount, two_alone: tuple[VmHost, VmHost]) -> HungStorage:
    return HungStorage(faulty, *two_alone)


def test_the_vm_is_gone_in_time_when_the_storage_hangs(
    hung: HungStorage, qemu: QemuStarter, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=hung.here).wait_ready()
    with watch_delta(hung.seen_there, 1) as renewals:
        renewals.wait_for_change(within=10)
        hung.mount.fail("hang")
        gone_after(vm, renewals.last.seen, within=EXPIRY_SECONDS + 3)
        assert vm.ended_at is not None
        # Not in a hurry either: the lease is good for 8 s, and storage comes back.
        assert vm.ended_at - renewals.last.seen > EXPIRY_SECONDS - CYCLE_SECONDS
    refused = qemu(*machine(), *drive(disk), host=hung.there)
    assert refused.wait(within=20) == 75, "its owner is not dead for others yet"
    assert lease_owner(hung.seen_there, disk) == 1


def test_storage_that_hangs_for_a_moment_costs_no_vm(
    hung: HungStorage, qemu: QemuStarter, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=hung.here).wait_ready()
    with watch_delta(hung.seen_there, 1) as renewals:
        renewals.wait_for_change(within=10)
        hung.mount.fail("hang")
        wait_until(renewals.last.seen + 5)
        hung.mount.heal()
        healed = time.monotonic()
        wait_for("three renewals", lambda: len(renewals.since(healed)) >= 3, within=12)
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
    assert vm.answers()
    assert vm.quit() == 0


@pytest.mark.parametrize("fault", ["eio", "lose"])
def test_the_vm_is_gone_in_time_when_the_storage_fails(
    hung: HungStorage, qemu: QemuStarter, disk: Path, fault: str
) -> None:
    """Errors only age the lease; writes that are acknowledged and lost are found by the next reading."""
    vm = qemu(*machine(), *drive(disk), host=hung.here).wait_ready()
    with watch_delta(hung.seen_there, 1) as renewals:
        renewals.wait_for_change(within=10)
        hung.mount.fail(fault, operations=("write",))
        gone_after(vm, renewals.last.seen, within=EXPIRY_SECONDS + 3)


def test_a_hung_mount_does_not_touch_the_vms_of_another_lockspace(
    faulty: FaultyMount, two_alone: tuple[VmHost, VmHost], qemu: QemuStarter, tmp_path: Path
) -> None:
    """One daemon, two lockspaces of different names: what hangs is one of them."""
    host, _ = two_alone
    on_mount, elsewhere = faulty.path / "leases", tmp_path / "leases"
    for lease_dir, name in ((on_mount, "first"), (elsewhere, "second")):
        host.succeed(
            "init-lockspace", lease_dir, "--name", name, "--io-timeout", "1", "--host-id", "1",
            "--host-name", host.name,
        )  # fmt: skip
    disks = [make_disk(tmp_path / name) for name in ("a.img", "b.img")]
    vms = []
    for disk, lease_dir in zip(disks, (on_mount, elsewhere)):
        vms.append(qemu(*machine(), *drive(disk), host=host, run_options=["-L", str(lease_dir)]))
    for vm in vms:
        vm.wait_ready()
    faulty.fail("hang")
    gone_after(vms[0], time.monotonic(), within=EXPIRY_SECONDS + 3)
    assert vms[1].answers()
    assert vms[1].quit() == 0


@pytest.mark.long
@pytest.mark.timeout(240)
def test_another_host_takes_over_long_after_the_vm_is_gone(
    hung: HungStorage, qemu: QemuStarter, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=hung.here).wait_ready()
    with watch_delta(hung.seen_there, 1) as renewals, watch_lease(hung.seen_there, disk) as leader:
        renewals.wait_for_change(within=10)
        hung.mount.fail("hang")
        waiting = qemu(*machine(), *drive(disk), host=hung.there, run_options=["--wait=120"])
        taken = leader.wait_for("the takeover", lambda record: record.owner_id == 2, within=90)
        waiting.wait_ready()
        last_renewal = renewals.last.seen
        gone_after(vm, last_renewal, within=EXPIRY_SECONDS + 3)
        assert vm.ended_at is not None
        assert vm.ended_at < taken.seen
        assert HOST_DEAD_SECONDS < taken.seen - last_renewal < HOST_DEAD_SECONDS + 10

        # The storage answers again: what lands late must not disturb the new owner.
        hung.mount.heal()
        held = taken.leader
        for _ in until(time.monotonic() + 5 * CYCLE_SECONDS):
            assert lease_leader(hung.seen_there, disk) == held
        assert waiting.answers()
        assert waiting.quit() == 0


def test_no_command_touches_a_lease_while_a_write_of_the_daemon_may_still_land(
    hung: HungStorage, disk: Path
) -> None:
    """Design rule 4, between processes: a claim stays locked until the timed-out write was reaped."""
    here, path = hung.here, hung.seen_here / resource_name(disk)
    with standing_process() as holder, standing_process() as other:
        assert here.acquire(holder.pid, disk).returncode == 0
        hung.mount.fail("hang", operations=("write",), names=f"*{path.name}")
        holder.kill()
        wait_for("the daemon's release to hang", lambda: hung.mount.hung, within=10)
        released_at = time.monotonic()
        wait_until(released_at + 2)  # its deadline is 1 s
        before = lease_leader(hung.seen_there, disk)
        refused = here.acquire(other.pid, disk)
        assert refused.returncode == 75
        assert "another command works on its lease" in refused.stderr
        assert hung.mount.hung == 1, "nobody else has asked for anything"
        assert lease_leader(hung.seen_there, disk) == before
        hung.mount.heal()
        assert here.acquire(other.pid, disk, options=["--wait=20"]).returncode == 0
        assert here.release(other.pid, disk).returncode == 0


def test_reads_that_take_longer_than_the_io_timeout_cost_no_vm(
    hung: HungStorage, qemu: QemuStarter, disk: Path
) -> None:
    """12.1-15: each one passes its deadline, and the next attempt takes what it brings."""
    vm = qemu(*machine(), *drive(disk), host=hung.here).wait_ready()
    with watch_delta(hung.seen_there, 1) as renewals:
        renewals.wait_for_change(within=10)
        hung.mount.fail("slow", operations=("read",), names=f"*{LOCKSPACE_NAME}")
        wait_until(time.monotonic() + EXPIRY_SECONDS + 3)
        assert hung.mount.hits > 2
        assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}
        hung.mount.heal()
    assert vm.answers()
    assert vm.quit() == 0
