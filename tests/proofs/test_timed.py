"""The delta lease against the clock, as far as CI runs it (``timed``)."""

from __future__ import annotations

import pytest

from tests.proofs.timed import SHORT_DEAD, SHORT_SETTLE, SLICE, SMOKE, Case, cases, check

pytestmark = pytest.mark.busy


def verify(case: Case) -> None:
    outcome = check(case)
    if case.must_be_clean:
        assert outcome.first is None
        assert not case.silences or outcome.takeovers, "a dead holder's host id is taken"
    else:
        assert outcome.first is not None, f"{outcome.states} states, and nothing was found one tick below"


@pytest.mark.parametrize("case", cases(SMOKE), ids=str)
def test_the_bounds_of_the_delta_lease(case: Case) -> None:
    verify(case)


@pytest.mark.long
@pytest.mark.parametrize("case", cases(SLICE), ids=str)
def test_the_bounds_of_the_delta_lease_in_finer_ticks(case: Case) -> None:
    verify(case)


def test_the_traces_end_in_the_violation() -> None:
    """A trace begins with nobody there, and says who did what."""
    for bounds in (SHORT_SETTLE, SHORT_DEAD):
        found = check(Case(1, 2, 1, 1, int(bounds == SHORT_DEAD), False, bounds)).first
        assert found is not None
        assert found.trace[0] == "A starts"
        assert found.what.split()[0] == found.trace[-1].split()[0], "whose last action it was"
