"""Simulated hosts: a few worlds in every run of the tests, some host-years in the long run."""

from __future__ import annotations

import pytest

from tests.proofs.simulate import WORLD, Figures, failed_seeds, replay_command
from tests.proofs.simulator.scenario import run_seed

SLICE = 40  # worlds of each case: about 0.8 host-years and 85,000 acquisitions
UNGUARDED = 6  # a seed whose world goes wrong within its first minutes when nothing resets a frozen host


def run(seeds: range) -> Figures:
    figures = Figures()
    for seed in seeds:
        result = run_seed(seed, WORLD)
        figures.add(result)
        again = replay_command(seed, watchdog=True)
        assert not figures.violating, f"{result.violations[0].text}; again: {again}"
    return figures


def test_a_small_world_has_no_violation() -> None:
    result = run_seed(1, WORLD._replace(acquisitions=300))
    assert result.violations == []
    assert result.acquisitions >= 300
    assert result.faults.total() > 0


def test_the_same_seed_is_the_same_world() -> None:
    first, second = (run_seed(2, WORLD._replace(acquisitions=150)) for _ in range(2))
    assert first == second


def test_without_a_watchdog_two_owners_are_found() -> None:
    """faults.md finding 5: the checker has teeth, and L1 does not cover a host that is frozen whole."""
    result = run_seed(UNGUARDED, WORLD, watchdog=False, trace=True)
    assert result.violations
    assert " beside " in result.violations[0].text
    assert any("VIOLATION" in line for line in result.trace[-3:])


@pytest.mark.long
@pytest.mark.parametrize("seed", failed_seeds())
def test_what_failed_before_passes(seed: int) -> None:
    assert run(range(seed, seed + 1)).worlds == 1


@pytest.mark.long
@pytest.mark.parametrize("first", [1000 + number * SLICE for number in range(4)])
def test_host_years_without_two_owners(first: int) -> None:
    figures = run(range(first, first + SLICE))
    assert figures.years > 0.7
    assert figures.acquisitions > 80_000
    assert min(figures.counts[kind] for kind in ("crashes", "resets", "pauses", "expiries")) > 0


@pytest.mark.long
def test_without_a_watchdog_many_worlds_have_two_owners() -> None:
    found = [run_seed(seed, WORLD, watchdog=False).violations for seed in range(12)]
    assert sum(map(bool, found)) >= 3
