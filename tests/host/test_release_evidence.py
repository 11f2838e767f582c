"""release --evidence: leases of owners in every state, released only where they are proven to be gone.

io_timeout is 1: an owner is failing after 8 s of silence, and dead after 68.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.disk import (
    lease_is_free,
    lease_leader,
    lease_owner,
    lockspace_path,
    read_delta,
    resource_name,
    resource_path,
    watch_delta,
    write_direct,
    write_leader,
)
from tests.support.programs import Child, Result, standing_process
from tests.support.vmhost import VmHost, error_object
from tests.support.waiting import wait_for, wait_until

FAIL_SECONDS = 8
HOST_DEAD_SECONDS = 8 + 60
Pair = tuple[VmHost, VmHost]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def held(two_hosts: Pair, holder: Child, disk: Path) -> Pair:
    """Host A holds the disk's lease for a process, and host B has seen A alive."""
    here, there = two_hosts
    assert here.acquire(holder.pid, disk, options=["--vm", "web1"]).returncode == 0
    wait_for("B to see A live", lambda: there.seen_state(1) == "live", within=15)
    return two_hosts


def release(host: VmHost, *words: Any, within: float = 60) -> Result:
    return host.call("release", "--evidence", *map(str, words), within=within)


def released(host: VmHost, *words: Any, within: float = 60) -> dict[str, Any]:
    """What a release that succeeds says."""
    answer = host.json("release", "--evidence", *map(str, words), within=within)
    assert {"released", "evidence", "written", "leases"} <= set(answer)
    return answer


def refused(host: VmHost, *words: Any, status: int = 75, within: float = 60) -> dict[str, Any]:
    """The error of a release that is refused."""
    result = release(host, "--json", *words, within=within)
    assert (result.returncode, result.stdout) == (status, ""), result
    return error_object(result)


def wait_for_state(host: VmHost, host_id: int, state: str, *, within: float) -> None:
    wait_for(f"host id {host_id} to be {state}", lambda: host.seen_state(host_id) == state, within=within,
             every_seconds=0.2)  # fmt: skip


# -- what is refused -----------------------------------------------------------------------------------


def test_a_live_owner_is_refused_whoever_vouches(held: Pair, lease_dir: Path, disk: Path) -> None:
    _, there = held
    before = lease_leader(lease_dir, disk)
    for vouch in ([], ["--i-know", "1:1"], ["--i-know", "hostA:1"], ["--wait"]):
        error = refused(there, *vouch, disk)
        [owner] = error["details"]["owners"]
        assert (owner["host_id"], owner["generation"], owner["state"]) == (1, 1, "live")
        assert (owner["host_name"], owner["vm"]) == ("hostA", "web1")
        assert error["details"]["takeover_in"] is None
        assert "it is alive, its record changed" in error["message"]
        assert ("cannot be overridden" in error["message"]) == ("--i-know" in vouch)
    assert lease_leader(lease_dir, disk) == before
    text = release(there, disk)
    assert text.returncode == 75
    assert "not proven to be gone" in text.stdout


def test_another_instance_than_the_owner_is_vouched_for(held: Pair, lease_dir: Path, disk: Path) -> None:
    _, there = held
    before = lease_leader(lease_dir, disk)
    for vouch in ("1:2", "2:1", "hostB:1", "nobody:1"):
        error = refused(there, "--i-know", vouch, disk)
        assert f"--i-know {vouch} is not its owner" in error["message"]
        assert error["details"]["owners"][0]["host_id"] == 1
    for vouch in ("1", "1:", ":1", "1:0", "1:x", "1:-1", "1:" + "9" * 5000, ""):
        assert refused(there, "--i-know", vouch, disk, status=64)["code"] == "usage"
    assert lease_leader(lease_dir, disk) == before


def test_words_that_contradict_each_other(host: VmHost, disk: Path) -> None:
    for words in ([], ["--pid", 1, disk], ["--to-shared", disk]):
        refused(host, *words, status=64)
    for words in (["--i-know", "1:1", disk], ["--wait", disk]):
        assert host.call("release", *map(str, words)).returncode == 64


