"""A host that is killed whole: the other takes over after 8 io_timeouts and 60 seconds, never before.

Measured on the disk: from the victim's last renewal that landed to the leader that names the new owner.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.disk import lease_owner, watch_delta, watch_lease
from tests.support.programs import Child
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.sanlockhost import SanlockHost
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.real("sanlock", "qemu-system-x86_64"), pytest.mark.long, pytest.mark.timeout(240)]

OURS, THEIRS = 1, 2
HOST_DEAD_SECONDS = 8 * 1 + 60
# The watcher's own cycle (2 s), the poll of the waiting acquire, and the ballot.
TAKEOVER_SECONDS = HOST_DEAD_SECONDS + 10


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


@pytest.fixture
def pair(host: VmHost, sanlock_host: SanlockHost, lease_dir: Path) -> tuple[VmHost, SanlockHost]:
    sanlock_host.join(lease_dir, THEIRS)
    wait_for("sanlock to see us live", lambda: is_live(sanlock_host, OURS), within=15)
    wait_for("us to see sanlock live", lambda: host.seen_state(THEIRS) == "live", within=15)
    return host, sanlock_host


def is_live(sanlock_host: SanlockHost, host_id: int) -> bool:
    seen = sanlock_host.hosts().get(host_id)
    return seen is not None and seen.state == "LIVE"


def test_sanlock_takes_over_from_a_dead_host_of_ours(
    pair: tuple[VmHost, SanlockHost], lease_dir: Path, disk: Path, qemu: QemuStarter
) -> None:
    ours, theirs = pair
    qemu(*machine(), *drive(disk), host=ours).wait_ready()
    with watch_delta(lease_dir, OURS) as renewals, watch_lease(lease_dir, disk) as leader:
        ours.crash_everything()
        killed = time.monotonic()
        deadline = killed + TAKEOVER_SECONDS
        # Right after the crash sanlock still says "held" (-243), until a renewal of its own saw no change.
        while True:
            remaining = deadline - time.monotonic()
            assert remaining > 0, "sanlock never took over"
            answer, _ = theirs.acquire(lease_dir, disk, within=remaining)
            if answer == 0:
                break
            assert answer == -243
        taken = leader.wait_for("sanlock's leader", lambda record: record.owner_id == THEIRS, within=5)
        assert renewals.last.seen < killed + 0.1
        # From the renewal itself, not from when it was first looked at: all share this machine's clock.
        waited = taken.seen - renewals.last.leader.timestamp
    assert HOST_DEAD_SECONDS < waited < TAKEOVER_SECONDS + 1


def test_we_take_over_from_a_dead_sanlock(
    pair: tuple[VmHost, SanlockHost], lease_dir: Path, disk: Path, qemu: QemuStarter, holder: Child
) -> None:
    ours, theirs = pair
    assert ours.acquire(holder.pid, disk).returncode == 0  # creates the resource file
    assert ours.release(holder.pid, disk).returncode == 0
    assert theirs.acquire(lease_dir, disk)[0] == 0
    with watch_delta(lease_dir, THEIRS) as renewals, watch_lease(lease_dir, disk) as leader:
        theirs.crash_everything()
        killed = time.monotonic()
        waiting = qemu(*machine(), *drive(disk), host=ours, run_options=[f"--wait={TAKEOVER_SECONDS + 30}"])
        taken = leader.wait_for(
            "our leader",
            lambda record: record.owner_id == OURS and record.timestamp > 0,
            within=TAKEOVER_SECONDS,
        )
        assert renewals.last.seen < killed + 0.1
        # From the renewal itself, not from when it was first looked at: all share this machine's clock.
        waited = taken.seen - renewals.last.leader.timestamp
        waiting.wait_ready()
    assert HOST_DEAD_SECONDS < waited < TAKEOVER_SECONDS + 1
    assert ours.seen_state(THEIRS) == "dead"
    assert waiting.quit() == 0


def test_we_take_over_from_a_dead_host_of_ours(
    two_hosts: tuple[VmHost, VmHost], lease_dir: Path, disk: Path,
    qemu: QemuStarter,
) -> None:  # fmt: skip
    """The same between two of ours; a plain start says until when the disk is not free."""
    first, second = two_hosts
    qemu(*machine(), *drive(disk), host=first).wait_ready()
    wait_for("B to see A live", lambda: second.seen_state(OURS) == "live", within=15)
    with watch_delta(lease_dir, OURS) as renewals, watch_lease(lease_dir, disk) as leader:
        first.crash_everything()
        refused = qemu(*machine(), *drive(disk), host=second)
        assert refused.wait(within=20) == 75
        assert first.name in refused.log
        assert lease_owner(lease_dir, disk) == OURS
        waiting = qemu(*machine(), *drive(disk), host=second, run_options=[f"--wait={TAKEOVER_SECONDS + 30}"])
        taken = leader.wait_for(
            "the second host's leader", lambda record: record.owner_id == 2, within=TAKEOVER_SECONDS
        )
        # From the renewal itself, not from when it was first looked at: all share this machine's clock.
        waited = taken.seen - renewals.last.leader.timestamp
        waiting.wait_ready()
    assert HOST_DEAD_SECONDS < waited < TAKEOVER_SECONDS + 1
