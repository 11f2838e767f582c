"""A host that dies whole, with its daemons, while a command of its is inside a ballot.

Nobody settles anything then: another host takes the lease when the dead one has been silent for
``host_dead_seconds``, and no repair is needed. Its bound is 8N + 60 + 7N, N the io_timeout.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Optional

from tests.proofs.crashpoints.faults import FAULTS, LEASE, RUN, Point
from tests.proofs.crashpoints.world import SETTLE_BOUND_SECONDS, check_resource
from tests.support.disk import lease_owner
from tests.support.programs import standing_process
from tests.support.systemcalls import Call, run_supervised
from tests.support.vmhost import OUR_COMMAND, VmHost
from vmlockctl.lease.timeouts import host_dead_seconds

BOUND_SECONDS = host_dead_seconds(1) + 7

# Before the second write of our dblock, before the leader, and after it: what may be left of a ballot. The
# first sector that is written is the first of our dblock.
SECTOR_WRITES = (2, 3, 4)


def _is_sector_write(call: Call) -> bool:
    return call.place == LEASE and call.is_write and call.size <= 4096


class WholeHost:
    """One host that dies before the ``number``-th sector write of an acquire, and one that comes after it."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.seconds = 0.0
        self.failure: Optional[BaseException] = None
        self._directory = directory
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.failure is not None:
            raise AssertionError(f"killed before sector write {self.number}") from self.failure

    def _run(self) -> None:
        lease_dir, disk = self._directory / "leases", self._directory / "a.img"
        disk.write_bytes(bytes(4096))
        host = VmHost(self._directory / "hostA", "hostA")
        other = VmHost(self._directory / "hostB", "hostB")
        try:
            host.create(lease_dir, 1)
            other.join(lease_dir, 2)
            self._die(host, lease_dir, disk)
            self._take_over(other, lease_dir, disk)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.failure = error
        finally:
            other.close()
            host.close()

    def _die(self, host: VmHost, lease_dir: Path, disk: Path) -> None:
        point = Point(FAULTS["kill"], self.number, only=_is_sector_write)
        host.wait_for_pair()
        with standing_process() as holder:
            run_supervised(
                [*OUR_COMMAND, "acquire", "--pid", str(holder.pid), str(disk)],
                environment=host.environment,
                places={LEASE: str(lease_dir), RUN: str(host.run_dir)},
                decide=point,
            )
            host.crash_everything()
        assert point.hit is not None
        assert check_resource(lease_dir, disk)

    def _take_over(self, other: VmHost, lease_dir: Path, disk: Path) -> None:
        with standing_process() as holder:
            wait = f"--wait={BOUND_SECONDS + SETTLE_BOUND_SECONDS:g}"
            result = other.acquire(holder.pid, disk, options=[wait], within=2 * BOUND_SECONDS)
        assert result.returncode == 0, result
        assert lease_owner(lease_dir, disk) == 2
        assert check_resource(lease_dir, disk)
        self.seconds = result.seconds
        assert result.seconds <= BOUND_SECONDS, result


def run_all(directory: Path) -> list[WholeHost]:
    """All of them side by side: they wait most of the time."""
    hosts = []
    for number in SECTOR_WRITES:
        place = directory / f"dies{number}"
        place.mkdir()
        hosts.append(WholeHost(place, number))
    for host in hosts:
        host.join()
    return hosts
