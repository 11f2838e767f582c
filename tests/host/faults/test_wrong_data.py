"""Storage that lies (faults.md 2b): lost, torn, misdirected and late writes, and reads of what was.

None of them may end in a grant, none of them may make a lease look free, and whoever relied on a record
that is not there any more is stopped within a renewal cycle.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.host.faults.stage import (
    CYCLE_SECONDS,
    EXPIRY_SECONDS,
    IN_TIME,
    LOCKSPACE_ONLY,
    ONE_CYCLE,
    Stage,
    gone_after,
)
from tests.support.disk import (
    lease_leader,
    lease_owner,
    lockspace_path,
    read_delta,
    resource_name,
    watch_delta,
)
from tests.support.fixtures import MakeHost
from tests.support.programs import Child, is_running, send_signal
from tests.support.vmhost import VmHost
from tests.support.waiting import until, wait_for

DATA, STORAGE, BUSY = 65, 74, 75
TORN_LEADER = "torn:100"  # its names are new, its timestamp and its checksum are old
TORN_DBLOCK = "torn:20"  # a leader of which only magic, version and sizes are new


def known_lease(stage: Stage, holder: Child, disk: Path) -> str:
    """A lease that exists and is free; return the pattern for its file on the mount."""
    stage.claim(holder, disk)
    assert stage.host.release(holder.pid, disk).returncode == 0
    return f"/leases/{resource_name(disk)}"


def join_behind(stage: Stage, other: VmHost) -> VmHost:
    other.join(stage.behind, 2)
    wait_for("each to see the other live", lambda: other.seen_state(1) == "live", within=15)
    return other


# -- acquire ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["lose", TORN_LEADER, TORN_DBLOCK, "shift", "stale"])
def test_no_lie_of_the_storage_ends_in_a_grant(stage: Stage, holder: Child, disk: Path, lie: str) -> None:
    """Every write of the ballot meets the fault: what is read back is not what was written."""
    name = known_lease(stage, holder, disk)
    stage.mount.fail(lie, operations=("read",) if lie == "stale" else ("write",), names=name)
    refused = stage.host.acquire(holder.pid, disk)
    assert refused.returncode not in (0, 70), refused
    assert stage.mount.hits >= 1
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("lie", ["lose", "shift"])
def test_a_lease_can_be_had_after_lost_and_misdirected_writes(
    stage: Stage, holder: Child, disk: Path, lie: str
) -> None:
    name = known_lease(stage, holder, disk)
    stage.mount.fail(lie, operations=("write",), names=name)
    assert stage.host.acquire(holder.pid, disk).returncode != 0
    stage.mount.heal()
    granted = stage.host.acquire(holder.pid, disk, options=["--wait=20"])
    assert granted.returncode == 0, granted


def test_a_torn_leader_is_never_free(stage: Stage, make_host: MakeHost, holder: Child, disk: Path) -> None:
    """Corrupt, exit 65, and left as it is; whoever finds it, the other leases and hosts work on."""
    there = join_behind(stage, make_host("hostB"))
    name = known_lease(stage, holder, disk)
    tear_the_leader(stage, disk)
    torn = (stage.mount.backing / name[1:]).read_bytes()
    for host in (stage.host, there):
        refused = host.acquire(holder.pid, disk)
        assert refused.returncode == DATA, refused
        assert "checksum" in refused.stderr
    assert (stage.mount.backing / name[1:]).read_bytes() == torn
    other = disk.with_name("b.img")
    other.write_bytes(bytes(4096))
    assert there.acquire(holder.pid, other).returncode == 0


def tear_the_leader(stage: Stage, disk: Path) -> None:
    """A power cut in the middle of the leader's sector: half of it is of the next acquire."""
    leader = lease_leader(stage.behind, disk)
    assert leader is not None
    newer = leader._replace(lver=leader.lver + 1, owner_id=2, owner_generation=1, timestamp=77).sealed()
    torn = newer.to_bytes()[:100] + leader.to_bytes()[100:]
    with (stage.behind / resource_name(disk)).open("r+b") as file:
        file.write(torn)


# -- renewals ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("lie", ["lose", TORN_LEADER, "shift", "stale"])
def test_a_renewal_that_did_not_land_stops_the_process(
    stage: Stage, holder: Child, disk: Path, lie: str
) -> None:
    """Found by the next cycle's reading, or at the latest when the last good renewal is too old."""
    stage.claim(holder, disk)
    with watch_delta(stage.behind, 1) as renewals:
        renewals.wait_for_change(within=10)
        operations = ("read",) if lie == "stale" else ("write",)
        stage.mount.fail(lie, operations=operations, names=LOCKSPACE_ONLY)
        met = wait_for("a renewal that meets the fault", lambda: stage.mount.hits, within=10)
        assert met
        gone_after(holder, renewals.last.seen, within=IN_TIME)


