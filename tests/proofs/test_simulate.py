"""Simulated hosts: a few small worlds in every run of the tests, host-years in the long run."""

from __future__ import annotations

import pytest

from tests.proofs.simulate import Job, Totals, kept_seeds, replay, replay_command, simulate
from tests.proofs.simulator.memo import remembering
from tests.proofs.simulator.scenario import YEAR_SECONDS, Result, Size, run_seed
from vmlockctl.lease import paxos, resource

pytestmark = pytest.mark.busy

SMALL = Size(acquisitions=200, host_seconds=86400.0)

# Together 896 seeds: 36 host-years and 2 million acquisitions, in parts that run side by side.
SLICES = 8
SLICE_SEEDS = 112


def told(result: Result) -> str:
    return f"{result.violations[0].text}; again: {replay_command(result, watchdog=True)}"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_small_world_has_no_violation(seed: int) -> None:
    result = run_seed(seed, size=SMALL)
    assert not result.violations, told(result)
    assert result.acquisitions >= SMALL.acquisitions
    assert sum(result.faults.values()) > 0


def test_the_same_seed_is_the_same_world() -> None:
    first, second = (run_seed(5, size=SMALL, trace=True) for _ in range(2))
    assert first == second
    assert any("HOLDS" in line for line in first.trace)


def test_without_a_watchdog_two_owners_are_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """faults.md finding 5: the checker has teeth, and L1 does not cover a host that is frozen whole."""
    results = (run_seed(seed, size=SMALL, watchdog=False) for seed in range(20))
    found = next(result for result in results if result.violations)
    assert " beside " in found.violations[0].text

    monkeypatch.setattr("tests.proofs.simulate.run_seed", lambda seed, **o: run_seed(seed, size=SMALL, **o))
    assert replay(found.seed, watchdog=False, events=4000).violations == found.violations
    shown = capsys.readouterr().err.splitlines()
    assert "VIOLATION" in shown[-2]
    assert sum("HOLDS" in line for line in shown) >= 2


def test_the_procedures_are_the_shipped_ones_again_afterwards() -> None:
    before = resource.verify_paxos, paxos.verify_dblock
    with remembering():
        assert resource.verify_paxos is not before[0]
    assert (resource.verify_paxos, paxos.verify_dblock) == before


@pytest.mark.long
@pytest.mark.parametrize("seed", kept_seeds())
def test_what_failed_before_passes(seed: int) -> None:
    result = run_seed(seed)
    assert not result.violations, told(result)


@pytest.mark.long
@pytest.mark.parametrize("part", range(SLICES))
def test_host_years_without_two_owners(part: int) -> None:
    totals = Totals()
    for result in simulate([Job(1000 + part * SLICE_SEEDS + i, True) for i in range(SLICE_SEEDS)], 1):
        assert not result.violations, told(result)
        totals.add(result)
    assert totals.acquisitions >= 2000 * SLICE_SEEDS
    assert totals.host_seconds >= 0.035 * SLICE_SEEDS * YEAR_SECONDS
    assert min(totals.counts[kind] for kind in ("crashes", "resets", "pauses", "expiries")) > 0


@pytest.mark.long
def test_without_a_watchdog_many_worlds_have_two_owners() -> None:
    found = [run_seed(seed, watchdog=False).violations for seed in range(12)]
    assert sum(map(bool, found)) >= 3
