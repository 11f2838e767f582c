"""The explorer over small scenes in every run of the tests, and a slice of the large ones in the long run."""

from __future__ import annotations

import pytest

from tests.proofs.explore import as_it_must, line
from tests.proofs.explorer import SCENES, check, explore, replay
from vmlockctl.lease import ballot

SMALL = ("two", "two-shared", "two-mixed")
MIDDLE = ("two-late", "two-crash", "to-shared", "to-exclusive", "two-retry", "three-1")
LARGE = ("two-epochs", "two-all", "three-2", "four-1")
CI_STATES = 450_000  # of each large scene


@pytest.mark.parametrize("name", SMALL)
def test_every_interleaving_of_a_small_scene(name: str) -> None:
    result = check(name)
    assert result.finished
    assert as_it_must(name, result), line(name, result)
    assert result.endings > 0


def test_hosts_that_do_not_give_way_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The explorer has teeth: without the look at larger ballots two hosts win, and the trace says how."""
    monkeypatch.setattr(ballot, "_aborted_by", lambda *arguments: None)
    result = check("two", shortest=True)
    assert result.violation is not None
    assert result.violation.kind in ("two owners", "wrong")
    assert result.violation.trace[-1].startswith(result.violation.kind.upper())
    assert replay(SCENES["two"], result.violation.replay) == result.violation.trace


def test_a_host_that_does_not_wait_for_its_late_write_is_found() -> None:
    """faults.md finding 3: a write that timed out lands over what its host wrote since."""
    scene = SCENES["two-late"]._replace(quarantine=False, attempts=2, ballots=2)
    result = explore(scene, max_states=50_000, shortest=True)
    assert result.violation is not None
    assert result.violation.kind == "backward"


@pytest.mark.long
@pytest.mark.parametrize("name", [*MIDDLE, *LARGE])
def test_a_large_scene(name: str) -> None:
    result = check(name, max_states=CI_STATES)
    assert as_it_must(name, result), line(name, result)
    assert result.finished or result.states >= CI_STATES