@pytest.mark.long
def test_a_torn_renewal_is_left_alone(stage: Stage, holder: Child, disk: Path) -> None:
    """The record is damage: nobody writes over it, not even the host whose record it is."""
    stage.claim(holder, disk)
    stage.mount.fail(TORN_LEADER, operations=("write",), names=LOCKSPACE_ONLY)
    wait_for("the torn write", lambda: stage.mount.hits, within=10)
    stage.mount.heal()
    torn = lockspace_path(stage.behind).read_bytes()
    gone_after(holder, time.monotonic(), within=ONE_CYCLE)
    for _ in until(time.monotonic() + 2 * CYCLE_SECONDS):
        assert lockspace_path(stage.behind).read_bytes() == torn


@pytest.mark.long
def test_a_misdirected_renewal_is_no_host(
    stage: Stage, make_host: MakeHost, holder: Child, disk: Path
) -> None:
    """It lands in the slot of host id 2: the record says host id 1, so it is nobody's, and stays."""
    stage.claim(holder, disk)
    stage.mount.fail("shift", operations=("write",), names=LOCKSPACE_ONLY)
    wait_for("the misdirected write", lambda: stage.mount.hits, within=10)
    stage.mount.heal()
    wrong = read_delta(stage.behind, 2)
    assert wrong.owner_id == 1
    there = make_host("hostB")
    refused = there.call(
        "add-host", stage.behind, "--host-id", "2", "--host-name", "hostB", "--io-timeout", "1"
    )
    assert refused.returncode == DATA, refused
    assert "found owner_id 1" in refused.stderr
    assert read_delta(stage.behind, 2) == wrong


@pytest.mark.long
def test_a_misdirected_write_over_our_record_stops_the_process(
    stage: Stage, make_host: MakeHost, holder: Child, disk: Path
) -> None:
    """Host id 1's renewals land in the slot of host id 2, which notices within a cycle."""
    there = join_behind(stage, make_host("hostB"))
    assert there.acquire(holder.pid, disk).returncode == 0
    stage.mount.fail("shift", operations=("write",), names=LOCKSPACE_ONLY)
    wait_for("the misdirected write", lambda: stage.mount.hits, within=10)
    gone_after(holder, time.monotonic(), within=ONE_CYCLE)


# -- late writes ------------------------------------------------------------------------------------


def stuck_acquire(stage: Stage, holder: Child, disk: Path) -> Child:
    """An acquire whose first write hangs in the kernel."""
    stage.mount.fail("hang", operations=("write",), names=f"/leases/{resource_name(disk)}")
    command = stage.host.start("acquire", "--pid", str(holder.pid), disk, log="acquire.log")
    wait_for("the ballot's first write to hang", lambda: stage.mount.hung >= 1, within=10)
    return command


def test_a_write_that_lands_late_is_waited_for(stage: Stage, holder: Child, disk: Path) -> None:
    """The command gives up after io_timeout; nobody touches the lease before its write has come back."""
    known_lease(stage, holder, disk)
    free = lease_leader(stage.behind, disk)
    command = stuck_acquire(stage, holder, disk)
    wait_for("the command to give up", lambda: not is_running(command.pid), within=10)
    assert command.running, "its thread is in the kernel: it cannot be reaped"
    meanwhile = stage.host.acquire(holder.pid, disk)
    assert meanwhile.returncode == BUSY, meanwhile
    assert lease_leader(stage.behind, disk) == free
    stage.mount.heal()
    assert command.wait(within=10) == STORAGE
    granted = stage.host.acquire(holder.pid, disk, options=["--wait=20"])
    assert granted.returncode == 0, granted


@pytest.mark.long
def test_a_command_inside_a_ballot_is_stopped_with_the_host_lease(
    stage: Stage, make_host: MakeHost, holder: Child, disk: Path
) -> None:
    """A write that is delayed past its generation must not land: its command ends before the next one.

    The command is stopped (SIGSTOP) between two writes of its ballot, and the host lease expires.
    """
    known_lease(stage, holder, disk)
    command = stuck_acquire(stage, holder, disk)
    send_signal(command.pid, signal.SIGSTOP)
    stage.mount.fail("eio", names=LOCKSPACE_ONLY)
    with watch_delta(stage.behind, 1) as renewals:
        assert command.wait(within=EXPIRY_SECONDS + 10) == -signal.SIGKILL
        assert renewals.last.leader.owner_generation == 1
        stage.mount.heal()
        renewals.wait_for("generation 2", lambda record: record.owner_generation == 2, within=30)
    assert lease_owner(stage.behind, disk) == 0
    there = join_behind(stage, make_host("hostB"))
    granted = there.acquire(holder.pid, disk, options=["--wait=30"])
    assert granted.returncode == 0, granted
    assert lease_owner(stage.behind, disk) == 2
