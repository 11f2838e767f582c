"""One host of ours and one real sanlock daemon in one lockspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.disk import lease_leader, resource_name, resource_path
from tests.support.programs import Child, Result
from tests.support.sanlockhost import SanlockHolder, SanlockHost, direct_init_resource, resource_spec
from tests.support.vmhost import VmHost

MIB = 1024 * 1024
OURS, THEIRS = 1, 2  # host ids

HELD_BY_ANOTHER_HOST = -243
HELD_SHARED = -11


class Pair(NamedTuple):
    ours: VmHost
    theirs: SanlockHost
    lease_dir: Path

    def our_acquire(self, holder: Child, disk: Path, *, shared: bool) -> Result:
        return self.ours.acquire(holder.pid, disk, options=["--shared"] if shared else [])

    def our_to_shared(self, holder: Child, disk: Path) -> Result:
        return self.ours.call("release", "--pid", str(holder.pid), "--to-shared", disk)

    def their_convert(self, holder: SanlockHolder, disk: Path, *, shared: bool) -> bool:
        """``sanlock client convert`` for the process that holds the lease."""
        spec = resource_spec(self.lease_dir, disk, shared=shared)
        return self.theirs.client("convert", "-r", spec, "-p", str(holder.pid)).returncode == 0

    def lver(self, disk: Path) -> int:
        leader = lease_leader(self.lease_dir, disk)
        assert leader is not None
        return leader.lver

    def format_their_lease(self, disk: Path) -> None:
        """The lease of a disk, made by sanlock."""
        path = resource_path(self.lease_dir, disk)
        path.write_bytes(bytes(MIB))
        direct_init_resource(path, resource=resource_name(disk))


@contextmanager
def make_pair(directory: Path) -> Iterator[Pair]:
    ours, theirs = VmHost(directory / "ours", "hostA"), SanlockHost(directory / "theirs", "sanlockhost")
    lease_dir = directory / "leases"
    try:
        ours.create(lease_dir, OURS)
        theirs.start()
        theirs.join(lease_dir, THEIRS)
        yield Pair(ours, theirs, lease_dir)
    finally:
        ours.close()
        theirs.close()
