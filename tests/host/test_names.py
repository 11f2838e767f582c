"""Wherever a lease is printed by its digest, the disk that it stands for is printed beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.disk import AREA, resource_name, resource_path, write_direct
from tests.support.leasefiles import write_lease, write_lockspace
from tests.support.programs import standing_process
from tests.support.qemu import make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk.geometry import NOTE_SIZE

DISK = "/images/a.img"


def forget_note(lease: Path) -> None:
    write_direct(lease, AREA - NOTE_SIZE, bytes(NOTE_SIZE))


def test_dump_leases_by_the_owner_note(host_alone: VmHost, lease_dir: Path) -> None:
    write_lockspace(lease_dir)
    lease = write_lease(lease_dir, DISK)
    text = host_alone.succeed("dump-leases", lease_dir).stdout
    assert f"  resource {lease.name} in lockspace __LIBVIRT__DISKS__\n  disk {DISK} (owner note)\n" in text
    areas = host_alone.json("dump-leases", lease_dir)["areas"]
    assert "disk" not in areas[0]
    assert (areas[1]["disk"], areas[1]["disk_source"]) == (DISK, "owner note")


@pytest.mark.parametrize("command", ["dump-leases", "status"])
def test_a_directory_of_images_names_a_disk(
    host_alone: VmHost, lease_dir: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "images").mkdir()
    disk = make_disk(tmp_path / "images" / "a.img")
    write_lockspace(lease_dir)
    forget_note(write_lease(lease_dir, str(disk)))
    where = [lease_dir] if command == "dump-leases" else ["-L", lease_dir]
    assert str(disk) not in host_alone.succeed(command, *where).stdout
    assert str(disk) in host_alone.succeed(command, *where, "--images", tmp_path / "images").stdout


def test_a_note_of_another_disk_names_nothing(host_alone: VmHost, lease_dir: Path) -> None:
    write_lockspace(lease_dir)
    write_lease(lease_dir, DISK, noted_disk="/etc/passwd")
    [_, area] = host_alone.json("dump-leases", lease_dir)["areas"]
    assert (area["disk"], area["owner_note"]["disk"]) == (None, "/etc/passwd")
    [lease] = host_alone.json("status", "-L", lease_dir)["leases"]
    assert lease["disk"] is None


def test_errors_name_the_disk(host: VmHost, lease_dir: Path, tmp_path: Path) -> None:
    """A damaged lease is told by its file, which is named by a digest: the disk stands before it."""
    disk = make_disk(tmp_path / "a.img")
    with standing_process() as process:
        assert host.acquire(process.pid, disk).returncode == 0
        with resource_path(lease_dir, disk).open("r+b") as file:
            file.seek(60)
            file.write(b"\xff")
        for words in (["release", "--pid", str(process.pid), disk], ["request", disk]):
            told = host.call(*words).stderr
            assert resource_name(disk) in told
            assert told.startswith(f"vmlockctl: {disk}: "), told
        error = json.loads(host.call("request", disk, "--json").stderr)["error"]
        assert error["message"].startswith(f"{disk}: ")


def test_an_acquire_of_a_damaged_lease_names_the_disk(host: VmHost, lease_dir: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "a.img")
    write_lease(lease_dir, str(disk)).write_bytes(bytes(AREA))
    with standing_process() as process:
        told = host.acquire(process.pid, disk)
    assert told.returncode == 65
    assert told.stderr.startswith(f"vmlockctl: {disk}: ")


def test_the_log_names_the_disk(host: VmHost, lease_dir: Path, tmp_path: Path) -> None:
    """Every write to a lease, and what the daemon says of it."""
    disk = make_disk(tmp_path / "a.img")
    host.crash()
    log = host.run_dir / "log"
    with host.start("daemon", log="log"):
        wait_for("the daemon", lambda: host.daemon_pid, within=10)
        with standing_process() as process:
            assert host.acquire(process.pid, disk).returncode == 0
        released = f"released {disk}: no process uses it any more"
        wait_for("the release", lambda: released in log.read_text(), within=10)
        writes = [
            line for line in log.read_text().splitlines() if resource_name(disk) in line and " write " in line
        ]
        assert writes
        assert all(line.endswith(f" of {disk}") for line in writes)
