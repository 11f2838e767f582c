"""The table of section 3.5, at its bounds."""

from __future__ import annotations

import pytest

from tests.sim.scene import NOW, Scene, seen_live, seen_silent
from vmlockctl.lease.liveness import (
    DEAD,
    FAIL,
    FREE,
    LIVE,
    NEVER_OBSERVED,
    UNKNOWN,
    Observation,
    dead_in_seconds,
    host_state,
    observe,
    shared_holder_is_alive,
)
from vmlockctl.ondisk.leader import Leader


@pytest.fixture
def record() -> Leader:
    return Scene().put_delta(2, timestamp=77)


def test_the_first_look_is_no_verdict(record: Leader) -> None:
    row = observe(NEVER_OBSERVED, record, 100)
    assert row == Observation(2, 1, 77, "hostB", 1, 100, 100, 100)
    assert host_state(row, 100, own_io_timeout=1) == UNKNOWN
    assert host_state(row, 108, own_io_timeout=1) == UNKNOWN
    assert host_state(row, 108.5, own_io_timeout=1) == FAIL
    assert host_state(row, 168, own_io_timeout=1) == FAIL
    assert host_state(row, 168.5, own_io_timeout=1) == DEAD


def test_a_change_is_a_sign_of_life(record: Leader) -> None:
    row = observe(observe(NEVER_OBSERVED, record, 100), record._replace(timestamp=79), 102)
    assert (row.first_check, row.last_check, row.last_live) == (100, 102, 102)
    assert host_state(row, 110, own_io_timeout=1) == LIVE
    assert host_state(row, 110.1, own_io_timeout=1) == FAIL


def test_a_smaller_timestamp_is_a_change_too(record: Leader) -> None:
    """A rebooted host counts from its own boot: "different", never "greater"."""
    row = observe(observe(NEVER_OBSERVED, record, 100), record._replace(timestamp=1), 102)
    assert row.last_live == 102


@pytest.mark.parametrize("field", ["owner_id", "owner_generation", "timestamp"])
def test_each_of_three_fields_counts(record: Leader, field: str) -> None:
    row = observe(NEVER_OBSERVED, record, 100)
    assert observe(row, record._replace(**{field: 9}), 105).last_live == 105
    assert observe(row, record._replace(io_timeout=9, lver=9), 105).last_live == 100


def test_no_change_only_moves_the_last_look(record: Leader) -> None:
    row = observe(NEVER_OBSERVED, record, 100)
    assert observe(row, record, 130) == row._replace(last_check=130)


def test_a_host_id_that_nobody_has_had(record: Leader) -> None:
    never = record._replace(owner_id=0, owner_generation=0, timestamp=0)
    row = observe(NEVER_OBSERVED, never, 100)
    assert row == Observation(first_check=100, last_check=100)
    assert host_state(row, 100, own_io_timeout=1) == FREE
    assert observe(row, never, 110) == row._replace(last_check=110)
    row = observe(row, record, 120)
    assert (row.first_check, row.last_live) == (100, 120)
    assert host_state(row, 121, own_io_timeout=1) == LIVE


def test_a_released_record_is_free(record: Leader) -> None:
    row = observe(observe(NEVER_OBSERVED, record, 100), record._replace(timestamp=0), 102)
    assert host_state(row, 500, own_io_timeout=1) == FREE


def test_we_are_alive(record: Leader) -> None:
    row = observe(NEVER_OBSERVED, record, 100)
    assert host_state(row, 10_000, own_io_timeout=1, is_ours=True) == LIVE


def test_whose_io_timeout(record: Leader) -> None:
    """The other host's; ours only where its own cannot be."""
    row = seen_silent(2, 500, 100, io_timeout=5)
    assert host_state(row, 500, own_io_timeout=1) == FAIL
    assert host_state(row._replace(io_timeout=4), 500, own_io_timeout=20) == DEAD
    for absurd in (0, 256, 65535):
        assert host_state(row._replace(io_timeout=absurd), 500, own_io_timeout=20) == LIVE
        assert host_state(row._replace(io_timeout=absurd), 500, own_io_timeout=1) == DEAD


def test_a_row_that_never_saw_a_change_counts_from_its_first_look() -> None:
    row = Observation(2, 1, 77, "hostB", 1, first_check=100, last_check=150)
    assert row.last_change == 100
    assert host_state(row, 168, own_io_timeout=1) == FAIL
    assert host_state(row, 169, own_io_timeout=1) == DEAD


@pytest.mark.parametrize(("silent", "left"), [(0, 68), (8, 60), (68, 0), (100, 0)])
def test_when_it_can_be_taken_for_dead(silent: float, left: float) -> None:
    assert dead_in_seconds(seen_silent(2, NOW, silent), NOW, own_io_timeout=1) == left


@pytest.mark.parametrize(
    ("row", "generation", "alive"),
    [
        (NEVER_OBSERVED, 1, True),
        (seen_live(2, NOW), 1, True),
        (seen_live(2, NOW, timestamp=0), 1, False),
        (seen_live(2, NOW, generation=2), 1, False),
        (seen_live(2, NOW, generation=2), 2, True),
        (seen_live(2, NOW, generation=2), 3, True),
        (seen_silent(2, NOW, 68), 1, True),
        (seen_silent(2, NOW, 68.01), 1, False),
        (seen_silent(2, NOW, 100, io_timeout=5), 1, True),
        (seen_silent(2, NOW, 101, io_timeout=5), 1, False),
    ],
)
def test_shared_holders_are_alive_unless_known_to_be_dead(
    row: Observation, generation: int, alive: bool
) -> None:
    assert shared_holder_is_alive(row, generation, NOW, own_io_timeout=1) == alive


@pytest.mark.parametrize("timestamp", [0, 5])
def test_what_was_seen_of_an_earlier_generation_says_nothing_of_this_one(timestamp: int) -> None:
    """The host left, or died, and joined again since we looked: its shared mark is a live holder's."""
    row = seen_silent(2, NOW, 500, generation=3, timestamp=timestamp)
    assert not shared_holder_is_alive(row, 3, NOW, own_io_timeout=1)
    assert shared_holder_is_alive(row, 4, NOW, own_io_timeout=1)


def test_a_holder_is_not_dead_for_want_of_looking() -> None:
    """Only what was observed counts: 69 s in which our own reads failed prove nothing about it."""
    row = seen_live(2, NOW)  # renewed a moment before our storage hung
    assert shared_holder_is_alive(row, 1, NOW + 69, own_io_timeout=10)
