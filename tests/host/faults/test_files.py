"""Lease files that change under a host that holds them, and areas that are not what they should be.

A file that was replaced, even by an exact copy, is not the file that the other hosts have open: to go on
with it would be to renew where nobody looks (faults.md 2b).
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.host.faults.stage import (
    CYCLE_SECONDS,
    IN_TIME,
    ONE_CYCLE,
    Stage,
    assert_released,
    goes_on,
    gone_after,
)
from tests.support import filesystems
from tests.support.disk import (
    AREA,
    LOCKSPACE_NAME,
    lease_owner,
    lockspace_path,
    resource_name,
    resource_path,
    watch_delta,
)
from tests.support.programs import Child
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_until
from vmlockctl.ondisk import area
from vmlockctl.ondisk.geometry import Geometry

DATA = 65


def claim(host: VmHost, holder: Child, disk: Path) -> None:
    result = host.acquire(holder.pid, disk)
    assert result.returncode == 0, result


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


# -- replaced, deleted, moved ------------------------------------------------------------------------


@pytest.mark.long
def test_a_lockspace_that_is_replaced_by_a_copy_is_lost(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
    replace_by_copy(lockspace_path(lease_dir))
    gone_after(holder, time.monotonic(), within=ONE_CYCLE)


@pytest.mark.long
def test_a_lease_that_is_replaced_by_a_copy_is_lost(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    with watch_delta(lease_dir, 1) as renewals:
        for _ in range(2):  # a whole cycle: the daemon has looked at the lease
            renewals.wait_for_change(within=10)
    replace_by_copy(resource_path(lease_dir, disk))
    gone_after(holder, time.monotonic(), within=ONE_CYCLE)


@pytest.mark.long
def test_a_lease_file_may_be_made_anew_when_nobody_holds_it(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Another file under the old name is no loss for whoever acquires there next."""
    for _ in range(2):
        claim(host, holder, disk)
        with goes_on(lease_dir, holder):
            pass
        assert_released(host, holder, lease_dir, disk)
        resource_path(lease_dir, disk).unlink()


