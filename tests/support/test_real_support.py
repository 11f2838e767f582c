"""The support for real programs, on the real programs: what the other tests may rely on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.disk import (
    SECTOR,
    RecordWatch,
    directory_digest,
    lease_owner,
    lockspace_path,
    read_delta,
    read_direct,
    resource_name,
    resource_path,
    shared_hosts,
    write_direct,
    write_leader,
)
from tests.support.fusefs import FaultyMount
from tests.support.programs import Child, is_running, processes_of, run_command
from tests.support.qemu import EXIT_33_BOOT_SECTOR, EXIT_33_DEVICE, QemuStarter, drive, machine, make_disk
from tests.support.sanlockhost import (
    SanlockHost,
    direct_init_lockspace,
    direct_init_resource,
    read_leader_fields,
    sanlock_direct,
)
from tests.support.waiting import wait_for

DISK = "/images/a.img"


def test_wait_for_gives_up_and_says_what() -> None:
    with pytest.raises(AssertionError, match=r"the moon: not within 0\.05 s"):
        wait_for("the moon", lambda: None, within=0.05)


def test_a_child_is_reaped_when_it_ends() -> None:
    child = Child(["sh", "-c", "exit 3"])
    assert child.wait(within=5) == 3
    assert child.ended_at is not None
    assert not os.path.exists(f"/proc/{child.pid}")


def test_processes_are_found_by_their_environment() -> None:
    child = Child(["sleep", "infinity"], environment={**os.environ, "SUPPORT_TEST": "x y"})
    wait_for("the process", lambda: processes_of("SUPPORT_TEST=x y") == [child.pid], within=5)
    child.kill()
    assert processes_of("SUPPORT_TEST=x y") == []
    assert not is_running(child.pid)


def test_run_command_gives_up_on_output_that_stays_open() -> None:
    with pytest.raises(AssertionError, match="still running after"):
        run_command(["sleep", "5"], timeout_seconds=0.5)


@pytest.mark.real("sanlock")
def test_records_are_read_and_written_past_every_cache(tmp_path: Path) -> None:
    path = lockspace_path(tmp_path)
    path.write_bytes(bytes(1024 * 1024))
    direct_init_lockspace(path, io_timeout=1)
    record = read_delta(tmp_path, 3)
    assert (record.space, record.io_timeout, record.owner_id) == ("__LIBVIRT__DISKS__", 1, 0)
    before = directory_digest(tmp_path)
    write_leader(path, record._replace(owner_id=3, timestamp=77, resource_name=b"other"), sector=2)
    fields = read_leader_fields(sanlock_direct("read_leader", "-s", f"__LIBVIRT__DISKS__:3:{path}:0"))
    assert (fields["owner_id"], fields["timestamp"], fields["resource_name"]) == ("3", "77", "other")
    assert directory_digest(tmp_path) != before
    assert directory_digest(tmp_path, live_host_ids=(3,)) != before
    write_direct(path, 2 * SECTOR, record.sector(SECTOR))
    assert directory_digest(tmp_path) == before
    assert read_direct(path, 2 * SECTOR, SECTOR) == record.sector(SECTOR)


def test_a_watch_sees_every_version_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(bytes(4096))
    watch = RecordWatch(path)
    try:
        written = watch.last.leader._replace(timestamp=5).sealed()
        before = time.monotonic()
        write_leader(path, watch.last.leader._replace(timestamp=5))
        sighting = watch.wait_for("timestamp 5", lambda leader: leader.timestamp == 5, within=5)
        assert before < sighting.seen < before + 1
        assert sighting.leader == written
        assert watch.since(before) == [sighting]
    finally:
        watch.close()


@pytest.mark.real("sanlock")
def test_a_sanlock_host_holds_refuses_and_crashes(sanlock_host: SanlockHost, tmp_path: Path) -> None:
    path = lockspace_path(tmp_path)
    path.write_bytes(bytes(1024 * 1024))
    direct_init_lockspace(path, io_timeout=1)
    lease = resource_path(tmp_path, DISK)
    lease.write_bytes(bytes(1024 * 1024))
    direct_init_resource(lease, resource=resource_name(DISK))
    sanlock_host.join(tmp_path, 4)
    wait_for("its first renewal", lambda: 4 in sanlock_host.hosts(), within=10)
    assert sanlock_host.hosts()[4].state == "LIVE"

    answer, holder = sanlock_host.acquire(tmp_path, DISK)
    assert answer == 0
    assert lease_owner(tmp_path, DISK) == 4
    assert sanlock_host.acquire(tmp_path, DISK)[0] == -17
    sanlock_host.release(holder)
    assert lease_owner(tmp_path, DISK) == 0

    answer, holder = sanlock_host.acquire(tmp_path, DISK, shared=True)
    assert answer == 0
    assert shared_hosts(tmp_path, DISK) == [4]
    sanlock_host.crash_everything()
    assert processes_of(f"SANLOCK_RUN_DIR={sanlock_host.run_dir}") == []
    assert not is_running(holder.pid)


@pytest.mark.real("qemu-system-x86_64")
def test_qemu_opens_its_disk_and_refuses_a_second_opener(qemu: QemuStarter, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "a.img")
    first = qemu(*machine(), *drive(disk)).wait_ready()
    assert first.qmp("query-status")["running"] is False
    second = qemu(*machine(), *drive(disk))
    assert second.wait(within=10) == 1
    assert 'Failed to get "write" lock' in second.log
    assert first.quit() == 0
    assert first.ended_at is not None


@pytest.mark.real("qemu-system-x86_64")
def test_a_guest_can_choose_the_exit_status(qemu: QemuStarter, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "boot.img", boot_sector=EXIT_33_BOOT_SECTOR)
    assert qemu(*machine(stopped=False), *drive(disk), *EXIT_33_DEVICE).wait(within=30) == 33


def test_a_faulty_mount_passes_direct_io_through(faulty: FaultyMount) -> None:
    (faulty.path / "f").write_bytes(bytes(4096))
    write_direct(faulty.path / "f", 512, b"x" * 512)
    assert read_direct(faulty.path / "f", 512, 512) == b"x" * 512
    assert (faulty.backing / "f").read_bytes()[512:1024] == b"x" * 512
    write_direct(faulty.backing / "f", 512, b"y" * 512)
    assert read_direct(faulty.path / "f", 512, 512) == b"y" * 512
    os.link(faulty.path / "f", faulty.path / "g")
    os.unlink(faulty.path / "f")
    assert os.listdir(faulty.path) == ["g"]


def test_a_faulty_mount_fails_and_loses_writes(faulty: FaultyMount) -> None:
    (faulty.path / "f").write_bytes(bytes(4096))
    for action, number in (("eio", errno.EIO), ("enospc", errno.ENOSPC)):
        faulty.fail(action, operations=("write",), names="/f")
        with pytest.raises(OSError, match="Errno") as raised:
            write_direct(faulty.path / "f", 0, b"x" * 512)
        assert raised.value.errno == number
        assert faulty.hits == 1
    faulty.fail("lose", operations=("write",))
    write_direct(faulty.path / "f", 0, b"x" * 512)
    faulty.heal()
    assert read_direct(faulty.path / "f", 0, 512) == bytes(512)


def test_a_faulty_mount_tears_shifts_shortens_and_ages(faulty: FaultyMount) -> None:
    path = faulty.path / "f"
    path.write_bytes(bytes(4096))
    faulty.fail("torn:100", operations=("write",))
    write_direct(path, 0, b"x" * 512)
    faulty.heal()
    assert read_direct(path, 0, 512) == b"x" * 100 + bytes(412)
    faulty.fail("shift", operations=("write",))
    write_direct(path, 0, b"y" * 512)
    faulty.heal()
    assert read_direct(path, 0, 1024) == b"x" * 100 + bytes(412) + b"y" * 512
    faulty.fail("short")
    with pytest.raises(AssertionError):
        write_direct(path, 0, b"z" * 512)
    faulty.fail("stale")
    write_direct(path, 0, b"new" + bytes(509))
    assert read_direct(path, 0, 3) == b"zzz"
    faulty.heal()
    assert read_direct(path, 0, 3) == b"new"


def test_a_faulty_mount_dies_and_comes_back(faulty: FaultyMount) -> None:
    (faulty.path / "f").write_bytes(bytes(4096))
    inode = (faulty.path / "f").stat().st_ino
    faulty.die()
    with pytest.raises(OSError, match="Errno") as raised:
        read_direct(faulty.path / "f", 0, 512)
    assert raised.value.errno == errno.ENOTCONN
    faulty.restart()
    assert (faulty.path / "f").stat().st_ino == inode


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.support.disk import write_direct
write_direct(Path(sys.argv[2]), 0, b"z" * 512)
"""


