"""Proofs that are done in parts: what was kept counts, and results of other code are refused."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

from tests.proofs import simulate
from tests.proofs.kept import ROOT, Keeper, OtherResults, code_digest
from tests.proofs.simulator.scenario import Size, run_seed
from tests.support.programs import run_command


def arguments_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
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
        assert simulate.main(arguments_of(*words)) == 0
        lines.append(capsys.readouterr().out)
    assert ran == [0, 1, 2, 3, 4]
    assert [re.search(r"seeds=(\d+)", line)[1] for line in lines] == ["3", "5"]  # type: ignore[index]
    again = [
        simulate.from_record(kept.result)
        for kept in Keeper(tmp_path / "kept", "simulate", watchdog=True).before
    ]
    assert again == [run_seed(seed, size=small) for seed in range(5)]


def test_fuzzing_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """In a process of its own, whose memory is bounded."""
    path = tmp_path / "kept"
    command = [sys.executable, "-m", "tests.proofs", "fuzz", "--cases", "40k", "--seed", "7"]
    command += ["--target", "delta", "--jobs", "1", "--keep", str(path)]
    whole = run_command(command, cwd=ROOT)
    assert "40,000 cases (delta 40,000)" in whole.stdout
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    rest = run_command(command, cwd=ROOT)
    assert "fuzz: 20,000 cases" in rest.stderr
    assert "40,000 cases (delta 40,000)" in rest.stdout
    assert (whole.returncode, rest.returncode) == (0, 0)


def test_results_of_other_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    Keeper(path, "timed").add("piece", {"figure": 1})
    assert Keeper(path, "timed").before[0].result == {"figure": 1}
    about, *results = path.read_text().splitlines()
    assert json.loads(about)["code"] == code_digest("tests.proofs.timed") != code_digest("tests.proofs.kept")
    path.write_text("\n".join([json.dumps({**json.loads(about), "code": "0" * 64}), *results]))
    with pytest.raises(OtherResults, match="begin a new one"):
        Keeper(path, "timed")
