"""``request``: the owner's host asks its process to end, or kills it, and the lease passes on."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.disk import lease_is_free, lease_owner, read_direct, resource_path
from tests.support.programs import Child, standing_process
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk.request import Request

# Our renewal carries the bit, the owner's next one sees it: 2 + 2 s at io_timeout 1, and a process to end.
HEEDED_SECONDS = 8

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
while True:
    time.sleep(60)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


def record(lease_dir: Path, disk: Path) -> Request:
    return Request.from_bytes(read_direct(resource_path(lease_dir, disk), 512, 512))


def test_a_graceful_request_hands_the_lease_over(
    two_hosts: tuple[VmHost, VmHost], lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    with standing_process() as owner, standing_process() as heir:
        assert here.acquire(owner.pid, disk).returncode == 0
        answer = there.json("request", disk)
        assert answer["lver"] == 2
        assert (answer["owner"]["host_id"], answer["owner"]["host_name"]) == (1, here.name)
        assert record(lease_dir, disk) == Request(lver=2, force_mode=2)
        taken = there.acquire(heir.pid, disk, options=[f"--wait={HEEDED_SECONDS}"])
        assert taken.returncode == 0, taken
        assert owner.wait(within=1) == -signal.SIGTERM
        assert lease_owner(lease_dir, disk) == 2


def test_a_stubborn_holder_ends_only_by_force(
    two_hosts: tuple[VmHost, VmHost], lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    here, there = two_hosts
    log = tmp_path / "asked"
    with log.open("w") as output, Child([sys.executable, "-c", STUBBORN], stdout=output) as owner:
        assert here.acquire(owner.pid, disk).returncode == 0
        there.succeed("request", disk)
        wait_for("the SIGTERM", lambda: log.read_text() == "asked\n", within=HEEDED_SECONDS)
        assert lease_owner(lease_dir, disk) == 1
        there.succeed("request", "--force", disk)
        assert owner.wait(within=HEEDED_SECONDS) == -signal.SIGKILL
        wait_for("the release", lambda: lease_is_free(lease_dir, disk), within=3)
        assert log.read_text() == "asked\n", "one request, one signal"


def test_a_request_of_our_own_host(host: VmHost, lease_dir: Path, disk: Path) -> None:
    """The holder is here: nothing needs to go round by the disk, and nothing is killed by mistake."""
    with standing_process() as owner:
        assert host.acquire(owner.pid, disk).returncode == 0
        answer = host.json("request", disk)
        assert answer["owner"]["this_host"]
        assert owner.wait(within=HEEDED_SECONDS) == -signal.SIGTERM


def test_nobody_to_ask(two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path) -> None:
    here, there = two_hosts
    missing = there.call("request", disk)
    assert missing.returncode == 66
    assert here.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    answer = there.succeed("request", "--force", disk)
    assert "nobody holds the lease exclusively" in answer.stdout
    assert record(lease_dir, disk) == Request()


def test_a_request_that_is_taken_back_is_not_heeded(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    assert here.acquire(holder.pid, disk).returncode == 0
    there.succeed("request", "--force", disk)
    cleared = there.json("request", "--clear", disk)
    assert cleared["cleared"]
    assert record(lease_dir, disk) == Request()
    bits = json.loads((there.run_dir / "__LIBVIRT__DISKS__" / "bits.json").read_text())
    assert list(bits["until"]) == ["1"]
    seen = time.monotonic()
    # Two renewals of each host: whoever would have looked has looked.
    wait_for("the renewals", lambda: time.monotonic() - seen > 5, within=6)
    assert holder.running
    assert lease_owner(lease_dir, disk) == 1


def test_a_damaged_request_record_is_told(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    from tests.support.disk import write_direct

    here, there = two_hosts
    assert here.acquire(holder.pid, disk).returncode == 0
    write_direct(resource_path(lease_dir, disk), 512, b"\xff" * 512)
    refused = there.call("request", disk)
    assert refused.returncode == 65
    assert ":512: wrong request magic" in refused.stderr
