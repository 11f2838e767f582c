"""The explorer over small scenes in every run of the tests, and a slice of the large ones in the long run."""

from __future__ import annotations

import pytest

from tests.proofs.explore import as_it_must, line
from tests.proofs.explorer import SCENES, check, explore, replay
from vmlockctl.lease import ballot

pytestmark = pytest.mark.busy

SMALL = ("two", "two-shared")
TEETH = tuple(name for name, scene in SCENES.items() if scene.finds)
LARGE = ("two-epochs", "two-all", "two-retry", "two-rejoin", "three-2", "three-late", "four-1")
CI_STATES = 300_000  # of each large scene


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
    result = check("no-quarantine")
    assert result.violation is not None
    assert result.violation.kind == "two owners"
    assert any("a late write of host 1 lands" in step for step in result.violation.trace)
    assert replay(SCENES["no-quarantine"], result.violation.replay) == result.violation.trace


def test_what_a_procedure_has_forgotten_makes_no_difference() -> None:
    """The same endings and bounds whether procedures are told apart by memory or by their whole history."""
    scene = SCENES["two"]._replace(ballots=1, errors=1)
    merged, plain = (explore(scene, merge=merge) for merge in (True, False))
    assert merged.finished
    assert plain.finished
    assert merged.states < plain.states
    assert (merged.endings, merged.most_ios) == (plain.endings, plain.most_ios)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SCENES if name not in (*SMALL, *TEETH, *LARGE)])
def test_every_interleaving_of_a_scene(name: str) -> None:
    result = check(name, max_states=CI_STATES)
    assert as_it_must(name, result), line(name, result)
    assert result.finished or result.states >= CI_STATES


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_a_slice_of_a_large_scene(name: str) -> None:
    result = check(name, max_states=CI_STATES)
    assert as_it_must(name, result), line(name, result)
    assert result.states >= CI_STATES
