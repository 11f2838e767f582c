"""Who is who: reboots, clones, hosts of one name or one id, and pids that are used again (faults.md 2b).

A reboot is another boot id (bind-mounted) and smaller clocks (a time namespace) for the daemon of a host.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.faults.stage import CYCLE_SECONDS, goes_on
from tests.support.disk import (
    lease_is_free,
    lease_owner,
    read_delta,
    watch_delta,
)
from tests.support.fixtures import MakeHost
from tests.support.programs import Child, find_program, kill_together, processes_of, run_command
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import until, wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

BUSY = 75
WATCH_SECONDS = 3 * 1  # of our own record, before it is taken for that of an ended boot

IN_ANOTHER_BOOT = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


def another_boot(directory: Path) -> list[str]:
    """The start of a command that runs on this machine after a reboot: 100 s up, and another boot id."""
    boot_id = directory / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    back = str(int(100 - time.clock_gettime(time.CLOCK_MONOTONIC)))
    return [
        find_program("unshare"), "--mount", "--time", "--monotonic", back, "--boottime", back,
        "/bin/sh", "-c", IN_ANOTHER_BOOT, str(boot_id),
    ]  # fmt: skip


# -- reboot -------------------------------------------------------------------------------------------


def test_a_rebooted_host_joins_again_and_has_its_old_leases_at_once(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """Its own record is watched for 3 io_timeouts, and a smaller timestamp is no error."""
    assert host.acquire(holder.pid, disk).returncode == 0
    with watch_delta(lease_dir, 1) as renewals:
        host.crash_everything()
        holder.kill()
        before = renewals.last
        booted = time.monotonic()
        rebooted = another_boot(tmp_path)
        host.start("daemon", command=[*rebooted, *OUR_COMMAND], log="daemon.log")
        joined = renewals.wait_for("the next generation", lambda r: r.owner_generation == 2, within=30)
        assert joined.seen - booted >= WATCH_SECONDS
        assert joined.leader.timestamp < before.leader.timestamp
        renewals.wait_for("renewals", lambda r: r.timestamp > joined.leader.timestamp, within=10)
    assert lease_owner(lease_dir, disk) == 1, "of an earlier generation, so nobody's"
    result = host.call("run", "--wait=5", "--disk", disk, "--", "true", prefix=rebooted)
    assert result.returncode == 0, result
    wait_for("the release", lambda: lease_is_free(lease_dir, disk), within=5)


def test_a_rebooted_host_whose_record_is_renewed_is_a_clone(
    host: VmHost, make_host: MakeHost, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    """A copied machine starts beside its original: it must not take "our name, another boot" for its own."""
    assert host.acquire(holder.pid, disk).returncode == 0
    clone = make_host("clone")
    for name in ("state", "__LIBVIRT__DISKS__"):
        shutil.copytree(host.run_dir / name, clone.run_dir / name)
    with goes_on(lease_dir, holder) as renewals:
        log = clone.start("daemon", command=[*another_boot(tmp_path), *OUR_COMMAND], log="daemon.log")
        said = clone.run_dir / "daemon.log"
        wait_for("the clone to see it", lambda: "is being renewed" in said.read_text(), within=20)
        for _ in until(time.monotonic() + 3 * CYCLE_SECONDS):
            assert renewals.last.leader.owner_generation == 1
        assert log.running


# -- clones and collisions ------------------------------------------------------------------------------


@contextmanager
def machine(directory: Path, name: str) -> Iterator[list[str]]:
    """The start of commands on a machine of this name, with an empty /run and /var/lib of its own.

    Its machine id is everybody's: machines that were cloned from one image.
    """
    mark = f"MACHINE_OF_TEST={directory}"
    script = (
        f"mount -t tmpfs none /run && mount -t tmpfs none /var/lib && hostname {name} && "
        "echo ready && exec sleep infinity"
    )
    with (directory / "ready").open("wb") as output:
        hold = Child([find_program("unshare"), "--mount", "--uts", "/bin/sh", "-c", script], stdout=output)
    try:
        wait_for("the machine", lambda: (directory / "ready").read_text() == "ready\n", within=10)
        namespaces = f"/proc/{hold.pid}/ns"
        enter = [find_program("nsenter"), f"--mount={namespaces}/mnt", f"--uts={namespaces}/uts"]
        unset = [word for key in os.environ if key.startswith("VMLOCKCTL_") for word in ("-u", key)]
        yield [*enter, "env", *unset, mark, *OUR_COMMAND]
    finally:
        while pids := processes_of(mark):
            kill_together(pids)
        hold.kill()


def test_cloned_machines_do_not_share_a_host_id(lease_dir: Path, tmp_path: Path) -> None:
    """One node name and one machine id make one host name; the record that is renewed tells them apart."""
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
    with machine(directories[0], "twin") as one, machine(directories[1], "twin") as two:
        timeout = ["--io-timeout", "1"]
        first = run_command([*one, "init-lockspace", str(lease_dir), "--host-id", "1", *timeout])
        assert first.returncode == 0, first
        name = read_delta(lease_dir, 1).resource
        assert name.startswith("twin.")
        with watch_delta(lease_dir, 1) as renewals:
            second = run_command([*two, "add-host", str(lease_dir), "--host-id", "1", *timeout])
            assert second.returncode == BUSY, second
            assert name in second.stderr
            third = run_command([*two, "add-host", str(lease_dir), "--host-id", "2", *timeout])
            assert third.returncode == 0, third
            assert {seen.leader.owner_generation for seen in renewals.sightings} == {1}


def test_of_two_hosts_that_claim_one_id_at_once_one_gets_it(
    make_host: MakeHost, host: VmHost, lease_dir: Path
) -> None:
    """Two machines that read the free record in the same moment, again and again."""
    for number in range(2, 6):
        rivals = [make_host(f"host{number}{letter}") for letter in "ab"]
        children = [
            rival.start(
                "add-host", lease_dir, "--host-id", str(number), "--host-name", rival.name,
                "--io-timeout", "1", log="join.log",
            )
            for rival in rivals
        ]  # fmt: skip
        codes = [child.wait(within=40) for child in children]
        assert sorted(codes) in ([0, BUSY], [BUSY, BUSY]), codes
        if 0 in codes:
            assert read_delta(lease_dir, number).resource == rivals[codes.index(0)].name


# -- pids -----------------------------------------------------------------------------------------------

REUSED = """
import os, signal, subprocess, sys, time
run_dir, lease_dir, disk = sys.argv[1:]
os.environ.update(VMLOCKCTL_RUN_DIR=run_dir, VMLOCKCTL_LOCKSPACE=lease_dir)
PID = 4242

