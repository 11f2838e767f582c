"""The table of section 3.1."""

from __future__ import annotations

import pytest

from vmlockctl.lease import timeouts

# N, renewal, warning, failure, host dead, settle.
TABLE = [
    (1, 2, 6, 8, 68, 2),
    (5, 10, 30, 40, 100, 10),
    (10, 20, 60, 80, 140, 20),
    (20, 40, 120, 160, 220, 40),
]


@pytest.mark.parametrize(("n", "renewal", "warning", "failure", "dead", "settle"), TABLE)
def test_the_table(n: int, renewal: int, warning: int, failure: int, dead: int, settle: int) -> None:
    assert timeouts.id_renewal_seconds(n) == renewal
    assert timeouts.id_renewal_warn_seconds(n) == warning
    assert timeouts.id_renewal_fail_seconds(n) == failure
    assert timeouts.host_fail_seconds(n) == failure
    assert timeouts.host_dead_seconds(n) == dead
    assert timeouts.join_settle_seconds(n) == settle
    assert timeouts.own_record_watch_seconds(n) == 3 * n
    assert timeouts.read_timeout_seconds(n) == n
    assert timeouts.write_timeout_seconds(n) == n
    assert timeouts.renewal_write_timeout_seconds(n) == dead
    assert timeouts.set_bitmap_seconds(n) == warning
    assert timeouts.bit_stands_seconds(n) == failure


def test_a_failed_renewal_is_tried_again_soon() -> None:
    assert timeouts.renewal_retry_seconds() == 0.5


@pytest.mark.parametrize(
    ("stored", "sane"), [(0, 7), (1, 1), (255, 255), (256, 7), (2**15, 7), (65535, 7), (2**31, 7)]
)
def test_a_foreign_io_timeout_neither_shortens_nor_explodes_a_wait(stored: int, sane: int) -> None:
    assert timeouts.sane_io_timeout(stored, 7) == sane
