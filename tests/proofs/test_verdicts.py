"""The slice of the comparison with ``sanlock direct`` that CI runs, and that a difference is seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.proofs import verdicts
from tests.proofs.verdicts import Case, Verdict, compare

pytestmark = pytest.mark.busy

CI_CASES = 4000


@pytest.mark.real("sanlock")
def test_a_few_verdicts() -> None:
    outcomes, met = verdicts.run(60, seed=1)
    assert outcomes["DIFFERS"] == 0
    assert len(met) > 5


@pytest.mark.long
@pytest.mark.real("sanlock")
def test_the_slice_of_the_verdicts() -> None:
    seed = random.SystemRandom().randrange(2**32)
    outcomes, met = verdicts.run(CI_CASES, seed=seed)
    assert outcomes["DIFFERS"] == 0, f"seed {seed}: see the cases on stderr"
    # Every number that a reader of either kind can be given was met, and every documented exception.
    kinds = {f"resource {number}" for number in (0, -223, -224, -226, -227, -229)}
    kinds |= {f"lockspace {number}" for number in (0, -1, -22, -223, -224, -226, -229)}
    assert set(met) == kinds, f"seed {seed}"
    assert {name.split()[0] for name in outcomes} == {"same", "stricter", "first"}


CASE = Case("resource", "512-1M", "unused", 0, 0, bytes(512))


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (Verdict(0, "", {"lver": 1}), Verdict(0, "", {"lver": 1}), "same"),
        (Verdict(0, "", {"lver": 1}), Verdict(0, "", {"lver": 2}), "DIFFERS"),
        (Verdict(-223, "wrong-magic", {}), Verdict(-223, "", {}), "same"),
        (Verdict(-223, "wrong-magic", {}), Verdict(0, "", {}), "DIFFERS"),
        (Verdict(0, "", {}), Verdict(-229, "", {}), "DIFFERS"),
        (Verdict(None, "wrong-field", {}), Verdict(0, "", {}), "stricter wrong-field"),
        (Verdict(None, "wrong-field", {}), Verdict(-229, "", {}), "DIFFERS"),
        (Verdict(-223, "wrong-magic", {}), Verdict(-1, "", {}), "DIFFERS"),
    ],
)
def test_what_counts_as_the_same(ours: Verdict, theirs: Verdict, outcome: str) -> None:
    assert compare(CASE, Path("unused"), ours, theirs).split(":")[0] == outcome


def test_the_first_look_is_excused_for_the_first_record_of_a_lockspace_only() -> None:
    ours, theirs = Verdict(-223, "wrong-magic", {}), Verdict(-1, "", {})
    first = CASE._replace(kind="lockspace", host_id=2)
    assert compare(first, Path("unused"), ours, theirs) == "first look wrong-magic/-1"
    assert compare(first._replace(sector=1), Path("unused"), ours, theirs).startswith("DIFFERS")