def start():
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(PID - 1))
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(1)
    assert child == PID, child

def call(*words):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write("10000")  # far from the pid that matters
    return subprocess.run([sys.executable, "-m", "vmlockctl", *words], timeout=60).returncode

assert call("init-lockspace", lease_dir, "--io-timeout", "1", "--host-id", "1", "--host-name", "h") == 0
daemon = int(open(run_dir + "/daemon.pid").read())
start()
assert call("acquire", "--pid", str(PID), disk) == 0
os.kill(daemon, signal.SIGSTOP)
os.kill(PID, signal.SIGKILL)
os.waitpid(PID, 0)
time.sleep(0.05)  # into another clock tick
start()
os.kill(daemon, signal.SIGCONT)
deadline = time.monotonic() + 10
while os.path.exists(f"{run_dir}/__LIBVIRT__DISKS__/claims") and any(
    name.endswith(".json") for name in os.listdir(f"{run_dir}/__LIBVIRT__DISKS__/claims")
):
    assert time.monotonic() < deadline, "the lease of a process that is gone was kept for its successor"
    time.sleep(0.02)
assert call("release", "--pid", str(PID), disk) == 66  # not held by it
os.kill(PID, 0)
assert os.waitpid(PID, os.WNOHANG) == (0, 0), "the successor was killed"
print("done")
"""


def test_a_pid_that_is_used_again_is_another_process(lease_dir: Path, disk: Path, tmp_path: Path) -> None:
    """In a pid namespace: the daemon sleeps while its VM ends and somebody else gets the number."""
    result = run_command(
        [find_program("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child", OUR_COMMAND[0], "-c",
         REUSED, str(tmp_path / "run"), str(lease_dir), str(disk)]
    )  # fmt: skip
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["done"]), result
    assert lease_is_free(lease_dir, disk)
