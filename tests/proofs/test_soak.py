"""The slices of soak and fairness that every change must pass, and the proof that their oracle has teeth."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Optional

import pytest

from tests.proofs import fairness
from tests.proofs.progress import Progress
from tests.proofs.soak import Soak
from tests.support.contender import DOWNGRADE, SHARED, Contender, Turn
from tests.support.contest import Contest

HANDOVERS = 500
GRANTS = 1_000


@pytest.mark.long
@pytest.mark.real("sanlock")
@pytest.mark.timeout(600)
def test_hand_overs_with_real_sanlock_lose_nothing(tmp_path: Path) -> None:
    seed = time.time_ns() % 1_000_000
    with Contest(tmp_path / "soak", sanlock=2, ours=2) as contest:
        progress = Progress("soak", HANDOVERS, seed=seed)
        Soak(contest, progress, seed=seed, command_line=2).run("mixed", HANDOVERS)
        contest.check()
        assert contest.findings == [], f"seed {seed}"
        assert contest.handovers >= HANDOVERS
        assert contest.lost_updates == 0
        assert all(contest.grants[contender.name] for contender in contest.contenders), contest.grants
        assert all(contest.shared[contender.name] for contender in contest.contenders), contest.shared


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nobody_starves(tmp_path: Path) -> None:
    with Contest(tmp_path / "fairness", sanlock=0, ours=4) as contest:
        fairness.contend(contest, GRANTS)
        assert contest.findings == []
        assert sum(contest.grants.values()) >= GRANTS


def test_the_counter_finds_out_who_has_no_lease(tmp_path: Path) -> None:
    """Two that take what they want lose updates, see the other's, and disturb who only looks."""
    with Contest(tmp_path / "none", sanlock=0, ours=0, none=2) as contest:

        def next_turn(_who: Contender) -> Optional[Turn]:
            # By chance, or two that keep step count and watch by turns for ever.
            return None if found() else Turn(random.choice((DOWNGRADE, SHARED)), hold_seconds=0.005)

        def found() -> bool:
            kinds = ("under an exclusive", "under a shared")
            return all(any(kind in text for text in contest.findings) for kind in kinds)

        contest.all_at_once(next_turn, lambda _outcome: None)
        assert found()


def test_an_update_that_is_not_in_the_counter_is_a_finding(tmp_path: Path) -> None:
    with Contest(tmp_path / "none", sanlock=0, ours=0, none=1) as contest:
        [alone] = contest.contenders
        assert contest.one(alone, Turn()).exclusive == 1
        contest.check()
        assert contest.findings == []
        contest.grants[alone.name] += 1
        contest.check()
        assert contest.findings == ["1 updates of the counter were lost"]
