"""Every seeded bug is found, and the code without them is clean (``mutants``)."""

from __future__ import annotations

from typing import Optional

import pytest

from tests.proofs.mutants import find, runs_of
from tests.proofs.mutants_catalogue import BY_NAME, CHECKS, MUTANTS, Mutant
from tests.proofs.mutated import OutOfDate, mutated_source

pytestmark = pytest.mark.busy


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.old], ids=lambda mutant: mutant.name)
def test_the_source_has_the_snippet_of_each_mutant(mutant: Mutant) -> None:
    compile(mutated_source(mutant), mutant.module, "exec")


def test_a_snippet_that_is_gone_is_an_error() -> None:
    gone = MUTANTS[0]._replace(old="no such line")
    with pytest.raises(OutOfDate, match="0 times"):
        mutated_source(gone)


def test_the_catalogue_is_large_enough_and_each_check_is_used() -> None:
    assert len(MUTANTS) >= 24
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


def test_one_mutant_is_found_and_the_original_is_not() -> None:
    mutant = BY_NAME["the settle wait is one second short"]
    assert find(mutant.check, None).finding.violation == ""
    found = find(mutant.check, mutant)
    assert found.finding.violation
    assert found.finding.steps == len(found.finding.trace) > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("check", "mutant"),
    runs_of(MUTANTS),
    ids=lambda value: value.name if isinstance(value, Mutant) else str(value),
)
def test_every_mutant_is_found(check: str, mutant: Optional[Mutant]) -> None:
    run = find(check, mutant)
    assert run.is_right, str(run)