def test_what_nobody_holds(host: VmHost, holder: Child, disk: Path, tmp_path: Path) -> None:
    assert "there is no lease of it" in refused(host, disk, status=66)["message"]
    host.acquire(holder.pid, disk)
    assert "that is this host itself" in refused(host, disk)["message"]
    host.release(holder.pid, disk)
    assert refused(host, disk, status=66)["code"] == "not-held"
    assert refused(host, tmp_path, status=66)["code"] == "no-such"


def test_a_host_that_has_not_joined(held: Pair, host_alone: VmHost, lease_dir: Path, disk: Path) -> None:
    error = refused(host_alone, "-L", lease_dir, disk, status=69)
    for command in (f"add-host {lease_dir} --host-id auto", f"--evidence {disk}", f"remove-host {lease_dir}"):
        assert command in error["hint"]
    assert refused(host_alone, disk, status=69)["code"] == "not-joined"
    assert lease_owner(lease_dir, disk) == 1


@pytest.mark.parametrize("sector", [0, 2])
def test_a_lease_that_is_damaged(held: Pair, lease_dir: Path, disk: Path, sector: int) -> None:
    """The leader, or the owner's dblock: what cannot be understood is left alone."""
    here, there = held
    here.crash_everything()
    write_direct(resource_path(lease_dir, disk), sector * 512, b"\x01" * 512)
    write_leader(lockspace_path(lease_dir), read_delta(lease_dir, 1)._replace(timestamp=0))
    before = resource_path(lease_dir, disk).read_bytes()
    refused(there, disk, status=65)
    assert resource_path(lease_dir, disk).read_bytes() == before


# -- a host id that has moved on -----------------------------------------------------------------------


def test_an_owner_whose_host_id_is_free(held: Pair, lease_dir: Path, disk: Path, tmp_path: Path) -> None:
    """By a name of the disk that is no name of its lease, and of another that is."""
    here, there = held
    link = tmp_path / "link.img"
    link.symlink_to(disk)
    with standing_process() as other:
        here.acquire(other.pid, link)
        before = lease_leader(lease_dir, disk)
        assert before is not None
        here.crash_everything()
        write_leader(lockspace_path(lease_dir), read_delta(lease_dir, 1)._replace(timestamp=0))
        with disk.open("r+b"):
            error = refused(there, disk, status=77)
            assert "is still open in process" in error["message"]
        assert lease_leader(lease_dir, disk) == before
        answer = released(there, disk)
    [evidence] = answer["evidence"]
    assert (evidence["owner"]["state"], evidence["owner"]["host_generation"]) == ("free", 1)
    assert "host id 1 is free" in evidence["proof"]
    [grant] = answer["released"]
    assert grant == {"resource": resource_name(disk), "disk": str(disk), "lver": before.lver + 1}
    place = {"path": str(resource_path(lease_dir, disk)), "offset": 0, "lver": before.lver + 1}
    first, second = {"host_id": 1, "generation": 1}, {"host_id": 2, "generation": 1}
    assert answer["written"] == [
        {**place, "old_owner": first, "new_owner": second},
        {**place, "old_owner": second, "new_owner": None},
    ]
    assert lease_is_free(lease_dir, disk)
    assert not list(there.claims_dir.glob("*.json"))


@pytest.mark.long
def test_an_owner_that_has_joined_again(held: Pair, lease_dir: Path, disk: Path) -> None:
    """Seen by another host, and by itself: its own earlier generation."""
    here, there = held
    other = disk.with_name("b.img")
    other.write_bytes(bytes(4096))
    with standing_process() as second:
        assert here.acquire(second.pid, other).returncode == 0
        with watch_delta(lease_dir, 1) as renewals:
            here.crash_everything()
            for claim in here.claims_dir.glob("*.json"):
                claim.unlink()
            wait_until(renewals.last.seen + FAIL_SECONDS + 2)
        here.start("daemon", log="daemon.log")
        wait_for("generation 2", lambda: read_delta(lease_dir, 1).owner_generation == 2, within=30)
        wait_for("A to be live", lambda: here.status()["this_host"]["state"] == "live", within=15)
        for host, path in ((here, disk), (there, other)):
            if host is here:
                # The process of the note runs on, because a test ended its daemon only.
                refused(host, path, status=77)
        second.kill()
    [evidence] = released(there, other)["evidence"]
    assert "at generation 2 now: its generation 1 is over" in evidence["proof"]
