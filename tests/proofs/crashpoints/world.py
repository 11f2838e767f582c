"""The hosts around a command under fault: ours, another of ours, and a real sanlock, in one lockspace.

Host 1 runs the commands; 2 (vmlockctl) and 3 (sanlock) are the others, which must be able to acquire
afterwards; 4 joined, held a lease and left, so a lease of its is a dead owner's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

from tests.support.disk import lease_owner, lockspace_path, resource_name, resource_path
from tests.support.programs import standing_process
from tests.support.sanlockhost import SanlockHost, resource_spec, sanlock_direct
from tests.support.vmhost import VmHost

AREA_BYTES = 1024 * 1024

# What a daemon may take to settle a claim that a dead command left: it looks once a second, tries again
# after a renewal interval, and the machine is busy.
SETTLE_BOUND_SECONDS = 10.0

# A host that joins over the record of a host that may have died: 8N + 60 + 7N with io_timeout 1, and the
# time of the command itself.
JOIN_BOUND_SECONDS = 8 + 60 + 7 + SETTLE_BOUND_SECONDS


class World:
    """One lease directory with its hosts; the points of a worker use it one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lease_dir = directory / "leases"
        self.host = VmHost(directory / "hostA", "hostA")
        self.other = VmHost(directory / "hostB", "hostB")
        self.sanlock: Optional[SanlockHost] = None
        self.dead_disk = directory / "dead.img"
        self._dead_lease = b""

    def start(self, *, alone: bool = False) -> World:
        """``alone``: host 1 only, which needs no wait."""
        self.host.create(self.lease_dir, 1)
        if alone:
            return self
        self.other.join(self.lease_dir, 2)
        self.sanlock = SanlockHost(self.directory / "sanlock", "sanlockhost")
        self.sanlock.start()
        self.sanlock.join(self.lease_dir, 3)
        return self

    def close(self) -> None:
        if self.sanlock is not None:
            self.sanlock.close()
        self.other.close()
        self.host.close()

    def put_dead_owners_lease(self) -> Path:
        """The disk of a lease that host 4 held when it left; as it was each time."""
        path = resource_path(self.lease_dir, self.dead_disk)
        if not self._dead_lease:
            self.dead_disk.write_bytes(bytes(4096))
            host = VmHost(self.directory / "hostD", "hostD")
            try:
                host.join(self.lease_dir, 4)
                with standing_process() as holder:
                    assert host.acquire(holder.pid, self.dead_disk).returncode == 0
                    self._dead_lease = path.read_bytes()
                    assert host.release(holder.pid, self.dead_disk).returncode == 0
                host.succeed("remove-host", self.lease_dir)
            finally:
                host.close()
        path.write_bytes(self._dead_lease)
        return self.dead_disk

    # -- what must hold ---------------------------------------------------------------------------------

    def other_acquires(self, disk: Path, *, with_sanlock: bool) -> float:
        """Another host acquires and releases, without any repair; return the seconds it took."""
        path = resource_path(self.lease_dir, disk)
        started = time.monotonic()
        if with_sanlock and path.exists():
            self._sanlock_acquires(disk, started + SETTLE_BOUND_SECONDS)
        else:
            self._vmlockctl_acquires(disk)
        check_resource(self.lease_dir, disk)
        return time.monotonic() - started

    def _sanlock_acquires(self, disk: Path, deadline: float) -> None:
        assert self.sanlock is not None
        while True:
            answer, holder = self.sanlock.acquire(self.lease_dir, disk)
            if answer == 0:
                break
            assert time.monotonic() < deadline, f"sanlock still gets {answer} for the lease"
            time.sleep(0.05)
        assert lease_owner(self.lease_dir, disk) == 3
        self.sanlock.release(holder)

    def _vmlockctl_acquires(self, disk: Path) -> None:
        with standing_process() as holder:
            wait = f"--wait={SETTLE_BOUND_SECONDS:g}"
            result = self.other.acquire(holder.pid, disk, options=[wait])
            assert result.returncode == 0, f"another host cannot acquire: {result}"
            assert lease_owner(self.lease_dir, disk) == 2
            result = self.other.release(holder.pid, disk)
            assert result.returncode == 0, result


def check_resource(lease_dir: Path, disk: Path) -> bool:
    """A lease file that is there is whole, and real sanlock reads it. False where there is none."""
    path = resource_path(lease_dir, disk)
    if not path.exists():
        return False
    assert path.stat().st_size == AREA_BYTES, f"{path}: half made: {path.stat().st_size} bytes"
    result = sanlock_direct("read_leader", "-r", resource_spec(lease_dir, disk))
    assert result.returncode == 0, f"sanlock cannot read the leader: {result}"
    assert resource_name(disk) in result.stdout, result
    result = sanlock_direct("dump", str(path))
    assert result.returncode == 0, result
    return True


def check_lockspace(lease_dir: Path) -> bool:
    """A lockspace that is there is whole, and real sanlock reads its records. False where there is none."""
    path = lockspace_path(lease_dir)
    if not path.exists():
        return False
    assert path.stat().st_size == AREA_BYTES, f"{path}: half made: {path.stat().st_size} bytes"
    for host_id in (1, 2, 2000):
        result = sanlock_direct("read_leader", "-s", f"{path.name}:{host_id}:{path}:0")
        assert result.returncode == 0, f"sanlock cannot read the record of host id {host_id}: {result}"
    result = sanlock_direct("dump", str(path))
    assert result.returncode == 0, result
    return True
