"""A host that leaves: from the moment that it gives its host id back, nothing is granted under it.

A host id is free for others as soon as its record says so, whatever is held under it.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.host.faults.stage import LOCKSPACE_ONLY, make_stage
from tests.support.disk import LOCKSPACE_NAME, lease_is_free, lease_owner, read_delta
from tests.support.fixtures import MakeHost
from tests.support.fusefs import FaultyMount
from tests.support.programs import Child, is_running, send_signal
from tests.support.systemcalls import Call, Decision, run_supervised
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(b"")
    return path


def membership_files(host: VmHost) -> list[str]:
    return [str(path) for path in (host.run_dir / "state" / "memberships").glob("*.json")]


def test_a_lease_that_is_granted_after_the_look_at_the_claims_keeps_the_host(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """``remove-host`` saw nothing held, and is about to tell the daemon, when the lease is granted."""
    [membership] = membership_files(host)

    def acquire_in_between(_number: int, call: Call) -> Decision:
        if call.name in ("unlink", "unlinkat") and lease_owner(lease_dir, disk) != 1:
            acquired = host.acquire(holder.pid, disk)
            assert acquired.returncode == 0, acquired
        return None

    refused = run_supervised(
        [*OUR_COMMAND, "remove-host", str(lease_dir), "--json"],
        environment=host.environment,
        places={"membership": membership},
        decide=acquire_in_between,
    )

    assert lease_owner(lease_dir, disk) == 1
    assert refused.returncode == 77, refused
    error = json.loads(refused.stderr.strip().splitlines()[-1])["error"]
    assert "leases are held" in error["message"]
    assert str(disk) in error["message"]
    assert not read_delta(lease_dir, 1).is_free
    assert membership_files(host) == [membership]
    with_lease = host.status()["this_host"]
    assert (with_lease["state"], with_lease["generation"]) == ("live", 1)
    assert holder.running

    assert host.release(holder.pid, disk).returncode == 0
    host.succeed("remove-host", lease_dir)
    assert read_delta(lease_dir, 1).is_free


def host_record(host: VmHost) -> dict[str, Any]:
    record = json.loads((host.run_dir / LOCKSPACE_NAME / "host.json").read_text())
    assert isinstance(record, dict)
    return record


@pytest.mark.real("fusermount3")
def test_who_waits_is_granted_nothing_while_the_leave_hangs(
    faulty: FaultyMount, host_alone: VmHost, make_host: MakeHost, holder: Child, disk: Path, tmp_path: Path
) -> None:
    """It began to wait when the host was live, and the lease becomes free when it no longer is."""
    stage = make_stage(faulty, host_alone)
    host, other = stage.host, make_host("other")
    other.join(stage.behind, 2)
    assert other.acquire(holder.pid, disk).returncode == 0
    waiter = host.start("acquire", "--pid", str(holder.pid), "--wait=30", disk, "--json", log="waiter.log")
    waiter_log = host.run_dir / "waiter.log"
    wait_for("somebody who waits", lambda: "waiting" in waiter_log.read_text(), within=10)
    faulty.fail("hang", operations=("write",), names=LOCKSPACE_ONLY)
    leaving, looks = host.start("remove-host", stage.seen), 0

    def is_leaving() -> bool:
        """For two looks: one that meets the claim of who waits, who is just trying, is refused at once."""
        nonlocal leaving, looks
        if not leaving.running:
            leaving = host.start("remove-host", stage.seen)
        looks = looks + 1 if host_record(host)["state"] == "leaving" else 0
        return looks > 1

    wait_for("the leave", is_leaving, within=5)

    assert other.release(holder.pid, disk).returncode == 0
    not_joined, lost = 69, 76  # still leaving, or given up: the storage did not answer in time
    assert waiter.wait(within=10) in (not_joined, lost), waiter_log.read_text()
    assert lease_is_free(stage.behind, disk)

    faulty.heal()
    leaving.wait(within=20)
    wait_for("the host id to be free", lambda: read_delta(stage.behind, 1).is_free, within=20)
    assert other.acquire(holder.pid, disk).returncode == 0


@pytest.mark.real("fusermount3")
def test_a_host_leaves_while_a_renewal_is_on_its_way(faulty: FaultyMount, host_alone: VmHost) -> None:
    """The write ends well, but the host is live no more: it is neither renewed nor lost, it leaves."""
    stage = make_stage(faulty, host_alone)
    host = stage.host
    host.wait_for_pair()
    for generation in range(1, 3):  # the renewal has 1 s; where the leave came later, nothing is shown
        faulty.fail("hang", operations=("write",), names=LOCKSPACE_ONLY)
        wait_for("a renewal", lambda: faulty.hung > 0, within=10)
        leaving = host.start("remove-host", stage.seen)
        wait_for("the leave", lambda: host_record(host)["state"] == "leaving", within=10)
        faulty.heal()
        assert leaving.wait(within=10) == 0, f"generation {generation}: {host_record(host)}"
        assert read_delta(stage.behind, 1).is_free
        host.join(stage.seen, 1)


def test_a_daemon_that_is_told_to_stop_leaves_first(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """And whoever needs it next starts another, which joins again."""
    daemon, standby = host.wait_for_pair()
    send_signal(daemon, signal.SIGTERM)
    wait_for("the end of both", lambda: not is_running(daemon) and not is_running(standby), within=10)
    assert read_delta(lease_dir, 1).is_free
    host.join(lease_dir, 1)
    assert host.generation == 2
    assert host.acquire(holder.pid, disk).returncode == 0


def test_a_daemon_that_died_while_it_left_joins_again(
    faulty: FaultyMount, host_alone: VmHost, holder: Child, disk: Path
) -> None:
    """What host.json says of a leave whose end nobody saw is a host lease that is lost."""
    stage = make_stage(faulty, host_alone)
    host = stage.host
    daemon, standby = host.wait_for_pair()
    faulty.fail("hang", operations=("write",), names=LOCKSPACE_ONLY)
    send_signal(daemon, signal.SIGTERM)
    wait_for("the leave", lambda: host_record(host)["state"] == "leaving", within=5)
    send_signal(daemon, signal.SIGKILL)
    faulty.heal()
    wait_for("the end of both", lambda: not is_running(daemon) and not is_running(standby), within=10)
    host.join(stage.seen, 1)
    wait_for("the host to be live", lambda: host.status()["this_host"]["state"] == "live", within=20)
    assert host.acquire(holder.pid, disk).returncode == 0
