"""Errors of the storage (faults.md 2b): tried again until the deadline, and never longer.

Each is met by a host that holds a lease for a process. For a moment it costs nothing; when it stays,
the process is gone before anybody else may take over, and not in a hurry either.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.host.faults.stage import (
    CYCLE_SECONDS,
    EXPIRY_SECONDS,
    IN_TIME,
    LOCKSPACE_ONLY,
    Stage,
    assert_released,
    goes_on,
    gone_after,
)
from tests.support import filesystems
from tests.support.disk import (
    LOCKSPACE_NAME,
    lease_owner,
    read_leader,
    watch_delta,
)
from tests.support.fusefs import FaultyMount
from tests.support.programs import Child
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

ERRORS = ("eio", "enospc", "edquot", "erofs", "estale", "enotconn", "ebadf", "eintr")
STORAGE = 74

EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2


def fail(stage: Stage, error: str) -> None:
    """Begin an error in whatever touches the data. A short read of a leader would be damage, so not there."""
    names = LOCKSPACE_ONLY if error == "short" else "*"
    stage.mount.fail(error, operations=("open", "read", "write", "fsync"), names=names)


@pytest.mark.long
@pytest.mark.parametrize("error", [*ERRORS, "short"])
def test_an_error_for_a_moment_costs_nothing(stage: Stage, holder: Child, disk: Path, error: str) -> None:
    stage.claim(holder, disk)
    with goes_on(stage.behind, holder):
        fail(stage, error)
        wait_for("a renewal that meets the error", lambda: stage.mount.hits >= 1, within=10)
        stage.mount.heal()
    assert_released(stage.host, holder, stage.behind, disk)


@pytest.mark.long
@pytest.mark.parametrize("error", [*ERRORS, "short"])
def test_an_error_that_stays_stops_the_process_in_time(
    stage: Stage, holder: Child, disk: Path, error: str
) -> None:
    stage.claim(holder, disk)
    with watch_delta(stage.behind, 1) as renewals:
        renewals.wait_for_change(within=10)
        fail(stage, error)
        seconds = gone_after(holder, renewals.last.seen, within=IN_TIME)
        assert seconds > EXPIRY_SECONDS - CYCLE_SECONDS, "the lease was good for longer"
        assert renewals.last.leader.owner_generation == 1
    assert lease_owner(stage.behind, disk) == 1, "nobody could release it, so nobody did"


@pytest.mark.long
def test_a_host_comes_back_in_the_next_generation_when_the_error_is_over(
    stage: Stage, holder: Child, disk: Path
) -> None:
    stage.claim(holder, disk)
    fail(stage, "eio")
    holder.wait(within=EXPIRY_SECONDS + 10)
    stage.mount.heal()
    wait_for(
        "the host to be live again",
        lambda: stage.host.status()["this_host"]["state"] == "live",
        within=30,
        every_seconds=0.2,
    )
    assert stage.host.generation == 2


@pytest.mark.parametrize("error", ["eio", "enospc", "estale", "short"])
def test_an_error_in_an_acquire_is_told_and_leaves_the_lease_to_be_had(
    stage: Stage, holder: Child, disk: Path, error: str
) -> None:
    stage.claim(holder, disk)
    assert_released(stage.host, holder, stage.behind, disk)
    before = read_leader(stage.behind / disk_file(stage, disk))
    stage.mount.fail(error, operations=("write",), names=f"*/{disk_file(stage, disk)}")
    refused = stage.host.acquire(holder.pid, disk)
    assert refused.returncode in (STORAGE, 73), refused
    assert "Traceback" not in refused.stderr
    stage.mount.heal()
    assert read_leader(stage.behind / disk_file(stage, disk)) == before
    granted = stage.host.acquire(holder.pid, disk, options=["--wait=10"])
    assert granted.returncode == 0, granted


def disk_file(stage: Stage, disk: Path) -> str:
    [name] = [path.name for path in stage.behind.iterdir() if path.name != LOCKSPACE_NAME]
    return name


# -- the file system itself ---------------------------------------------------------------------------


@pytest.mark.long
def test_a_file_system_that_dies_for_a_moment_costs_nothing(stage: Stage, holder: Child, disk: Path) -> None:
    """Its server is killed (ENOTCONN) and comes back under the same path: the same files are opened again."""
    stage.claim(holder, disk)
    with goes_on(stage.behind, holder) as renewals:
        stage.mount.die()
        dead = renewals.last
        wait_for("a missed renewal", lambda: time.monotonic() > dead.seen + 1.5 * CYCLE_SECONDS, within=10)
        assert renewals.last == dead
        stage.mount.restart()
    assert_released(stage.host, holder, stage.behind, disk)


@pytest.mark.long
def test_a_file_system_that_is_shut_down_stops_the_process_in_time(
    host_alone: VmHost, holder: Child, tmp_path: Path, disk: Path
) -> None:
    """The shutdown ioctl of ext4: every write, every open fails with EIO from here on (a lost device)."""
    with filesystems.ext4(tmp_path) as mount:
        host_alone.create(mount / "leases")
        assert host_alone.acquire(holder.pid, disk).returncode == 0
        with watch_delta(mount / "leases", 1) as renewals:
            last = renewals.wait_for_change(within=10)
        shut_down(mount)
        gone_after(holder, last.seen, within=IN_TIME)
        assert host_alone.daemon_pid, "the daemon lives on"
        host_alone.close()


def shut_down(mount: Path) -> None:
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
    finally:
        os.close(fd)


@pytest.mark.long
def test_a_file_system_that_turns_read_only_stops_the_process_in_time(
    host_alone: VmHost, holder: Child, tmp_path: Path, disk: Path
) -> None:
    """What a kernel does to a damaged file system; writable again, the host joins again by itself."""
    with filesystems.ext4(tmp_path) as mount:
        host_alone.create(mount / "leases")
        assert host_alone.acquire(holder.pid, disk).returncode == 0
        with watch_delta(mount / "leases", 1) as renewals:
            renewals.wait_for_change(within=10)
            wait_for("the remount", lambda: remount(mount, "ro"), within=5)
            gone_after(holder, renewals.last.seen, within=IN_TIME)
            assert remount(mount, "rw")
            renewals.wait_for("a new generation", lambda record: record.owner_generation == 2, within=30)
        host_alone.close()


def remount(mount: Path, how: str) -> bool:
    """False while a file is open for writing there."""
    return (
        subprocess.run(
            ["mount", "-o", f"remount,{how}", str(mount)], check=False, capture_output=True
        ).returncode
        == 0
    )


# -- a block device that fails ------------------------------------------------------------------------


@pytest.mark.long
def test_a_block_device_that_fails_and_heals(faulty: FaultyMount, host_alone: VmHost, tmp_path: Path) -> None:
    """A loop device over a faulty file: in place of device mapper's error target, which needs a module."""
    image = faulty.path / "lun"
    (faulty.backing / "lun").write_bytes(bytes(4 << 20))
    with filesystems.loop_device(image, sector_size=512) as device:
        target = f"ls:0:{device}:0"
        host_alone.succeed(
            "init-lockspace", target, "--io-timeout", "1", "--host-id", "1", "--host-name", "hostA"
        )
        renewed = host_alone.json("status", "-L", target)["this_host"]["expires_in"]
        faulty.fail("eio", operations=("write",))
        wait_for("a failing renewal", lambda: faulty.hits >= 1, within=10)
        faulty.heal()
        wait_for(
            "a renewal after it",
            lambda: host_alone.json("status", "-L", target)["this_host"]["expires_in"] >= renewed,
            within=10,
        )
        assert read_leader(faulty.backing / "lun").owner_generation == 1
        faulty.fail("eio", operations=("write",))
        wait_for(
            "the loss of the host lease",
            lambda: host_alone.json("status", "-L", target)["this_host"]["state"] != "live",
            within=EXPIRY_SECONDS + 5,
            every_seconds=0.2,
        )
        faulty.heal()
        wait_for(
            "the next generation",
            lambda: read_leader(faulty.backing / "lun").owner_generation == 2,
            within=30,
            every_seconds=0.2,
        )
        host_alone.close()
