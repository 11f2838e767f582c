"""The commands that make a lockspace, join one and leave one: each point has a directory of its own.

The command runs under a filter that its children would inherit, so it must start no daemon: this proof
holds ``daemon.lock`` meanwhile, as a daemon would. Before the recovery it lets go.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.proofs.crashpoints.cases import Case
from tests.proofs.crashpoints.faults import BUSY, LEASE, NOT_JOINED, RUN, Point
from tests.proofs.crashpoints.world import (
    AREA_BYTES,
    JOIN_BOUND_SECONDS,
    SETTLE_BOUND_SECONDS,
    check_lockspace,
    check_resource,
)
from tests.support.disk import lockspace_path, read_delta, read_leader
from tests.support.programs import standing_process
from tests.support.sanlockhost import direct_init_lockspace
from tests.support.systemcalls import Run
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for
from vmlockctl.host.rundir import FileLock


def make_lockspace(lease_dir: Path, *, io_timeout: int) -> None:
    """By sanlock itself, which wants the file to be there."""
    lease_dir.mkdir()
    path = lockspace_path(lease_dir)
    path.write_bytes(bytes(AREA_BYTES))
    direct_init_lockspace(path, io_timeout=io_timeout)


class HostCase(Case):
    """One host, one lockspace, and another host that comes later."""

    made_by_other = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lease_dir = directory / "leases"
        self.host = VmHost(directory / "hostA", "hostA")
        self.other = VmHost(directory / "hostB", "hostB")
        self.disk = directory / "a.img"
        self.disk.write_bytes(bytes(4096))

    @property
    def places(self) -> Mapping[str, str]:
        return {LEASE: str(self.lease_dir), RUN: str(self.host.run_dir)}

    def prepare(self) -> None:
        pass

    def check_area(self) -> None:
        check_lockspace(self.lease_dir)

    def meet(self, point: Point) -> Run:
        lock = FileLock(str(self.host.run_dir / "daemon.lock"))
        lock.acquire()
        try:
            return super().meet(point)
        finally:
            lock.release(unlink=True)

    def run_again(self) -> None:
        result = self.host.call(*self.arguments, within=JOIN_BOUND_SECONDS)
        assert result.returncode == 0, f"run again: {result}"
        assert self.has_effect(), f"run again, exit 0 and no effect: {result}"
        check_lockspace(self.lease_dir)

    def other_acquires(self, host_id: int = 2) -> None:
        """Another host joins and acquires, without repair."""
        self.made_by_other = not lockspace_path(self.lease_dir).exists()
        if self.made_by_other:
            self.other.succeed("init-lockspace", self.lease_dir, "--io-timeout", "1")
        result = self.other.join(self.lease_dir, host_id, within=JOIN_BOUND_SECONDS)
        self.note_seconds(result.seconds)
        self.acquire_elsewhere()

    def acquire_elsewhere(self) -> None:
        """The other host acquires and releases, without repair."""
        with standing_process() as holder:
            wait = f"--wait={SETTLE_BOUND_SECONDS:g}"
            result = self.other.acquire(holder.pid, self.disk, options=[wait])
            assert result.returncode == 0, f"another host cannot acquire: {result}"
            assert check_resource(self.lease_dir, self.disk)
            result = self.other.release(holder.pid, self.disk)
            assert result.returncode == 0, result

    def recover(self, *, again_first: bool) -> None:
        if again_first:
            self.run_again()
        self.other_acquires()
        if not again_first and self.may_run_last:
            self.run_again()

    @property
    def may_run_last(self) -> bool:
        """Whether the command still has anything to say once another host has come."""
        return True

    def close(self) -> None:
        self.other.close()
        self.host.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class InitLockspace(HostCase):
    name = "init-lockspace"

    @property
    def arguments(self) -> list[str]:
        return ["init-lockspace", str(self.lease_dir), "--io-timeout", "1"]

    def has_effect(self) -> bool:
        return check_lockspace(self.lease_dir)


class InitForce(InitLockspace):
    """Over a lockspace of another io_timeout, whose hosts are all free."""

    name = "init-lockspace-force"

    def prepare(self) -> None:
        make_lockspace(self.lease_dir, io_timeout=2)

    @property
    def arguments(self) -> list[str]:
        return [*super().arguments, "--force"]

    def check_area(self) -> None:
        assert check_lockspace(self.lease_dir), "the lockspace is gone"
        assert read_leader(lockspace_path(self.lease_dir)).io_timeout in (1, 2)

    def has_effect(self) -> bool:
        return check_lockspace(self.lease_dir) and read_leader(lockspace_path(self.lease_dir)).io_timeout == 1

    @property
    def may_run_last(self) -> bool:
        return False  # hosts are alive in it then: it refuses


class Joining(HostCase):
    """A command after which this host is live."""

    def has_effect(self) -> bool:
        record = read_delta(self.lease_dir, 1) if check_lockspace(self.lease_dir) else None
        return record is not None and not record.is_free and record.resource == self.host.name

    def run_again(self) -> None:
        super().run_again()
        self.host.lease_dir = self.lease_dir
        own = self.directory / "own.img"
        own.write_bytes(bytes(4096))
        wait_for("our daemon", lambda: self.host.daemon_pid, within=SETTLE_BOUND_SECONDS)
        with standing_process() as holder:
            result = self.host.acquire(holder.pid, own)
            assert result.returncode == 0, f"joined, and cannot acquire: {result}"
            if self.other.lease_dir is not None:
                assert self.other.acquire(holder.pid, own).returncode == BUSY, "two owners"


class InitHost(Joining):
    name = "init-lockspace-host-id"

    @property
    def may_run_last(self) -> bool:
        return not self.made_by_other  # what another host made is joined with add-host

    @property
    def arguments(self) -> list[str]:
        return ["init-lockspace", str(self.lease_dir), "--io-timeout", "1", "--host-id", "1",
                "--host-name", self.host.name]  # fmt: skip


class AddHost(Joining):
    name = "add-host"

    def prepare(self) -> None:
        make_lockspace(self.lease_dir, io_timeout=1)

    @property
    def arguments(self) -> list[str]:
        return ["add-host", str(self.lease_dir), "--host-id", "1", "--host-name", self.host.name,
                "--io-timeout", "1"]  # fmt: skip


class RemoveHost(HostCase):
    """Its daemon runs: the command tells it to leave, and waits."""

    name = "remove-host"

    def prepare(self) -> None:
        self.host.create(self.lease_dir)
        self.host.wait_for_pair()

    def meet(self, point: Point) -> Run:
        return Case.meet(self, point)

    @property
    def arguments(self) -> list[str]:
        return ["remove-host", str(self.lease_dir)]

    def has_effect(self) -> bool:
        return read_delta(self.lease_dir, 1).is_free

    def run_again(self) -> None:
        """Succeed, or say that we are in no more; either way the host id is free."""
        result = self.host.call(*self.arguments)
        assert result.returncode in (0, NOT_JOINED), f"run again: {result}"
        wait_for("the host id to be free", self.has_effect, within=SETTLE_BOUND_SECONDS)

    def recover(self, *, again_first: bool) -> None:
        if again_first:
            self.run_again()
        self.other_acquires(host_id=1 if again_first else 2)
        if not again_first:
            self.run_again()


HOST_CASES: tuple[type[HostCase], ...] = (InitLockspace, InitForce, InitHost, AddHost, RemoveHost)