def hanging_writer(path: Path) -> Child:
    return Child([sys.executable, "-c", WRITER, os.getcwd(), str(path)])


def test_a_hung_write_lands_when_the_fault_is_lifted(faulty: FaultyMount) -> None:
    (faulty.path / "f").write_bytes(bytes(4096))
    faulty.fail("hang", operations=("write",))
    writer = hanging_writer(faulty.path / "f")
    wait_for("the write to hang", lambda: faulty.hung == 1, within=10)
    os.kill(writer.pid, signal.SIGKILL)
    assert read_direct(faulty.backing / "f", 0, 512) == bytes(512)
    faulty.heal()
    wait_for("the late write", lambda: read_direct(faulty.backing / "f", 0, 1) == b"z", within=5)
    writer.kill()


def test_a_mount_is_gone_even_when_a_client_hangs_in_it(faulty: FaultyMount) -> None:
    (faulty.path / "f").write_bytes(bytes(4096))
    faulty.fail("hang")
    writer = hanging_writer(faulty.path / "f")
    wait_for("an operation to hang", lambda: faulty.hung > 0, within=10)
    faulty.close()
    assert writer.wait(within=10) != 0


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path) as path:
        filesystems.fill(path)
        with pytest.raises(OSError, match="No space left"):
            (path / "more").write_bytes(b"x" * 65536)


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    with (
        filesystems.read_only(source, tmp_path / "ro") as path,
        pytest.raises(OSError, match="Read-only"),
    ):
        (path / "f").write_bytes(b"y")
    assert (source / "f").read_bytes() == b"x"


def test_a_file_system_without_direct_io(tmp_path: Path) -> None:
    with filesystems.without_direct_io(tmp_path) as path:
        (path / "f").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="Invalid argument"):
            read_direct(path / "f", 0, 512)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_loop_device_has_the_sector_size_asked_for(tmp_path: Path, sector_size: int) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1024 * 1024))
    with filesystems.loop_device(image, sector_size=sector_size) as device:
        shown = subprocess.run(
            ["blockdev", "--getss", str(device)], check=True, capture_output=True, text=True
        )
        assert shown.stdout.strip() == str(sector_size)
