"""Live migration of a real QEMU between two hosts: the lease passes by release and acquire, never both.

The destination may open the disk while it waits for the guest (``-incoming``, the CPUs stopped), but it runs
only with the lease; the source keeps it until its QEMU is gone. ``--lver`` names the version that the source
let go of: whoever was in between is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.disk import lease_is_free, lease_leader, lease_owner
from tests.support.fixtures import MakeHost
from tests.support.programs import Child, find_program
from tests.support.qemu import PROGRAM, Qemu, QemuStarter, drive, machine
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

pytestmark = [
    pytest.mark.real("qemu-system-x86_64", "qemu-img"),
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root"),
]

BUSY = 75


def lver_of(lease_dir: Path, disk: Path) -> int:
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    return leader.lver


def status_of(vm: Qemu) -> str:
    return str(vm.qmp("query-status")["status"])


def migrated(vm: Qemu) -> bool:
    status = vm.qmp("query-migrate").get("status")
    assert status not in ("failed", "cancelled"), vm.log
    return status == "completed"


class Migration(NamedTuple):
    """A guest that runs on A, and a QEMU on B that waits for it at the other end of the socket."""

    there: VmHost
    source: Qemu
    destination: Qemu
    socket: Path
    on_a: VmHost
    enter_a: list[str]

    def migrate(self) -> None:
        self.source.qmp("migrate", uri=f"unix:{self.socket}")
        wait_for("the migration", lambda: migrated(self.source), within=60)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[list[str]]:
    """The start of commands in a pid namespace of their own: A sees none of B's processes."""
    ready = tmp_path / "ready"
    script = "echo ready; exec sleep infinity"
    unshare = [find_program("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    with ready.open("wb") as output:
        child = Child([*unshare, "/bin/sh", "-c", script], stdout=output)
    try:
        wait_for("the namespace", lambda: ready.read_text() == "ready\n", within=10)
        [inside] = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        yield [find_program("nsenter"), f"--target={inside}", "--pid", "--mount"]
    finally:
        child.kill()


@pytest.fixture
def migration(
    elsewhere: list[str], make_host: MakeHost, qemu: QemuStarter, lease_dir: Path, disk: Path, tmp_path: Path
) -> Iterator[Migration]:
    here = VmHost(tmp_path / "hostA", "hostA")
    here.lease_dir, here.host_id = lease_dir, 1
    try:
        made = here.call(
            "init-lockspace", lease_dir, "--io-timeout", "1", "--host-id", "1", "--host-name", "hostA",
            prefix=elsewhere,
        )  # fmt: skip
        assert made.returncode == 0, made
        there = make_host("hostB")
        there.join(lease_dir, 2)
        run = [*elsewhere, *OUR_COMMAND, "run", "--", find_program(PROGRAM)]
        source = qemu(*machine(stopped=False), *drive(disk), host=here, command=run).wait_ready()
        socket = tmp_path / "migration"
        waiting = [*machine(), *drive(disk), "-incoming", f"unix:{socket}"]
        yield Migration(there, source, qemu(*waiting).wait_ready(), socket, here, elsewhere)
    finally:
        here.crash_everything()  # not close: the pids in its files are those of the namespace


def test_the_lease_is_handed_over_with_the_guest(migration: Migration, lease_dir: Path, disk: Path) -> None:
    there, source, destination = migration[:3]
    held = lver_of(lease_dir, disk)
    assert there.acquire(destination.pid, disk).returncode == BUSY, "the guest runs on A"

    migration.migrate()
    assert status_of(source) == "postmigrate"
    assert status_of(destination) != "running"
    assert lease_owner(lease_dir, disk) == 1
    assert there.acquire(destination.pid, disk).returncode == BUSY, "the source could go on: it is not gone"

    assert source.quit() == 0
    wait_for("the release on A", lambda: lease_is_free(lease_dir, disk), within=5)
    assert status_of(destination) != "running"
    granted = there.acquire(destination.pid, disk, options=["--lver", str(held)])
    assert granted.returncode == 0, granted
    assert (lease_owner(lease_dir, disk), lver_of(lease_dir, disk)) == (2, held + 1)
    destination.qmp("cont")
    assert status_of(destination) == "running"
    assert destination.quit() == 0
    wait_for("the release on B", lambda: lease_is_free(lease_dir, disk), within=5)


def test_somebody_who_had_the_disk_in_between_is_noticed(
    migration: Migration, lease_dir: Path, disk: Path
) -> None:
    """What the migrated guest remembers of its disk may be wrong then: it is not continued."""
    there, source, destination = migration[:3]
    held = lver_of(lease_dir, disk)
    migration.migrate()
    assert source.quit() == 0
    wait_for("the release on A", lambda: lease_is_free(lease_dir, disk), within=5)
    between = migration.on_a.call("run", "--disk", disk, "--", "true", prefix=migration.enter_a)
    assert between.returncode == 0, between
    wait_for("the release on A", lambda: lease_is_free(lease_dir, disk), within=5)
    assert lver_of(lease_dir, disk) == held + 1
    late = there.acquire(destination.pid, disk, options=["--lver", str(held)])
    assert late.returncode == BUSY, late
    assert lease_is_free(lease_dir, disk)
    assert destination.quit() == 0


def test_a_migration_that_fails_leaves_the_lease_with_the_source(
    migration: Migration, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    there, source, destination = migration[:3]
    held = lease_leader(lease_dir, disk)
    source.qmp("migrate", uri=f"unix:{tmp_path}/nobody-listens")
    wait_for("the failure", lambda: source.qmp("query-migrate").get("status") == "failed", within=20)
    assert status_of(source) == "running"
    assert there.acquire(destination.pid, disk).returncode == BUSY
    assert lease_leader(lease_dir, disk) == held
    assert source.quit() == 0
