"""Real QEMU through ``vmlockctl run``: a second start is refused, on the same host and on another."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.disk import (
    lease_is_free,
    lease_leader,
    lease_owner,
    resource_name,
    resource_path,
    shared_hosts,
)
from tests.support.programs import Child, find_program, is_running, send_signal, standing_process
from tests.support.qemu import (
    EXIT_33_BOOT_SECTOR,
    EXIT_33_DEVICE,
    PROGRAM,
    QemuStarter,
    drive,
    machine,
    make_disk,
    make_qcow2,
)
from tests.support.vmhost import VmHost, console_script
from tests.support.waiting import until, wait_for

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")

# What the daemon has to write a release after the end of a VM (DESIGN.md: "selftest").
RELEASE_SECONDS = 2


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def assert_released(lease_dir: Path, disk: Path) -> None:
    wait_for("the release on the disk", lambda: lease_is_free(lease_dir, disk), within=RELEASE_SECONDS)


# -- the feature's own test plan --------------------------------------------------------------------


def test_single_host(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    first = qemu(*machine(), *drive(disk), host=host).wait_ready()
    assert lease_owner(lease_dir, disk) == 1
    second = qemu(*machine(), *drive(disk), host=host)
    assert second.wait(within=20) == 75
    assert host.name in second.log
    assert str(first.pid) in second.log, "the message names the process"
    assert first.answers(), "the refusal left the first VM alone"

    assert first.quit() == 0
    assert_released(lease_dir, disk)
    assert qemu(*machine(), *drive(disk), host=host).wait_ready().quit() == 0
    assert_released(lease_dir, disk)


def test_two_hosts(two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    here, there = two_hosts
    first = qemu(*machine(), *drive(disk), host=here).wait_ready()
    second = qemu(*machine(), *drive(disk), host=there)
    assert second.wait(within=20) == 75
    assert here.name in second.log
    assert lease_owner(lease_dir, disk) == 1

    assert first.quit() == 0
    assert_released(lease_dir, disk)
    taken = qemu(*machine(), *drive(disk), host=there).wait_ready()
    assert lease_owner(lease_dir, disk) == 2
    assert taken.quit() == 0
    assert_released(lease_dir, disk)


def test_the_lease_alone_refuses_another_host(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Nobody has the disk open: what refuses is the lease, not a look at this machine's processes."""
    here, there = two_hosts
    assert here.acquire(holder.pid, disk).returncode == 0
    refused = there.acquire(holder.pid, disk)
    assert refused.returncode == 75
    assert here.name in refused.stderr
    assert lease_owner(lease_dir, disk) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_owner_killed(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path, number: signal.Signals
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    send_signal(vm.pid, number)
    vm.wait(within=5)
    assert_released(lease_dir, disk)
    assert qemu(*machine(), *drive(disk), host=host).wait_ready().quit() == 0


def test_orphan(two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    """The manager's records are gone and the VM runs: nobody starts it again until it is dead."""
    here, there = two_hosts
    vm = qemu(*machine(), *drive(disk), host=here).wait_ready()
    claims = list(here.claims_dir.glob("*.json"))
    assert claims, "a running VM has a claim"
    for claim in claims:
        claim.unlink()

    for host in (here, there):
        refused = qemu(*machine(), *drive(disk), host=host)
        assert refused.wait(within=20) == 75, refused.log
    found = here.call("check-orphans", "--json")
    assert found.returncode == 1, found
    assert vm.pid in [finding["pid"] for finding in json.loads(found.stdout)["findings"]], found

    # Two renewal cycles later it is as safe as it was, and the daemon has not let go of the lease.
    for _ in until(time.monotonic() + 5, every_seconds=0.1):
        assert lease_owner(lease_dir, disk) == 1
        assert vm.running
    refused = qemu(*machine(), *drive(disk), host=here)
    assert refused.wait(within=20) == 75, refused.log

    vm.kill()
    again = qemu(*machine(), *drive(disk), host=here, run_options=["--wait=10"])
    assert again.wait_ready().quit() == 0
    assert_released(lease_dir, disk)


def test_the_records_and_the_daemons_are_gone(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """As above after a crash of both daemons: a new start brings a daemon back and is refused."""
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    host.crash()
    for claim in host.claims_dir.glob("*.json"):
        claim.unlink()
    refused = qemu(*machine(), *drive(disk), host=host)
    assert refused.wait(within=20) == 75, refused.log
    assert vm.running
    assert lease_owner(lease_dir, disk) == 1


def test_the_selftest_command_agrees(host_alone: VmHost, tmp_path: Path) -> None:
    directory = tmp_path / "storage"
    directory.mkdir()
    result = host_alone.call("selftest", directory, within=60)
    assert result.returncode == 0, result
    assert "QEMU" in result.stdout + result.stderr
    assert "stand-in" not in result.stdout, "real QEMU is installed"


def test_selftest_leaves_nothing_behind(host_alone: VmHost, tmp_path: Path) -> None:
    directory = tmp_path / "storage"
    directory.mkdir()
    assert host_alone.call("selftest", directory, within=60).returncode == 0
    assert list(directory.iterdir()) == []
    assert host_alone.processes() == []


# -- run becomes its command ------------------------------------------------------------------------


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    """What an administrator puts in place of the emulator: one line."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    script = bin_dir / "qemu-kvm-locked"
    script.write_text(f'#!/bin/sh\nexec {console_script()} run -- {find_program(PROGRAM)} "$@"\n')
    script.chmod(0o755)
    return script


def test_a_wrapper_script_becomes_qemu(
    host: VmHost, qemu: QemuStarter, wrapper: Path, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host, command=[str(wrapper)]).wait_ready()
    assert os.readlink(f"/proc/{vm.pid}/exe") == os.path.realpath(find_program(PROGRAM))
    assert host.lease_status(disk)["owners"][0]["pid"] == vm.pid
    assert lease_owner(lease_dir, disk) == 1
    assert vm.quit() == 0
    assert_released(lease_dir, disk)


def test_a_wrapper_script_ends_with_qemus_status(
    host: VmHost, qemu: QemuStarter, wrapper: Path, lease_dir: Path, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "boot.img", boot_sector=EXIT_33_BOOT_SECTOR)
    guest_exits = [*machine(stopped=False), *drive(disk), *EXIT_33_DEVICE]
    assert qemu(*guest_exits, host=host, command=[str(wrapper)]).wait(within=60) == 33
    assert_released(lease_dir, disk)
    wrong_usage = qemu(*machine(), *drive(disk), "-no-such-option", host=host, command=[str(wrapper)])
    assert wrong_usage.wait(within=20) == 1
    assert_released(lease_dir, disk)


def test_a_wrapper_script_is_killed_as_qemu_is(
    host: VmHost, qemu: QemuStarter, wrapper: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host, command=[str(wrapper)]).wait_ready()
    send_signal(vm.pid, signal.SIGKILL)
    assert vm.wait(within=5) == -signal.SIGKILL


@pytest.mark.parametrize("status", [0, 1, 3, 75, 255])
def test_the_status_of_any_command_is_passed_on(host: VmHost, disk: Path, status: int) -> None:
    assert host.call("run", "--disk", disk, "--", "sh", "-c", f"exit {status}").returncode == status


def test_the_command_inherits_only_what_it_had(host: VmHost, disk: Path) -> None:
    """No lease file, no lock and no device stays open in the VM's process."""
    listed = host.call("run", "--disk", disk, "--", "sh", "-c", "ls -l /proc/self/fd")
    assert listed.returncode == 0
    targets = [line.rpartition(" -> ")[2] for line in listed.stdout.splitlines() if " -> " in line]
    # 0, 1, 2 and the directory that ls itself reads.
    assert len(targets) == 4, targets
    assert not any(str(host.run_dir) in target or "leases" in target for target in targets)


def test_a_command_that_cannot_be_run_leaves_no_lease(host: VmHost, lease_dir: Path, disk: Path) -> None:
    assert host.call("run", "--disk", disk, "--", "/no/such/program").returncode == 127
    assert host.call("run", "--disk", disk, "--", "/etc/passwd").returncode == 126
    assert_released(lease_dir, disk)


def test_the_status_for_a_conflict_can_be_chosen(host: VmHost, holder: Child, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.call("run", "-E", "99", "--disk", disk, "--", "true").returncode == 99
    assert host.call("run", "--disk", disk, "--", "true").returncode == 75


def test_waiting_ends_with_124(host: VmHost, holder: Child, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    result = host.call("run", "--wait=2", "--disk", disk, "--", "true")
    assert result.returncode == 124, result
    assert 2 <= result.seconds < 6


def test_a_refused_acquire_gives_back_only_what_it_took(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    """A process that holds a disk keeps it when it asks for that disk again and another that is busy."""
    here, there = two_hosts
    # Leases are taken in the order of their names: the busy one must come last to undo anything.
    held, fresh, busy = sorted((make_disk(tmp_path / f"{name}.img") for name in "abc"), key=resource_name)
    assert here.acquire(holder.pid, held).returncode == 0
    assert there.acquire(holder.pid, busy).returncode == 0
    assert here.acquire(holder.pid, held, fresh, busy).returncode == 75
    assert [lease_owner(lease_dir, disk) for disk in (held, busy, fresh)] == [1, 2, 0]
    assert here.release(holder.pid, held).returncode == 0


# -- which disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-drive", "file=DISK,format=raw,if=virtio"],
        ["-drive", "if=virtio,format=raw,file.driver=file,file.filename=DISK"],
        ["-hda", "DISK"],
        ["-hdd", "DISK"],
        ["-blockdev", "driver=file,filename=DISK,node-name=f0", "-device", "virtio-blk-pci,drive=f0"],
        [
            "-blockdev",
            "driver=raw,node-name=d0,file.driver=file,file.filename=DISK",
            "-device",
            "virtio-blk-pci,drive=d0",
        ],
        [
            "-blockdev",
            '{"driver":"file","filename":"DISK","node-name":"f0"}',
            "-device",
            "virtio-blk-pci,drive=f0",
        ],
        [
            "-blockdev",
            '{"driver":"raw","node-name":"d0","file":{"driver":"file","filename":"DISK"}}',
            "-device",
            "virtio-blk-pci,drive=d0",
        ],
    ],
    ids=["drive", "drive-file-driver", "hda", "hdd", "blockdev", "blockdev-nested", "json", "json-nested"],
)
def test_a_disk_is_found_on_the_command_line(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path, arguments: list[str]
) -> None:
    named = [argument.replace("DISK", str(disk)) for argument in arguments]
    vm = qemu(*machine(), *named, host=host).wait_ready()
    assert lease_owner(lease_dir, disk) == 1
    assert vm.quit() == 0
    assert_released(lease_dir, disk)


def test_all_disks_or_none(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    here, there = two_hosts
    disks = [make_disk(tmp_path / f"{name}.img") for name in "abc"]
    assert there.acquire(holder.pid, disks[1]).returncode == 0
    all_drives = [word for disk in disks for word in drive(disk)]
    refused = qemu(*machine(), *all_drives, host=here)
    assert refused.wait(within=20) == 75
    assert [lease_owner(lease_dir, disk) for disk in disks] == [0, 2, 0]

    assert there.release(holder.pid, disks[1]).returncode == 0
    vm = qemu(*machine(), *all_drives, host=here).wait_ready()
    assert [lease_owner(lease_dir, disk) for disk in disks] == [1, 1, 1]
    assert vm.quit() == 0
    for disk in disks:
        assert_released(lease_dir, disk)


def test_qcow2_is_protected_as_raw_is(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, tmp_path: Path
) -> None:
    here, there = two_hosts
    disk = make_qcow2(tmp_path / "a.qcow2")
    arguments = [*machine(), "-drive", f"file={disk},format=qcow2,if=virtio"]
    vm = qemu(*arguments, host=here).wait_ready()
    assert qemu(*arguments, host=there).wait(within=20) == 75
    assert vm.quit() == 0


def test_readonly_disks_are_shared(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    readers = [
        qemu(*machine(), *drive(disk, "readonly=on"), host=host).wait_ready() for host in (here, there)
    ]
    assert shared_hosts(lease_dir, disk) == [1, 2]
    for host in (here, there):
        refused = qemu(*machine(), *drive(disk), host=host)
        assert refused.wait(within=20) == 75, refused.log
    assert [reader.quit() for reader in readers] == [0, 0]
    assert_released(lease_dir, disk)

    writer = qemu(*machine(), *drive(disk), host=here).wait_ready()
    refused = qemu(*machine(), *drive(disk, "readonly=on"), host=there)
    assert refused.wait(within=20) == 75, refused.log
    assert writer.quit() == 0


def test_a_symlinked_disk_is_leased_under_both_names(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    here, there = two_hosts
    disk = make_disk(tmp_path / "real.img")
    link = tmp_path / "link.img"
    link.symlink_to(disk)
    vm = qemu(*machine(), *drive(link), host=here).wait_ready()
    assert [lease_owner(lease_dir, name) for name in (link, disk)] == [1, 1]
    for name in (link, disk):
        refused = there.acquire(holder.pid, name)
        assert refused.returncode == 75, refused
    assert vm.quit() == 0
    for name in (link, disk):
        assert_released(lease_dir, name)

    vm = qemu(*machine(), *drive(disk), host=here).wait_ready()
    assert there.acquire(holder.pid, link).returncode == 75
    assert lease_owner(lease_dir, link) == 0, "what could not be had whole is not held in part"
    assert vm.quit() == 0


def test_another_name_for_a_claimed_disk_is_refused_on_this_host(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    """Identity, not the name: the same inode under another mount is the same disk."""
    images = tmp_path / "images"
    images.mkdir()
    disk = make_disk(images / "a.img")
    assert host.acquire(holder.pid, disk).returncode == 0
    with filesystems.mounted(tmp_path / "alias", "--bind", str(images)) as alias:
        with standing_process() as another:
            refused = host.acquire(another.pid, alias / "a.img")
        assert refused.returncode == 75, refused
        assert str(disk) in refused.stderr, "the message says under which name it is claimed"
        assert lease_is_free(lease_dir, alias / "a.img")


def test_a_qemu_without_a_lease_is_found_before_a_start(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    bare = qemu(*machine(), *drive(disk)).wait_ready()
    refused = qemu(*machine(), *drive(disk), host=host)
    assert refused.wait(within=20) == 75
    assert str(bare.pid) in refused.log
    assert_released(lease_dir, disk)
    assert bare.quit() == 0
    assert qemu(*machine(), *drive(disk), host=host).wait_ready().quit() == 0


# -- QEMU in the background -------------------------------------------------------------------------


def test_the_claim_follows_a_daemonized_qemu(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    pid_file = qemu.pid_file()
    started = qemu(*machine(), *drive(disk), "-daemonize", "-pidfile", str(pid_file), host=host)
    assert started.wait(within=20) == 0
    daemonized = int(pid_file.read_text())
    assert daemonized != started.pid
    wait_for(
        "the claim to move to the child",
        lambda: [owner["pid"] for owner in host.lease_status(disk)["owners"]] == [daemonized],
        within=5,
        every_seconds=0.2,
    )
    lver = leader_lver(lease_dir, disk)
    refused = qemu(*machine(), *drive(disk), host=host)
    assert refused.wait(within=20) == 75
    for _ in until(time.monotonic() + 5, every_seconds=0.1):
        assert lease_owner(lease_dir, disk) == 1
    assert leader_lver(lease_dir, disk) == lver, "it was never given up in between"
    assert is_running(daemonized)

    send_signal(daemonized, signal.SIGKILL)
    wait_for("the end of the VM", lambda: not is_running(daemonized), within=5)
    assert_released(lease_dir, disk)


def leader_lver(lease_dir: Path, disk: Path) -> int:
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    return leader.lver


def test_release_is_refused_while_the_vm_runs(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    refused = host.release(vm.pid, disk)
    assert refused.returncode == 77, refused
    assert lease_owner(lease_dir, disk) == 1
    assert vm.quit() == 0


def test_remove_host_is_refused_while_a_vm_runs(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    refused = host.call("remove-host", lease_dir)
    assert refused.returncode in (75, 77), refused
    assert vm.answers()
    assert vm.quit() == 0
    assert_released(lease_dir, disk)
    host.succeed("remove-host", lease_dir)


def test_an_owner_note_says_who_it_was(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    vm = qemu(*machine(), *drive(disk), "-name", "guest-a", host=host).wait_ready()
    [area] = host.json("dump-leases", resource_path(lease_dir, disk))["areas"]
    note = area["owner_note"]
    assert (note["disk"], note["pid"], note["host_name"]) == (str(disk), vm.pid, host.name)
    assert (note["vm"], note["host_id"], note["generation"]) == ("guest-a", 1, 1)
    assert note["lver"] == area["leader"]["lver"]
    assert vm.quit() == 0
