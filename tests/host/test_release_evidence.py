"""release --evidence: leases of owners in every state, released only where they are proven to be gone.

io_timeout is 1: an owner is failing after 8 s of silence, and dead after 68.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.support.disk import (
    lease_is_free,
    lease_leader,
    lease_owner,
    lockspace_path,
    read_delta,
    resource_name,
    resource_path,
    shared_hosts,
    watch_delta,
    write_direct,
    write_leader,
)
from tests.support.fixtures import MakeHost
from tests.support.programs import Child, Result, run_command, send_signal
from tests.support.sanlockhost import SanlockHost
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


def explained(host: VmHost, *words: Any) -> dict[str, Any]:
    """What explain says of a disk that is in use."""
    result = host.call("explain", "--json", *map(str, words))
    assert result.returncode == 75, result
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


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


def test_an_owner_whose_host_id_is_free(held: Pair, holder: Child, lease_dir: Path, disk: Path) -> None:
    """At once, but not while a process here has the disk open; and whatever that host called itself."""
    here, there = held
    other = disk.with_name("b.img")
    other.write_bytes(bytes(4096))
    assert here.acquire(holder.pid, other).returncode == 0
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

    hostile = read_delta(lease_dir, 1)._replace(resource_name=b"\x1b]0;pwn\x07".ljust(48, b"\0"))
    write_leader(lockspace_path(lease_dir), hostile)
    text = release(there, other)
    assert text.returncode == 0, text
    assert r"host id 1, \x1b]0;pwn\x07, generation 1" in text.stdout
    assert text.stdout.replace("\n", "").isprintable()
    assert lease_is_free(lease_dir, other)
    assert not list(there.claims_dir.glob("*.json"))


@pytest.mark.long
def test_an_owner_that_has_joined_again(held: Pair, holder: Child, lease_dir: Path, disk: Path) -> None:
    """Seen by another host and by itself: the earlier generation of a host whose records were lost."""
    here, there = held
    other = disk.with_name("b.img")
    other.write_bytes(bytes(4096))
    assert here.acquire(holder.pid, other).returncode == 0
    with watch_delta(lease_dir, 1) as renewals:
        here.crash_everything()
        for claim in here.claims_dir.glob("*.json"):
            claim.unlink()
        wait_until(renewals.last.seen + FAIL_SECONDS + 2)
    here.start("daemon", log="daemon.log")
    wait_for("generation 2", lambda: read_delta(lease_dir, 1).owner_generation == 2, within=30)
    wait_for("A to be live", lambda: here.status()["this_host"]["state"] == "live", within=15)
    assert "is still open in process" in refused(here, disk, status=77)["message"]
    assert lease_owner(lease_dir, disk) == 1, "the process of the earlier generation runs"
    holder.kill()
    for host, path in ((here, disk), (there, other)):
        [evidence] = released(host, path)["evidence"]
        assert "at generation 2 now: its generation 1 is over" in evidence["proof"]
        assert evidence["owner"]["host_name"] == "hostA", "by the owner note"
        assert evidence["owner"]["this_host"] == (host is here)
        assert lease_is_free(lease_dir, path)


# -- silence -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_failing_owner(held: Pair, holder: Child, lease_dir: Path, disk: Path, tmp_path: Path) -> None:
    """Not dead for others yet: refused, waited for and interrupted, and released on somebody's word."""
    here, there = held
    link = tmp_path / "link.img"
    link.symlink_to(disk)
    here.release(holder.pid, disk)
    assert here.acquire(holder.pid, link).returncode == 0
    names = (link, disk)
    before = [lease_leader(lease_dir, name) for name in names]
    here.crash_everything()
    wait_for_state(there, 1, "fail", within=FAIL_SECONDS + 5)
    for words, status in (([link], 75), (["--i-know", "1:2", link], 75), (["--wait=1", link], 124)):
        error = refused(there, *words, status=status)
        [owner] = error["details"]["owners"]
        assert owner["state"] == "fail"
        assert HOST_DEAD_SECONDS - 25 < error["details"]["takeover_in"] <= HOST_DEAD_SECONDS - FAIL_SECONDS
    assert "--i-know 1:1" in release(there, link).stderr
    advice = [step["command"] for step in explained(there, link)["advice"]]
    assert f"vmlockctl release --evidence {link} --i-know 1:1" in advice
    interrupt_a_wait(there, "--wait", link)
    assert [lease_leader(lease_dir, name) for name in names] == before

    text = release_logged(there, "alice", "--i-know", "hostA:1", link)
    assert text.returncode == 0, text
    assert "a person vouches that it is dead" in text.stdout
    logged = [line for line in text.stderr.splitlines() if "take over and release" in line]
    for name in names:
        [line] = [line for line in logged if f"({name})" in line]
        assert f"__LIBVIRT__DISKS__:{resource_name(name)}:{resource_path(lease_dir, name)}:0 " in line
        assert "old owner host 'hostA' (host id 1, generation 1, fail" in line
        assert "new owner 2:1, then none; by uid" in line
        assert line.endswith("(alice), who vouches that 1:1 is dead")
    for name, old in zip(names, before):
        assert old is not None
        assert f"{name}: released; its lease is free now, version {old.lver + 1}" in text.stdout
        assert lease_is_free(lease_dir, name)


