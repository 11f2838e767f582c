"""The slice of the fuzzing that CI runs, what failed before, and that the oracle has teeth."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import fuzz
from tests.proofs.fuzzing.cases import Found, Patch
from tests.proofs.fuzzing.memory import Memory
from tests.proofs.fuzzing.mutate import DBLOCK_LAYOUT, LEADER_LAYOUT, Mutator
from tests.proofs.fuzzing.procedures import _write_resource
from tests.proofs.fuzzing.scenes import NOW, RESOURCE_PATH, SPACE_PATH, US, scene
from vmlockctl.lease.steps import WriteSector
from vmlockctl.ondisk.dblock import Dblock
from vmlockctl.ondisk.leader import Leader

pytestmark = pytest.mark.busy

ROOT = Path(__file__).resolve().parents[2]
CI_CASES = 2_000_000


@pytest.mark.parametrize("path", fuzz.saved_cases(), ids=lambda path: path.stem)
def test_what_failed_before_passes(path: Path) -> None:
    assert fuzz.replay(path) is None


def test_a_few_cases_for_every_reader() -> None:
    counts = dict.fromkeys(fuzz.TARGETS, 16)
    result = fuzz.run_piece(fuzz.Piece("smoke", counts))
    assert result.failures == []


@pytest.mark.long
def test_the_slice_of_two_million_cases() -> None:
    """In a process of its own: the bound on memory is on all of it. One seed: a landing is no lottery."""
    program = (
        "import argparse; from tests.proofs import fuzz; parser = argparse.ArgumentParser(); "
        "fuzz.add_arguments(parser); raise SystemExit(fuzz.main(parser.parse_args()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--cases", str(CI_CASES), "--seed", "3", "--jobs", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    done = re.search(r"^fuzz: ([\d,]+) cases", result.stdout, re.MULTILINE)
    assert done is not None, result.stdout
    assert int(done[1].replace(",", "")) >= CI_CASES


# -- the tools ------------------------------------------------------------------------------------------


def test_repaired_checksums_are_right_and_others_mostly_wrong() -> None:
    leader = scene("few/held-us").resource[:512]
    sectors = list(Mutator(leader, LEADER_LAYOUT).cases(random.Random(1), 400))
    right = sum(Leader.from_bytes(s) == Leader.from_bytes(s).sealed() for s in sectors)
    assert 200 < right < 360
    dblock = scene("few/phase-2").resource[512 * 4 : 512 * 5]
    blocks = [Dblock.from_bytes(s) for s in Mutator(dblock, DBLOCK_LAYOUT).cases(random.Random(1), 400)]
    assert 200 < sum(block == block.sealed() for block in blocks) < 360
    assert len(set(sectors)) > 300


def test_every_field_is_mutated() -> None:
    base = Leader.from_bytes(scene("few/held-us").resource)
    changed = set()
    for sector in Mutator(base.sector(512), LEADER_LAYOUT).cases(random.Random(2), 2000):
        found = Leader.from_bytes(sector)
        changed |= {field for field in Leader._fields if getattr(found, field) != getattr(base, field)}
    assert changed == set(Leader._fields)


def memory_of(name: str) -> Memory:
    return Memory({SPACE_PATH: scene(name).space, RESOURCE_PATH: scene(name).resource}, now=NOW)


@pytest.mark.parametrize("host_id", [1, 3, 4, 8])
def test_a_write_to_the_sector_of_another_host_is_found(host_id: int) -> None:
    made = scene("few/shared-live")
    step = WriteSector(made.area, made.geometry.dblock_sector(host_id), bytes(512), 1, "test")
    with pytest.raises(Found, match=f"host id {host_id}"):
        _write_resource(memory_of("few/shared-live"), step)


def test_a_leader_that_goes_back_is_found() -> None:
    made = scene("few/released")
    leader = Leader.from_bytes(made.resource)
    older = leader._replace(lver=leader.lver - 1).sealed().sector(512)
    with pytest.raises(Found, match="lver goes back"):
        _write_resource(memory_of("few/released"), WriteSector(made.area, 0, older, 1, "test"))


def test_a_write_beyond_the_area_is_found() -> None:
    made = scene("few/unused")

    def stray() -> object:
        yield WriteSector(made.area, made.geometry.sectors, bytes(512), 1, "test")

    with pytest.raises(Found, match="outside its area"):
        memory_of("few/unused").run(stray(), may_write=lambda *_: None)


def test_what_a_case_changed_is_put_back() -> None:
    memory = memory_of("few/unused")
    before = memory.image(RESOURCE_PATH)
    memory.change((Patch(RESOURCE_PATH, 0, b"x" * 600), Patch(RESOURCE_PATH, 300, b"y")), 4096)
    assert memory.image(RESOURCE_PATH) != before
    memory.restore()
    assert memory.image(RESOURCE_PATH) == before
    assert memory.sizes[RESOURCE_PATH] == len(before)
    assert scene("few/unused").claimant.host_id == US


def test_an_exception_that_is_not_ours_is_found_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the failing case to the command that repeats it."""

    def broken(_: bytes) -> float:
        raise KeyError("lver")

    target = fuzz.TARGETS["dblock"]
    monkeypatch.setitem(fuzz.TARGETS, "dblock", target._replace(run=broken))
    monkeypatch.setattr(fuzz, "SEEDS", tmp_path)
    result = fuzz.run_piece(fuzz.Piece("1", {"dblock": 3}))
    assert len(result.failures) == 3
    fuzz._report(result.failures, {})
    [saved] = tmp_path.iterdir()
    assert f"fuzz --case {saved}" in capsys.readouterr().err
    assert "KeyError" in str(fuzz.replay(saved))
    monkeypatch.setitem(fuzz.TARGETS, "dblock", target)
    assert fuzz.replay(saved) is None


@pytest.mark.parametrize(("milliseconds", "is_found"), [(40, False), (60, True)])
def test_a_case_that_takes_too_long_is_found(
    monkeypatch: pytest.MonkeyPatch, milliseconds: int, is_found: bool
) -> None:
    """The clock is asked before and after each run."""
    ticks = itertools.count(0, milliseconds)
    monkeypatch.setattr(fuzz.time, "process_time", lambda: next(ticks) / 1000)
    why, _ = fuzz.try_case(fuzz.TARGETS["bitmap"], bytes(512))
    assert why == ("60 ms of CPU, at most 50 ms are expected" if is_found else None)
