"""One thing under several names: a lockspace by two paths, two lockspaces by one, a disk by two nodes.

Identity decides: device, inode and offset for a lockspace; device number, or file system and inode, for a
disk (faults.md finding 8). LVM and multipath names are symlinks to one node, as /dev/disk/by-id is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.disk import (
    directory_digest,
    lease_is_free,
    lease_owner,
    lockspace_path,
    read_delta,
)
from tests.support.programs import Child, find_program, standing_process
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and device nodes need root"),
]

NOT_JOINED, DATA, BUSY, PERMISSION = 69, 65, 75, 77

Alias = Callable[[Path, Path, ExitStack], Path]


def bind(lease_dir: Path, place: Path, stack: ExitStack) -> Path:
    return stack.enter_context(filesystems.mounted(place, "--bind", str(lease_dir)))


def symlink(lease_dir: Path, place: Path, stack: ExitStack) -> Path:
    place.symlink_to(lease_dir)
    return place


def hard_link(lease_dir: Path, place: Path, stack: ExitStack) -> Path:
    place.mkdir()
    os.link(lockspace_path(lease_dir), lockspace_path(place))
    return place


@pytest.mark.parametrize("alias", [bind, symlink, hard_link])
def test_one_lockspace_by_two_paths_is_one_membership(
    host: VmHost, lease_dir: Path, tmp_path: Path, alias: Alias
) -> None:
    """This host is in it already, whatever leads there: it never gets a second host id."""
    with ExitStack() as stack:
        other_path = alias(lease_dir, tmp_path / "alias", stack)
        refused = host.call("add-host", other_path, "--host-id", "2")
        assert refused.returncode == NOT_JOINED, refused
        assert "joined already as host id 1" in refused.stderr
        again = host.call("add-host", other_path, "--host-id", "1")
        assert again.returncode == 0, again
        assert read_delta(lease_dir, 2).owner_id == 0
        assert host.generation == 1


@pytest.mark.parametrize("alias", [bind, symlink])
def test_a_lease_by_two_paths_of_its_lockspace_is_one_lease(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path, alias: Alias
) -> None:
    disk = make_disk(tmp_path / "a.img")
    assert host.acquire(holder.pid, disk).returncode == 0
    with ExitStack() as stack:
        other_path = alias(lease_dir, tmp_path / "alias", stack)
        with standing_process() as another:
            refused = host.call("acquire", "-L", other_path, "--pid", str(another.pid), disk)
        assert refused.returncode == BUSY, refused
        assert lease_owner(lease_dir, disk) == 1


def test_two_lockspaces_on_one_path_are_refused(host: VmHost, host_alone: VmHost, lease_dir: Path) -> None:
    """One area has one name; another one for the same place is a mistake, for members and strangers."""
    path = lockspace_path(lease_dir)
    before = directory_digest(lease_dir, live_host_ids=(1,))
    for caller in (host, host_alone):
        for words in (
            ["add-host", f"other:0:{path}:0", "--host-id", "2"],
            ["init-lockspace", f"other:0:{path}:0"],
        ):
            refused = caller.call(*words)
            assert refused.returncode in (DATA, NOT_JOINED, 73), refused
    assert directory_digest(lease_dir, live_host_ids=(1,)) == before


# -- disks that are devices ---------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with filesystems.loop_device(make_disk(tmp_path / "lun"), sector_size=512) as path:
        yield path


@pytest.mark.real("qemu-system-x86_64")
def test_a_node_of_the_same_device_is_the_same_disk_to_a_second_qemu(
    host: VmHost, qemu: QemuStarter, device: Path, tmp_path: Path
) -> None:
    """QEMU's own lock is per inode, so it would let the second one write the same device."""
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
    options = ["--allow-alias"]
    first = qemu(*machine(), *drive(device), host=host, run_options=options).wait_ready()
    second = qemu(*machine(), *drive(node), host=host, run_options=options)
    assert second.wait(within=20) == BUSY
    assert str(first.pid) in second.log
    assert first.quit() == 0


def test_a_device_without_a_stable_name_is_refused(host: VmHost, holder: Child, device: Path) -> None:
    refused = host.acquire(holder.pid, device)
    assert refused.returncode == PERMISSION, refused
    assert "--allow-alias" in refused.stderr


BY_ID = (
    "mount -t tmpfs none /dev/disk 2>/dev/null || { mkdir -p /dev/disk && mount -t tmpfs none /dev/disk; }; "
    'mkdir /dev/disk/by-id && ln -s "$0" /dev/disk/by-id/wwn-0x1234 && exec "$@"'
)


def test_a_device_by_its_node_and_by_its_id_is_leased_under_both_names(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, device: Path
) -> None:
    """Each host names it as it likes: the stable name is in the set of both."""
    here, there = two_hosts
    prefix = [find_program("unshare"), "--mount", "/bin/sh", "-c", BY_ID, str(device)]
    by_id = Path("/dev/disk/by-id/wwn-0x1234")
    granted = here.call("acquire", "--pid", str(holder.pid), device, prefix=prefix)
    assert granted.returncode == 0, granted
    assert [lease_owner(lease_dir, name) for name in (device, by_id)] == [1, 1]
    with standing_process() as another:
        refused = there.call("acquire", "--pid", str(another.pid), by_id, prefix=prefix)
    assert refused.returncode == BUSY, refused
    assert here.name in refused.stderr
    holder.kill()
    for name in (device, by_id):
        wait_for("the release", lambda name=name: lease_is_free(lease_dir, name), within=5)