@pytest.mark.long
def test_a_lockspace_that_is_deleted_is_lost_in_time(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        lockspace_path(lease_dir).unlink()
        gone_after(holder, renewals.last.seen, within=IN_TIME)


@pytest.mark.long
def test_a_lockspace_that_is_away_for_a_moment_is_not_lost(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Moved away and back: the same file."""
    claim(host, holder, disk)
    path = lockspace_path(lease_dir)
    with goes_on(lease_dir, holder) as renewals:
        path.rename(path.with_name("away"))
        wait_until(renewals.last.seen + 1.5 * CYCLE_SECONDS)
        path.with_name("away").rename(path)
    assert_released(host, holder, lease_dir, disk)


@pytest.mark.long
def test_another_file_system_under_the_same_path_is_not_taken_for_ours(
    stage: Stage, holder: Child, disk: Path, tmp_path: Path
) -> None:
    """After ENOTCONN the path leads to a copy of every byte, on another mount: it is not the lockspace."""
    stage.claim(holder, disk)
    with watch_delta(stage.behind, 1) as renewals:
        renewals.wait_for_change(within=10)
        stage.mount.die()
        died = renewals.last
        shutil.copytree(stage.mount.backing, tmp_path / "copy")
        stage.mount.restart(tmp_path / "copy")
        gone_after(holder, died.seen, within=IN_TIME)
        assert renewals.last == died


# -- truncated, extended -----------------------------------------------------------------------------


@pytest.mark.long
def test_a_lease_that_is_truncated_while_held_is_lost_and_stays_short(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    path = resource_path(lease_dir, disk)
    os.truncate(path, 100)
    gone_after(holder, time.monotonic(), within=ONE_CYCLE)
    assert path.stat().st_size == 100, "a write never makes a file longer"


@pytest.mark.long
def test_a_lockspace_that_is_truncated_while_held_is_lost_and_stays_short(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    claim(host, holder, disk)
    with watch_delta(lease_dir, 1) as renewals:
        renewals.wait_for_change(within=10)
        os.truncate(lockspace_path(lease_dir), AREA // 2)
        gone_after(holder, renewals.last.seen, within=IN_TIME)
    assert lockspace_path(lease_dir).stat().st_size == AREA // 2


@pytest.mark.long
def test_files_that_grow_are_the_same_files(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    claim(host, holder, disk)
    with goes_on(lease_dir, holder):
        for path in (lockspace_path(lease_dir), resource_path(lease_dir, disk)):
            with path.open("ab") as file:
                file.write(b"more" * 1024)
    assert_released(host, holder, lease_dir, disk)


# -- sector sizes -------------------------------------------------------------------------------------


def test_areas_of_512_bytes_on_a_device_of_4096_are_refused(host_alone: VmHost, tmp_path: Path) -> None:
    """One sector there holds the records of eight hosts: no write of one leaves the others alone."""
    image = tmp_path / "lun"
    image.write_bytes(bytes(8 << 20))
    with filesystems.loop_device(image, sector_size=512) as device:
        host_alone.succeed("init-lockspace", f"ls:0:{device}:0", "--sector-size", "512")
    before = image.read_bytes()
    with filesystems.loop_device(image, sector_size=4096) as device:
        refused = host_alone.call("add-host", f"ls:0:{device}:0", "--host-id", "2")
        assert refused.returncode in (DATA, 74), refused
        refused = host_alone.call("init-lockspace", f"other:0:{device}:1048576", "--sector-size", "512")
        assert refused.returncode != 0, refused
    assert image.read_bytes() == before


def test_areas_of_4096_bytes_on_a_device_of_512_are_what_they_say(host_alone: VmHost, tmp_path: Path) -> None:
    """The record states its sector size; the host's record stands where that says."""
    image = tmp_path / "lun"
    image.write_bytes(bytes(8 << 20))
    with filesystems.loop_device(image, sector_size=4096) as device:
        host_alone.succeed("init-lockspace", f"ls:0:{device}:0", "--io-timeout", "1")
    before = image.read_bytes()
    with filesystems.loop_device(image, sector_size=512) as device:
        host_alone.succeed(
            "add-host", f"ls:0:{device}:0", "--host-id", "2", "--host-name", "h", "--io-timeout", "1"
        )
        host_alone.close()
    after = image.read_bytes()
    changed = {at // 512 for at in range(0, len(after), 512) if after[at : at + 512] != before[at : at + 512]}
    assert changed == {8}, "host id 2 has the second sector of 4096 bytes"


@pytest.mark.real("mkfs.ext4", "losetup")
def test_a_file_system_on_a_disk_of_4096(host_alone: VmHost, holder: Child, tmp_path: Path) -> None:
    """It takes a whole area written at once, but no record of 512 bytes: such a lockspace is of no use."""
    with filesystems.ext4_of_large_sectors(tmp_path) as mount:
        leases, disk = mount / "leases", mount / "a.img"
        disk.touch()
        refused = host_alone.call("init-lockspace", leases, "--sector-size", "512")
        assert refused.returncode == 74, refused
        assert "direct read of 512 bytes refused" in refused.stderr
        assert list(leases.iterdir()) == []
        made = host_alone.json("init-lockspace", leases, "--host-id", "1")
        assert made["lockspace"]["sector_size"] == 4096
        host_alone.succeed("init-lockspace", leases, "--host-id", "1")
        host_alone.succeed("acquire", "-L", leases, "--pid", str(holder.pid), disk)
        host_alone.succeed("release", "-L", leases, "--pid", str(holder.pid), disk)
        host_alone.succeed("remove-host", leases)
        host_alone.close()


@pytest.mark.parametrize("sector_size", ["512", "4096"])
def test_a_resource_is_read_with_the_sizes_that_it_states(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path, sector_size: str
) -> None:
    """A lockspace of 512-byte sectors beside a lease made for 4096: each is taken for what it is."""
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(4096))
    path = resource_path(lease_dir, disk)
    path.write_bytes(resource_of(disk, int(sector_size)))
    claim(host, holder, disk)
    assert lease_owner(lease_dir, disk) == 1
    mode_sector = 2 * int(sector_size)
    assert any(path.read_bytes()[mode_sector : mode_sector + 512]), "our dblock, behind leader and request"
    if sector_size == "4096":
        assert not any(path.read_bytes()[2 * 512 : 3 * 512]), "nothing where 512-byte sectors would be"


def resource_of(disk: Path, sector_size: int) -> bytes:
    geometry = Geometry(sector_size, AREA)
    return area.resource_area(geometry, space_name=LOCKSPACE_NAME, resource_name=resource_name(disk))
