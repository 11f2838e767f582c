"""Conversions beside real sanlock: each side sees what the other has turned its lease into (format 4.7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disk import lease_is_free, lease_owner, shared_hosts
from tests.support.pair import HELD_BY_ANOTHER_HOST, HELD_SHARED, OURS, THEIRS, Pair
from tests.support.programs import Child

pytestmark = pytest.mark.real("sanlock")


def test_sanlock_shares_what_we_turned_to_shared(pair: Pair, their_disk: Path, holder: Child) -> None:
    assert pair.our_acquire(holder, their_disk, shared=False).returncode == 0
    assert pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)[0] == HELD_BY_ANOTHER_HOST
    version = pair.lver(their_disk)
    converted = pair.our_to_shared(holder, their_disk)
    assert converted.returncode == 0, converted
    assert pair.lver(their_disk) == version, "the version stays"

    assert pair.theirs.acquire(pair.lease_dir, their_disk)[0] == HELD_SHARED
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS, THEIRS]

    assert pair.ours.release(holder.pid, their_disk).returncode == 0
    pair.theirs.release(theirs)
    assert lease_is_free(pair.lease_dir, their_disk)


def test_we_turn_ours_exclusive_when_sanlock_shares_it_no_more(
    pair: Pair, their_disk: Path, holder: Child
) -> None:
    assert pair.our_acquire(holder, their_disk, shared=True).returncode == 0
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    refused = pair.our_acquire(holder, their_disk, shared=False)
    assert refused.returncode == 75
    assert "sanlockhost" in refused.stderr
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS, THEIRS], "it stays shared"

    pair.theirs.release(theirs)
    version = pair.lver(their_disk)
    converted = pair.our_acquire(holder, their_disk, shared=False)
    assert converted.returncode == 0, converted
    assert (lease_owner(pair.lease_dir, their_disk), shared_hosts(pair.lease_dir, their_disk)) == (OURS, [])
    assert pair.lver(their_disk) == version + 1
    for shared in (False, True):
        answer, _ = pair.theirs.acquire(pair.lease_dir, their_disk, shared=shared)
        assert answer == HELD_BY_ANOTHER_HOST
    assert pair.ours.release(holder.pid, their_disk).returncode == 0


def test_we_share_what_sanlock_turned_to_shared(pair: Pair, their_disk: Path, holder: Child) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    assert pair.our_acquire(holder, their_disk, shared=True).returncode == 75
    assert pair.their_convert(theirs, their_disk, shared=True)

    status = pair.ours.lease_status(their_disk)
    assert (status["mode"], [owner["host_id"] for owner in status["owners"]]) == ("shared", [THEIRS])
    refused = pair.our_acquire(holder, their_disk, shared=False)
    assert refused.returncode == 75
    assert "sanlockhost" in refused.stderr
    granted = pair.our_acquire(holder, their_disk, shared=True)
    assert granted.returncode == 0, granted
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS, THEIRS]

    pair.theirs.release(theirs)
    assert pair.ours.release(holder.pid, their_disk).returncode == 0


def test_sanlock_turns_its_lease_exclusive_when_we_share_it_no_more(
    pair: Pair, their_disk: Path, holder: Child
) -> None:
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    assert pair.our_acquire(holder, their_disk, shared=True).returncode == 0
    assert not pair.their_convert(theirs, their_disk, shared=False)
    assert shared_hosts(pair.lease_dir, their_disk) == [OURS, THEIRS], "it stays shared"

    assert pair.ours.release(holder.pid, their_disk).returncode == 0
    assert pair.their_convert(theirs, their_disk, shared=False)
    assert lease_owner(pair.lease_dir, their_disk) == THEIRS
    for shared in (False, True):
        refused = pair.our_acquire(holder, their_disk, shared=shared)
        assert refused.returncode == 75
        assert "sanlockhost" in refused.stderr
    pair.theirs.release(theirs)
    assert lease_is_free(pair.lease_dir, their_disk)


def test_a_conversion_that_sanlock_was_refused_blocks_nobody(
    pair: Pair, their_disk: Path, holder: Child
) -> None:
    """12.2-m: sanlock leaves its dblock unreleased then, beside a leader that is free."""
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk, shared=True)
    assert answer == 0
    assert pair.our_acquire(holder, their_disk, shared=True).returncode == 0
    assert not pair.their_convert(theirs, their_disk, shared=False)
    pair.theirs.release(theirs)
    converted = pair.our_acquire(holder, their_disk, shared=False)
    assert converted.returncode == 0, converted
    assert pair.ours.release(holder.pid, their_disk).returncode == 0
    answer, theirs = pair.theirs.acquire(pair.lease_dir, their_disk)
    assert answer == 0
    pair.theirs.release(theirs)
