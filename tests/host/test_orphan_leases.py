"""Lease files that nobody can use, and those that nobody uses: the first are findings, the second are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disk import lease_leader, lease_owner, resource_name, resource_path, write_leader
from tests.support.orphans import findings, fixed, kinds, report
from tests.support.programs import Child
from tests.support.sanlockhost import direct_init_resource
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def released(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> Path:
    """The file of a lease that was acquired and released."""
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    return resource_path(lease_dir, disk)


def notes(host: VmHost, disk: Path) -> list[str]:
    return [note["kind"] for note in report(host)["notes"] if note["resource"] == resource_name(disk)]


def test_a_released_lease_is_no_finding(host: VmHost, released: Path, disk: Path) -> None:
    assert kinds(host, disk) == []
    assert notes(host, disk) == ["released"]
    assert "released leases: 1" in host.call("check-orphans").stdout


@pytest.mark.real("sanlock")
def test_a_lease_that_was_never_acquired_is_no_finding(host: VmHost, lease_dir: Path, disk: Path) -> None:
    """One is made for each VM of libvirt whose start fails; --images may find its disk."""
    resource_path(lease_dir, disk).write_bytes(bytes(1 << 20))
    direct_init_resource(resource_path(lease_dir, disk), resource=resource_name(disk))
    assert notes(host, disk) == ["never-acquired"]
    [note] = [n for n in report(host)["notes"] if n["resource"] == resource_name(disk)]
    assert note["disk"] is None
    [note] = [n for n in report(host, "--images", str(disk.parent))["notes"] if n["kind"] == "never-acquired"]
    assert note["disk"] == str(disk)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))


def clear(path: Path) -> None:
    leader = lease_leader(path.parent, path.parent.parent / "a.img")
    assert leader is not None
    write_leader(path, leader._replace(magic=0x11282016))


@pytest.mark.parametrize(
    ("damage", "kind", "severity"),
    [
        (lambda path: overwrite(path, 60, b"\xff"), "damaged", "critical"),
        (lambda path: overwrite(path, 0, b"not a lease of any kind" * 40), "damaged", "critical"),
        (lambda path: overwrite(path, 1024, b"\xff" * 40), "damaged", "critical"),
        (lambda path: os.truncate(path, 8192), "short", "critical"),
        (lambda path: os.truncate(path, 0), "short", "critical"),
        (zero, "uninitialised", "warning"),
        (clear, "cleared", "warning"),
    ],
    ids=["leader", "garbage", "dblock", "short", "empty", "zeros", "cleared"],
)
def test_a_damaged_lease_is_told_and_left_alone(
    host: VmHost, released: Path, disk: Path, damage: Callable[[Path], object], kind: str, severity: str
) -> None:
    damage(released)
    before = released.read_bytes()
    [found] = [f for f in report(host)["findings"] if f["path"] == str(released)]
    assert (found["kind"], found["severity"], found["fix"]) == (kind, severity, None)
    assert str(released) in found["command"]
    disk.unlink()
    assert fixed(host, "--fix", "--prune") == []
    assert released.read_bytes() == before


def test_a_copy_of_a_lease_is_told_and_left_alone(host: VmHost, released: Path, disk: Path) -> None:
    """Its name says one disk, and its leader another: what is done to it would be done to the wrong one."""
    copy = released.with_name("0" * 32)
    shutil.copyfile(released, copy)
    disk.unlink()
    [found] = [f for f in report(host)["findings"] if f["path"] == str(copy)]
    assert (found["kind"], found["fix"]) == ("damaged", None)
    assert [done["done"] for done in fixed(host, "--prune")] == [True]
    assert copy.exists()
    assert not released.exists()


@pytest.mark.long
def test_a_silent_host_is_told_and_left_alone(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Not dead yet: an info, with the time that is left, and --fix does not touch it."""
    here, there = two_hosts
    wait_for("B to be seen", lambda: here.seen_state(2) == "live", within=15)
    assert there.acquire(holder.pid, disk).returncode == 0
    there.crash_everything()
    assert kinds(here, disk) == []
    wait_for("B to fall silent", lambda: here.seen_state(2) == "fail", within=20)
    [found] = findings(here, disk)
    assert (found["kind"], found["severity"], found["fix"]) == ("silent-host", "info", None)
    assert "it can be taken in" in found["advice"]
    disk.unlink()
    assert fixed(here, "--fix", "--prune") == []
    assert lease_owner(lease_dir, disk) == 2


def test_a_lease_of_a_host_that_left(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Its claim was lost, so remove-host did not know of it; nobody needs to wait for a host that is free."""
    here, there = two_hosts
    assert there.acquire(holder.pid, disk).returncode == 0
    for claim in there.claims_dir.glob("*.json"):
        claim.unlink()
    there.succeed("remove-host", lease_dir)
    [found] = findings(here, disk)
    assert (found["kind"], found["owner"]["state"]) == ("dead-host", "free")
    assert [done["text"] for done in fixed(here, "--fix")] == ["released"]
    assert lease_owner(lease_dir, disk) == 0
    assert kinds(here, disk) == []
