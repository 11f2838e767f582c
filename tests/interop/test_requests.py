"""Requests beside real sanlock: whoever is asked, on whichever side, lets go (format 4.9)."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.disk import lease_is_free, lease_owner, read_direct, resource_path, shared_hosts
from tests.support.pair import OURS, THEIRS, Pair
from tests.support.programs import Child, Result, standing_process
from tests.support.sanlockhost import resource_spec, sanlock_direct
from tests.support.waiting import wait_for
from vmlockctl.ondisk.request import Request

pytestmark = pytest.mark.real("sanlock")

# The asker's renewal carries the bit, the owner's sees it: 2 + 2 s at io_timeout 1, and a process to end.
HEEDED_SECONDS = 10
# sanlock heeds each sender once in 6 io_timeouts (4.9): soon after another request of ours, this one waits.
HEEDED_AT_LAST_SECONDS = 6 + HEEDED_SECONDS

FORCE, GRACEFUL = "1", "2"

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def record(pair: Pair, disk: Path) -> Request:
    return Request.from_bytes(read_direct(resource_path(pair.lease_dir, disk), 512, 512))


def their_request(pair: Pair, disk: Path, mode: str, *, lver: int) -> Result:
    spec = f"{resource_spec(pair.lease_dir, disk)}:{lver}"
    return pair.theirs.client("request", "-r", spec, "-f", mode)


def test_our_holder_ends_when_sanlock_asks(pair: Pair, their_disk: Path) -> None:
    with standing_process() as holder:
        assert pair.our_acquire(holder, their_disk, shared=False).returncode == 0
        asked = their_request(pair, their_disk, GRACEFUL, lver=2)
        assert asked.returncode == 0, asked
        assert record(pair, their_disk) == Request(lver=2, force_mode=2)
        assert holder.wait(within=HEEDED_SECONDS) == -signal.SIGTERM
    wait_for("the release", lambda: lease_is_free(pair.lease_dir, their_disk), within=3)
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    assert pair.lver(their_disk) == 2
    pair.theirs.release(theirs)


@pytest.mark.long
def test_our_stubborn_holder_ends_when_sanlock_forces_it(
    pair: Pair, their_disk: Path, tmp_path: Path
) -> None:
    log = tmp_path / "asked"
    with log.open("wb") as output, Child([sys.executable, "-c", STUBBORN], stdout=output) as holder:
        wait_for("the holder", lambda: "ready" in log.read_text(), within=10)
        assert pair.our_acquire(holder, their_disk, shared=False).returncode == 0
        assert their_request(pair, their_disk, GRACEFUL, lver=2).returncode == 0
        wait_for("the SIGTERM", lambda: "asked" in log.read_text(), within=HEEDED_SECONDS)
        assert lease_owner(pair.lease_dir, their_disk) == OURS
        assert their_request(pair, their_disk, FORCE, lver=2).returncode == 0
        assert holder.wait(within=HEEDED_SECONDS) == -signal.SIGKILL
    wait_for("the release", lambda: lease_is_free(pair.lease_dir, their_disk), within=3)


def test_sanlocks_holder_ends_when_we_ask(pair: Pair, their_disk: Path, holder: Child) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    requested = pair.ours.json("request", their_disk)
    assert (requested["lver"], requested["owner"]["host_id"]) == (2, THEIRS)
    dump = sanlock_direct("dump", str(resource_path(pair.lease_dir, their_disk)), "-f", "1")
    assert "/2/2" in dump.stdout, f"sanlock does not read our request as one: {dump}"

    assert theirs.returncode(within=HEEDED_AT_LAST_SECONDS) == -signal.SIGTERM
    waited = pair.ours.acquire(holder.pid, their_disk, options=[f"--wait={HEEDED_SECONDS}"])
    assert waited.returncode == 0, waited
    assert lease_owner(pair.lease_dir, their_disk) == OURS
    assert pair.ours.release(holder.pid, their_disk).returncode == 0


@pytest.mark.long
def test_sanlocks_holder_is_killed_when_we_force_it(pair: Pair, their_disk: Path, holder: Child) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    assert pair.ours.json("request", "--force", their_disk)["force"] is True
    assert theirs.returncode(within=HEEDED_AT_LAST_SECONDS) == -signal.SIGKILL
    wait_for("sanlock's release", lambda: lease_is_free(pair.lease_dir, their_disk), within=5)
    assert pair.our_acquire(holder, their_disk, shared=False).returncode == 0
    assert pair.ours.release(holder.pid, their_disk).returncode == 0


@pytest.mark.long
def test_a_request_that_we_took_back_ends_nobody(pair: Pair, their_disk: Path) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    pair.ours.succeed("request", "--force", their_disk)
    pair.ours.succeed("request", "--clear", their_disk)
    assert record(pair, their_disk) == Request()
    cleared_at = time.monotonic()
    # Two renewals of each side: whoever would have looked has looked.
    wait_for("the renewals", lambda: time.monotonic() - cleared_at > 6, within=7)
    assert theirs.running
    assert lease_owner(pair.lease_dir, their_disk) == THEIRS
    pair.theirs.release(theirs)


def test_a_shared_lease_of_sanlock_is_never_asked_for(pair: Pair, their_disk: Path) -> None:
    """12.2-i: a daemon that shares a lease and meets a request kills its own process group."""
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    for options in ([], ["--force"]):
        answer_text = pair.ours.succeed("request", *options, their_disk).stdout
        assert "nobody holds the lease exclusively" in answer_text
    assert record(pair, their_disk) == Request()
    spec = resource_spec(pair.lease_dir, their_disk)
    assert pair.theirs.client("examine", "-r", spec).returncode == 0
    assert shared_hosts(pair.lease_dir, their_disk) == [THEIRS]
    assert theirs.running
    pair.theirs.release(theirs)
