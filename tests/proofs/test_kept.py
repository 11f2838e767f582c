"""Proofs that are done in parts: what was kept counts, and results of other code are refused."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from tests.proofs import fuzz, simulate
from tests.proofs.kept import Keeper, OtherResults, code_digest
from tests.proofs.simulator.scenario import Size, run_seed


def arguments_of(proof: object, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    proof.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(words)


def test_a_simulation_goes_on_where_it_was_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, ran = Size(acquisitions=20, host_seconds=86400.0), []

    def run(seed: int, **options: bool) -> simulate.Result:
        ran.append(seed)
        return run_seed(seed, size=small, **options)

    monkeypatch.setattr(simulate, "run_seed", run)
    monkeypatch.setattr(simulate, "kept_seeds", list)
    lines = []
    for years in ("0.1", "0.2"):
        words = ("--years", years, "--jobs", "1", "--keep", str(tmp_path / "kept"))
        assert simulate.main(arguments_of(simulate, *words)) == 0
        lines.append(capsys.readouterr().out)
    assert ran == [0, 1, 2, 3, 4]
    assert [re.search(r"seeds=(\d+)", line)[1] for line in lines] == ["3", "5"]  # type: ignore[index]
    again = [
        simulate.from_record(kept.result)
        for kept in Keeper(tmp_path / "kept", "simulate", watchdog=True).before
    ]
    assert again == [run_seed(seed, size=small) for seed in range(5)]


def test_fuzzing_goes_on_where_it_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kept"
    words = ("--cases", "40k", "--seed", "7", "--target", "delta", "--jobs", "1", "--keep", str(path))
    assert fuzz.main(arguments_of(fuzz, *words)) == 0
    whole = capsys.readouterr().out
    assert "40,000 cases (delta 40,000)" in whole
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert fuzz.main(arguments_of(fuzz, *words)) == 0
    captured = capsys.readouterr()
    assert "fuzz: 20,000 cases" in captured.err
    assert "40,000 cases (delta 40,000)" in captured.out


def test_results_of_other_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    Keeper(path, "timed").add("piece", {"figure": 1})
    assert Keeper(path, "timed").before[0].result == {"figure": 1}
    about, *results = path.read_text().splitlines()
    assert json.loads(about)["code"] == code_digest("tests.proofs.timed") != code_digest("tests.proofs.kept")
    path.write_text("\n".join([json.dumps({**json.loads(about), "code": "0" * 64}), *results]))
    with pytest.raises(OtherResults, match="begin a new one"):
        Keeper(path, "timed")
