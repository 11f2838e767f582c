"""One host of ours and one real sanlock daemon in a lockspace: each sees and refuses the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disk import lease_is_free, lease_owner, read_delta, shared_hosts
from tests.support.pair import HELD_BY_ANOTHER_HOST, HELD_SHARED, OURS, THEIRS, Pair
from tests.support.programs import Child, Result
from tests.support.qemu import QemuStarter, drive, machine
from tests.support.sanlockhost import SanlockHost
from tests.support.vmhost import VmHost, error_object
from tests.support.waiting import wait_for

pytestmark = pytest.mark.real("sanlock")

conflicting_modes = pytest.mark.parametrize(
    ("held_shared", "wanted_shared"),
    [(False, False), (False, True), (True, False)],
    ids=["exclusive-exclusive", "exclusive-shared", "shared-exclusive"],
)


def test_each_sees_the_other_live(pair: Pair) -> None:
    wait_for("us to see sanlock live", lambda: pair.ours.seen_state(THEIRS) == "live", within=15)
    wait_for("us to see ourselves live", lambda: pair.ours.seen_state(OURS) == "live", within=15)
    seen = wait_for("sanlock to see us", lambda: pair.theirs.hosts().get(OURS), within=15)
    wait_for("sanlock to see us live", lambda: pair.theirs.hosts()[OURS].state == "LIVE", within=15)
    assert seen.generation == read_delta(pair.lease_dir, OURS).owner_generation

    [their_row] = [host for host in pair.ours.status()["hosts"] if host["host_id"] == THEIRS]
    on_disk = read_delta(pair.lease_dir, THEIRS)
    assert their_row["host_name"] == pair.theirs.name == on_disk.resource
    assert (their_row["generation"], their_row["io_timeout"]) == (on_disk.owner_generation, 1)
    assert their_row["age"] < 8


def test_sanlock_sees_our_timestamps_move(pair: Pair) -> None:
    first = wait_for("sanlock to see us", lambda: pair.theirs.hosts().get(OURS), within=15)
    wait_for(
        "a newer timestamp of ours",
        lambda: pair.theirs.hosts()[OURS].timestamp > first.timestamp,
        within=10,
        every_seconds=0.2,
    )
    assert pair.theirs.hosts()[OURS].generation == first.generation


@conflicting_modes
def test_sanlock_refuses_what_we_hold(
    pair: Pair, disk: Path, holder: Child, held_shared: bool, wanted_shared: bool
) -> None:
    assert pair.our_acquire(holder, disk, shared=held_shared).returncode == 0
    answer, _ = pair.theirs.acquire(pair.lease_dir, disk, shared=wanted_shared)
    assert answer == (HELD_SHARED if held_shared else HELD_BY_ANOTHER_HOST)
    if held_shared:
        assert shared_hosts(pair.lease_dir, disk) == [OURS]
    else:
        assert lease_owner(pair.lease_dir, disk) == OURS

    assert pair.ours.release(holder.pid, disk).returncode == 0
    assert lease_is_free(pair.lease_dir, disk)
    answer, theirs = pair.theirs.acquire(pair.lease_dir, disk, shared=wanted_shared)
    assert answer == 0
    pair.theirs.release(theirs)


def assert_names_the_owner(refused: Result) -> None:
    """One line that a person can act on: who, which host id, and what to do."""
    assert refused.returncode == 75, refused
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("vmlockctl: ")]
    assert "sanlockhost" in line, refused
    assert f"host id {THEIRS}" in line, refused
    assert "hint: " in refused.stderr, refused


@conflicting_modes
def test_we_refuse_what_sanlock_holds(
    pair: Pair, their_disk: Path, holder: Child, held_shared: bool, wanted_shared: bool
) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=held_shared)
    assert answer == 0
    lver = pair.ours.lease_status(their_disk)["lver"]
    assert_names_the_owner(pair.our_acquire(holder, their_disk, shared=wanted_shared))
    if held_shared:
        assert shared_hosts(pair.lease_dir, their_disk) == [THEIRS]
    else:
        assert lease_owner(pair.lease_dir, their_disk) == THEIRS
        assert pair.ours.lease_status(their_disk)["lver"] == lver

    pair.theirs.release(theirs)
    granted = pair.our_acquire(holder, their_disk, shared=wanted_shared)
    assert granted.returncode == 0, granted
    assert pair.ours.release(holder.pid, their_disk).returncode == 0
    assert lease_is_free(pair.lease_dir, their_disk)


def test_a_refusal_as_json_names_the_owner(pair: Pair, their_disk: Path, holder: Child) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    refused = pair.ours.acquire(holder.pid, their_disk, options=["--json"])
    assert (refused.returncode, refused.stdout) == (75, "")
    error = error_object(refused)
    assert error["sanlk_rv"] == HELD_BY_ANOTHER_HOST
    assert "sanlockhost" in error["message"]
    assert error["hint"]
    pair.theirs.release(theirs)


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-first", "sanlock-first"])
def test_shared_beside_shared_is_granted(
    pair: Pair, their_disk: Path, holder: Child, ours_first: bool
) -> None:
    def ours() -> None:
        granted = pair.our_acquire(holder, their_disk, shared=True)
        assert granted.returncode == 0, granted

    if ours_first:
        ours()
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    if not ours_first:
        ours()
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS, THEIRS]
    assert pair.ours.lease_status(their_disk)["mode"] == "shared"
    assert {owner["host_id"] for owner in pair.ours.lease_status(their_disk)["owners"]} == {OURS, THEIRS}

    # While the other is there, nobody may have it exclusively.
    pair.theirs.release(theirs)
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS]
    assert pair.theirs.acquire(pair.lease_dir, their_disk)[0] == HELD_SHARED
    assert pair.ours.release(holder.pid, their_disk).returncode == 0
    assert lease_is_free(pair.lease_dir, their_disk)


def test_the_lease_goes_back_and_forth(pair: Pair, their_disk: Path, holder: Child) -> None:
    for turn in range(3):
        answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
        assert answer == 0
        assert pair.ours.lease_status(their_disk)["lver"] == 2 * turn + 1
        pair.theirs.release(theirs)
        granted = pair.our_acquire(holder, their_disk, shared=False)
        assert granted.returncode == 0, granted
        assert pair.ours.lease_status(their_disk)["lver"] == 2 * turn + 2
        assert pair.ours.release(holder.pid, their_disk).returncode == 0


def test_we_wait_for_a_lease_that_sanlock_gives_up(pair: Pair, their_disk: Path, holder: Child) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    waiting = pair.ours.start("acquire", "--wait=30", "--pid", str(holder.pid), their_disk, log="wait.log")
    # Its line about the wait is the sign that it has been refused once.
    log = pair.ours.run_dir / "wait.log"
    wait_for("a line about the wait", lambda: "sanlockhost" in log.read_text(), within=10)
    assert waiting.running
    pair.theirs.release(theirs)
    assert waiting.wait(within=10) == 0
    assert lease_owner(pair.lease_dir, their_disk) == OURS
    assert pair.ours.release(holder.pid, their_disk).returncode == 0


@pytest.mark.real("qemu-system-x86_64")
def test_sanlock_refuses_the_disk_of_a_running_vm(pair: Pair, disk: Path, qemu: QemuStarter) -> None:
    vm = qemu(*machine(), *drive(disk), host=pair.ours).wait_ready()
    assert pair.theirs.acquire(pair.lease_dir, disk)[0] == HELD_BY_ANOTHER_HOST
    assert vm.quit() == 0
    wait_for("the release of the ended VM", lambda: lease_is_free(pair.lease_dir, disk), within=2)
    answer, theirs = pair.theirs.acquire(pair.lease_dir, disk)
    assert answer == 0
    pair.theirs.release(theirs)


@pytest.mark.real("qemu-system-x86_64")
def test_a_vm_is_not_started_on_a_disk_that_sanlock_holds(
    pair: Pair, their_disk: Path, qemu: QemuStarter
) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    refused = qemu(*machine(), *drive(their_disk), host=pair.ours)
    assert refused.wait(within=20) == 75
    assert "sanlockhost" in refused.log
    pair.theirs.release(theirs)
    assert qemu(*machine(), *drive(their_disk), host=pair.ours).wait_ready().quit() == 0


def test_a_host_id_that_sanlock_renews_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = VmHost(tmp_path / "other", "other")
    try:
        before = read_delta(pair.lease_dir, THEIRS)
        refused = other.call("add-host", pair.lease_dir, "--host-id", str(THEIRS), "--host-name", "other")
        assert_names_the_owner(refused)
        after = read_delta(pair.lease_dir, THEIRS)
        assert (after.owner_generation, after.resource) == (before.owner_generation, pair.theirs.name)
    finally:
        other.close()


def test_sanlock_refuses_a_host_id_that_we_renew(pair: Pair, tmp_path: Path) -> None:
    """Only its start is seen here: sanlock gives -262 after 8 io_timeouts and 60 seconds of watching."""
    other = SanlockHost(tmp_path / "s", "intruder")
    try:
        other.start()
        before = read_delta(pair.lease_dir, OURS)
        joining = other.run_dir / "join"
        spec = f"__LIBVIRT__DISKS__:{OURS}:{pair.lease_dir}/__LIBVIRT__DISKS__:0"
        with joining.open("wb") as log:
            child = Child(
                [other.program, "client", "add_lockspace", "-s", spec, "-o", "1"],
                environment=other.environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(
            "renewals of ours beside the intruder",
            lambda: read_delta(pair.lease_dir, OURS).timestamp > before.timestamp + 4,
            within=15,
        )
        assert child.running
        assert read_delta(pair.lease_dir, OURS).resource == pair.ours.name
        child.kill()
    finally:
        other.close()
