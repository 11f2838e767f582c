"""Processes that hang in the kernel (state D), where no signal reaches them (faults.md 2b and finding 4).

A frozen file system (fsfreeze) holds every writer in state D, real and unkillable, until it is thawed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.faults.stage import CYCLE_SECONDS, EXPIRY_SECONDS, IN_TIME, LOCKSPACE_ONLY, Stage, gone_after
from tests.support import filesystems
from tests.support.disk import lease_is_free, lease_leader, lease_owner, watch_delta
from tests.support.programs import Child, find_program, is_running, process_state, send_signal
from tests.support.vmhost import VmHost
from tests.support.waiting import until, wait_for

pytestmark = [pytest.mark.real("fsfreeze", "mkfs.ext4"), pytest.mark.long]

# Ready, then one write that hangs: a VM with I/O on its way.
WRITER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
fd = os.open(sys.argv[1], os.O_WRONLY)
signal.sigwait([signal.SIGUSR1])
os.pwrite(fd, b"x" * 4096, 0)
os.fsync(fd)
"""


@contextmanager
def frozen(mount: Path) -> Iterator[None]:
    fsfreeze = find_program("fsfreeze")
    subprocess.run([fsfreeze, "--freeze", str(mount)], check=True)
    try:
        yield
    finally:
        subprocess.run([fsfreeze, "--unfreeze", str(mount)], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with filesystems.ext4(tmp_path) as mount:
        yield mount


@pytest.fixture
def host_on_ext4(ext4: Path, host_alone: VmHost) -> Iterator[VmHost]:
    host_alone.create(ext4 / "leases")
    yield host_alone
    host_alone.close()


def test_the_process_is_gone_in_time_when_renewals_hang_in_state_d(
    host_on_ext4: VmHost, ext4: Path, holder: Child, disk: Path
) -> None:
    """The timer, the pidfds and the signals are in another thread than the I/O."""
    assert host_on_ext4.acquire(holder.pid, disk).returncode == 0
    with watch_delta(ext4 / "leases", 1) as renewals:
        renewals.wait_for_change(within=10)
        with frozen(ext4):
            gone_after(holder, renewals.last.seen, within=IN_TIME)
            threads = Path(f"/proc/{host_on_ext4.daemon_pid}/task").iterdir()
            assert "D" in [process_state_of_thread(thread) for thread in threads]
        renewals.wait_for("the next generation", lambda record: record.owner_generation == 2, within=30)


def process_state_of_thread(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_daemon_that_is_killed_while_it_hangs_is_replaced_in_time(
    host_on_ext4: VmHost, ext4: Path, holder: Child, disk: Path
) -> None:
    """It cannot be reaped, and keeps its locks in the kernel; its standby stops the process all the same."""
    daemon, standby = host_on_ext4.wait_for_pair()
    assert host_on_ext4.acquire(holder.pid, disk).returncode == 0
    with watch_delta(ext4 / "leases", 1) as renewals:
        renewals.wait_for_change(within=10)
        with frozen(ext4):
            wait_for("a hanging renewal", lambda: hangs(daemon), within=10)
            send_signal(daemon, signal.SIGKILL)
            gone_after(holder, renewals.last.seen, within=IN_TIME + 2 * CYCLE_SECONDS)
        renewals.wait_for("the next generation", lambda record: record.owner_generation == 2, within=30)
    assert host_on_ext4.daemon_pid == standby


def hangs(pid: int) -> bool:
    return "D" in [process_state_of_thread(task) for task in Path(f"/proc/{pid}/task").iterdir()]


@contextmanager
def writer_in_state_d(mount: Path) -> Iterator[Child]:
    """A process with a write on its way into a frozen file system; a SIGKILL does not end it."""
    image = mount / "disk.img"
    image.write_bytes(bytes(1 << 20))
    child = Child([sys.executable, "-c", WRITER, str(image)])
    try:
        wait_for("its open disk", lambda: has_open(child.pid, image), within=10)
        with frozen(mount):
            send_signal(child.pid, signal.SIGUSR1)
            wait_for("state D", lambda: process_state(child.pid) == "D", within=10)
            yield child
        child.wait(within=10)
    finally:
        child.kill()


def has_open(pid: int, path: Path) -> bool:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry) == str(path):
                return True
    return False


def test_a_process_that_survives_sigkill_keeps_its_lease(
    host: VmHost, ext4: Path, lease_dir: Path, disk: Path
) -> None:
    """Stopped means seen to be gone: what it has in the kernel may still be written."""
    with writer_in_state_d(ext4) as writer:
        image = ext4 / "disk.img"
        assert host.acquire(writer.pid, image).returncode == 0
        leader = lease_leader(lease_dir, image)
        send_signal(writer.pid, signal.SIGKILL)
        for _ in until(time.monotonic() + 2 * CYCLE_SECONDS):
            assert is_running(writer.pid)
            assert lease_leader(lease_dir, image) == leader
        refused = host.call("release", "--pid", str(writer.pid), image)
        assert refused.returncode == 77, refused
    wait_for("the release after its end", lambda: lease_is_free(lease_dir, image), within=5)


def test_a_host_does_not_join_again_before_a_stuck_process_is_gone(
    stage: Stage, ext4: Path, disk: Path
) -> None:
    """Its host lease is lost, its process cannot be stopped: no next generation until it is gone."""
    with writer_in_state_d(ext4) as writer:
        stage.claim(writer, ext4 / "disk.img")
        stage.mount.fail("eio", operations=("write",), names=LOCKSPACE_ONLY)
        wait_for(
            "the loss of the host lease",
            lambda: stage.host.status()["this_host"]["state"] == "lost",
            within=EXPIRY_SECONDS + 5,
            every_seconds=0.2,
        )
        stage.mount.heal()
        with watch_delta(stage.behind, 1) as renewals:
            lost = renewals.last
            for _ in until(time.monotonic() + EXPIRY_SECONDS):
                assert is_running(writer.pid)
                assert renewals.last == lost
    wait_for("the next generation", lambda: stage.host.generation == 2, within=30)
    assert lease_owner(stage.behind, ext4 / "disk.img") == 1
