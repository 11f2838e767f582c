"""Mutation testing of the codecs and the durations with mutmut: at least 90 % of the mutants are killed.

``pip install -e '.[test,mutation]'`` first (mutmut needs Python 3.10). Which code and which tests is in
``pyproject.toml``; it runs in a copy. A mutant that survives is either listed in ``equivalent_mutants.txt``
with the reason why no test can tell it from the original, or is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.proofs.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("vmlockctl", "tests", "pyproject.toml", "README.rst", "LICENSE")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
ENOUGH = 0.9

_PROGRESS = re.compile(rb"(\d+)/(\d+) ")


class Survivor(NamedTuple):
    """A mutant that no test noticed: the function, and what its changed lines say now."""

    name: str
    change: str

    @property
    def function(self) -> str:
        return self.name.rsplit("__mutmut_", 1)[0].replace(".x_", ".")


def equivalents() -> dict[tuple[str, str], str]:
    """(function, changed lines) -> why it is no other program."""
    found = {}
    for line in EQUIVALENT.read_text().splitlines():
        if line and not line.startswith("#"):
            function, change, reason = (part.strip() for part in line.split(" | "))
            found[function, change] = reason
    return found


def mutmut(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout


def run(directory: Path, workers: int) -> None:
    """Run all mutants, and tell how far it is."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(workers)]
    progress = None
    said = bytearray()
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read1(4096):
            said += chunk
            for done, total in _PROGRESS.findall(chunk):
                progress = progress or Progress("mutation", int(total))
                progress.add(int(done) - progress.done)
    if process.returncode:
        raise RuntimeError(f"mutmut run failed with {process.returncode}:\n{said.decode(errors='replace')}")


def survivors(directory: Path) -> list[Survivor]:
    found = []
    for line in mutmut(directory, "results").splitlines():
        name, _, verdict = line.strip().partition(": ")
        if verdict in ("survived", "no tests"):
            shown = mutmut(directory, "show", name).splitlines()
            added = [text[1:].strip() for text in shown if text.startswith("+") and text[:3] != "+++"]
            found.append(Survivor(name, " ".join(added)))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")


def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        directory = Path(name)
        for entry in COPIED:
            copy = shutil.copytree if (ROOT / entry).is_dir() else shutil.copy2
            copy(ROOT / entry, directory / entry)
        run(directory, arguments.workers)
        mutmut(directory, "export-cicd-stats")
        figures = json.loads((directory / "mutants" / "mutmut-cicd-stats.json").read_text())
        left = survivors(directory)
    known = equivalents()
    unknown = [mutant for mutant in left if (mutant.function, mutant.change) not in known]
    for mutant in unknown:
        print(f"survived: {mutant.function} | {mutant.change}")
    total = figures["total"]
    killed = total - len(left)
    print(
        f"mutation: {killed} of {total} mutants killed ({100 * killed / total:.1f} %), "
        f"{len(left) - len(unknown)} equivalent, {len(unknown)} survived"
    )
    return 0 if killed >= ENOUGH * total else 1