def release_logged(host: VmHost, sudo_user: str, *words: Any) -> Result:
    """With the log on stderr, where syslog is out of reach of a test."""
    code = "from vmlockctl import log; log.to_stderr(); from vmlockctl.cli.main import main; main()"
    command = [sys.executable, "-c", code, "release", "--evidence", *map(str, words)]
    return run_command(command, environment={**host.environment, "SUDO_USER": sudo_user})


def interrupt_a_wait(host: VmHost, *words: Any) -> None:
    """Ctrl-C as soon as the command says that it waits."""
    with host.start("release", "--evidence", *map(str, words), log="wait.log") as command:
        log = host.run_dir / "wait.log"
        wait_for("the wait", lambda: "for a sign of life" in log.read_text(), within=10)
        send_signal(command.pid, signal.SIGINT)
        assert command.wait(within=10) == 130
    assert "not proven to be gone" in log.read_text()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_host_that_joins_only_to_release(
    held: Pair, host_alone: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Nobody there has observed the owner: with the commands of the hint, it is watched until it is dead."""
    here, there = held
    with watch_delta(lease_dir, 1) as renewals:
        here.crash_everything()
        hint = refused(host_alone, "-L", lease_dir, disk, status=69)["hint"]
        commands = [shlex.split(command) for command in hint.partition(": ")[2].split(" && ")]
        assert {command.pop(0) for command in commands} == {"vmlockctl"}
        join, again, leave = commands
        host_alone.succeed(*join, "--io-timeout", "1")
        advice = [step["command"] for step in explained(host_alone, disk, "-L", lease_dir)["advice"]]
        assert f"vmlockctl release --evidence {disk}" in advice
        interrupt_a_wait(host_alone, "-L", lease_dir, disk)
        joined = time.monotonic()
        answer = host_alone.json(*again, within=HOST_DEAD_SECONDS + 30)
        assert time.monotonic() - joined > HOST_DEAD_SECONDS - 10, "it watched as long as it takes"
        assert renewals.last.seen < joined, "the owner was dead all the time"
    [evidence] = answer["evidence"]
    assert (evidence["owner"]["state"], evidence["threshold_seconds"]) == ("dead", HOST_DEAD_SECONDS)
    assert evidence["owner"]["age"] > HOST_DEAD_SECONDS
    assert evidence["observed_by"].startswith("the daemon of this host")
    assert lease_is_free(lease_dir, disk)
    host_alone.succeed(*leave)
    assert read_delta(lease_dir, 3).timestamp == 0
    assert there.acquire(holder.pid, disk).returncode == 0


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("vouch", [None, "1:1"])
def test_a_frozen_owner_that_wakes_up(
    held: Pair, holder: Child, lease_dir: Path, disk: Path, vouch: Optional[str]
) -> None:
    """Proven dead, or wrongly vouched for: its lease is lost, and its process is gone within one cycle."""
    here, there = held
    everybody = (*here.wait_for_pair(), holder.pid)
    for pid in everybody:
        send_signal(pid, signal.SIGSTOP)
    try:
        words = ["--wait"] if vouch is None else ["--i-know", vouch]
        within = HOST_DEAD_SECONDS if vouch is None else FAIL_SECONDS
        wait_for_state(there, 1, "fail", within=FAIL_SECONDS + 5)
        released(there, *words, disk, within=within + 15)
        assert lease_is_free(lease_dir, disk)
        after = lease_leader(lease_dir, disk)
        assert holder.running
    finally:
        for pid in everybody:
            send_signal(pid, signal.SIGCONT)
    holder.wait(within=5)
    assert lease_leader(lease_dir, disk) == after, "the woken host left the lease alone"
    wait_for("A to join again", lambda: read_delta(lease_dir, 1).owner_generation == 2, within=30)


@pytest.mark.real("sanlock")
@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_dead_sanlock_host(
    host: VmHost, sanlock_host: SanlockHost, lease_dir: Path, disk: Path, holder: Child
) -> None:
    sanlock_host.join(lease_dir, 2)
    assert host.acquire(holder.pid, disk).returncode == 0  # makes the lease file
    assert host.release(holder.pid, disk).returncode == 0
    assert sanlock_host.acquire(lease_dir, disk)[0] == 0
    wait_for_state(host, 2, "live", within=15)
    assert refused(host, "--i-know", "2:1", disk)["details"]["state"] == "live"
    with watch_delta(lease_dir, 2) as renewals:
        sanlock_host.crash_everything()
        wait_for_state(host, 2, "fail", within=FAIL_SECONDS + 5)
        [evidence] = released(host, "--wait", disk, within=HOST_DEAD_SECONDS + 15)["evidence"]
        # From the renewal itself: all share this machine's clock.
        assert time.monotonic() - renewals.last.leader.timestamp > HOST_DEAD_SECONDS
    assert (evidence["owner"]["host_id"], evidence["owner"]["state"]) == (2, "dead")
    assert evidence["owner"]["host_name"].endswith(sanlock_host.name)
    assert (evidence["owner"]["vm"], evidence["owner"]["pid"]) == (None, None), "sanlock writes no note"
    assert lease_is_free(lease_dir, disk)
    assert host.acquire(holder.pid, disk).returncode == 0


@pytest.mark.long
def test_shared_holders_of_which_one_lives(
    two_hosts: Pair, make_host: MakeHost, lease_dir: Path, disk: Path, holder: Child
) -> None:
    """Each has to be proven dead, whichever of them a person vouches for."""
    here, there = two_hosts
    third = make_host("hostC")
    third.join(lease_dir, 3)
    for sharer in (here, third):
        assert sharer.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    here.crash_everything()
    wait_for_state(there, 1, "fail", within=FAIL_SECONDS + 5)
    for vouch in ([], ["--i-know", "1:1"], ["--i-know", "3:1"], ["--i-know", "1:1", "--wait"]):
        error = refused(there, *vouch, disk)
        [owner] = error["details"]["owners"]
        assert (owner["host_id"], owner["state"]) == (3, "live")
        found = {each["owner"]["host_id"]: each["owner"]["state"] for each in error["details"]["evidence"]}
        assert found == {1: "fail", 3: "live"}
    assert shared_hosts(lease_dir, disk) == [1, 3]

    assert third.release(holder.pid, disk).returncode == 0
    answer = released(there, "--i-know", "1:1", disk)
    assert answer["evidence"][0]["mode"] == "shared"
    mark = {"offset": 2 * 512, "old_owner": {"host_id": 1, "generation": 1}, "new_owner": None}
    assert mark.items() <= answer["written"][0].items()
    assert lease_is_free(lease_dir, disk)
