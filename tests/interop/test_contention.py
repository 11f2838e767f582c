"""Four hosts of ours and one real sanlock fight for one disk around a counter that nothing else protects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk import lease_leader, read_delta, resource_name, resource_path
from tests.support.programs import Child
from tests.support.qemu import make_disk
from tests.support.sanlockhost import SanlockHost, direct_init_resource, resource_spec
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.real("sanlock"), pytest.mark.long, pytest.mark.timeout(240)]

HOSTS = 4
SECONDS = 60

# Read, wait, write: two of these at once lose one of the two. The grant is noted only after the write.
INCREMENT = 'read n < "$1"; sleep 0.01; echo $((n + 1)) > "$1"; echo granted >> "$2"'

# Ends by itself at a moment of the boot clock, so that nothing is interrupted in the middle.
LOOP = 'while [ "$(cut -d. -f1 /proc/uptime)" -lt "$END" ]; do "$@" || echo "exit $?" >> "$LOG"; done'
# sanlock's client does not wait for a live owner: a script around it asks again, at the pace of our --wait.
SANLOCK_LOOP = (
    'while [ "$(cut -d. -f1 /proc/uptime)" -lt "$END" ]; do '
    '"$@" >> "$LOG" 2>&1; sleep "0.$(shuf -i 20-80 -n 1)"; done'
)


def uptime_seconds() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


@pytest.fixture
def hosts(tmp_path: Path, lease_dir: Path) -> Iterator[list[VmHost]]:
    hosts = [VmHost(tmp_path / f"host{number}", f"host{number}") for number in range(1, HOSTS + 1)]
    try:
        for number, host in enumerate(hosts, start=1):
            if number == 1:
                host.create(lease_dir)
            else:
                host.join(lease_dir, number)
        yield hosts
    finally:
        for host in hosts:
            host.close()


def test_nothing_is_lost_and_nobody_starves(
    hosts: list[VmHost], sanlock_host: SanlockHost, lease_dir: Path, tmp_path: Path
) -> None:
    disk, counter = make_disk(tmp_path / "a.img"), tmp_path / "counter"
    counter.write_text("0\n")
    lease = resource_path(lease_dir, disk)
    lease.write_bytes(bytes(1024 * 1024))
    direct_init_resource(lease, resource=resource_name(disk))
    sanlock_host.join(lease_dir, HOSTS + 1)
    end = str(uptime_seconds() + SECONDS)

    def increment(name: str) -> list[str]:
        return ["/bin/sh", "-c", INCREMENT, "increment", str(counter), str(tmp_path / f"{name}.grants")]

    workers = []
    for host in hosts:
        command = [*OUR_COMMAND, "run", "--wait=20", "--no-auto-disks", "--disk", str(disk), "--"]
        settings = {"END": end, "LOG": str(tmp_path / f"{host.name}.log")}
        whole = ["/bin/sh", "-c", LOOP, "loop", *command, *increment(host.name)]
        with (tmp_path / f"{host.name}.stderr").open("wb") as errors:
            workers.append(Child(whole, environment={**host.environment, **settings}, stderr=errors))
    command = [sanlock_host.program, "client", "command", "-r", resource_spec(lease_dir, disk), "-c"]
    settings = {"END": end, "LOG": str(tmp_path / "sanlock.log")}
    whole = ["/bin/sh", "-c", SANLOCK_LOOP, "loop", *command, *increment("sanlock")]
    workers.append(Child(whole, environment={**sanlock_host.environment, **settings}))

    try:
        for worker in workers:
            assert worker.wait(within=SECONDS + 40) == 0
    finally:
        for worker in workers:
            worker.kill()

    names = [host.name for host in hosts] + ["sanlock"]
    grants = {name: grants_of(tmp_path / f"{name}.grants") for name in names}
    report = {name: refusals_of(tmp_path / f"{name}.log") for name in names[:-1]}
    assert int(counter.read_text()) == sum(grants.values()), "an increment was lost"
    assert all(grants.values()), grants
    for host in hosts:
        assert grants[host.name] >= 0.1 * sum(grants.values()), (grants, report)
    # A waiting run that is told "held" or that lost a race has not done its duty: it was to wait.
    assert report == {host.name: [] for host in hosts}
    for number in range(1, HOSTS + 1):
        assert read_delta(lease_dir, number).owner_generation == 1
    wait_for("the last release", lambda: owner_timestamp(lease_dir, disk) == 0, within=5)


def owner_timestamp(lease_dir: Path, disk: Path) -> int:
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    return leader.timestamp


def grants_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def refusals_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_the_counter_loses_without_a_lease(tmp_path: Path) -> None:
    """The oracle has teeth: the same increments without a lease do lose some."""
    counter = tmp_path / "counter"
    counter.write_text("0\n")
    deadline = time.monotonic() + 30
    done = 0
    while int(counter.read_text() or done) == done:
        assert time.monotonic() < deadline, "unprotected increments never collided"
        arguments = [str(counter), str(tmp_path / "grants")]
        children = [Child(["/bin/sh", "-c", INCREMENT, "increment", *arguments]) for _ in range(4)]
        done += sum(child.wait(within=10) == 0 for child in children)
