"""A proof of many hours, done in parts: the result of each piece in a file, for one state of the code.

The file begins with what the results are of: the proof, its settings, and a digest of every module of this
project that the proof loads. Results of other code are refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[2]


class OtherResults(Exception):
    """The file holds results of something else."""


class Kept(NamedTuple):
    """The result of one piece."""

    piece: str
    seconds: float  # since the result before it
    result: dict[str, Any]


class Keeper:
    """Results on file, one a line. Without a path nothing is kept."""

    def __init__(self, path: Optional[Path], proof: str, **settings: object) -> None:
        self.before: list[Kept] = []
        self._path = path
        self._told = time.monotonic()
        if path is None:
            return
        about = {"proof": proof, **settings, "code": code_digest(f"tests.proofs.{proof}")}
        if path.exists():
            first, *lines = path.read_text(encoding="utf-8").splitlines() or ["{}"]
            if json.loads(first) != about:
                raise OtherResults(f"{path}: results of {first}, not of {json.dumps(about)}; begin a new one")
            self.before = [Kept(*json.loads(line)) for line in lines]
        else:
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")

    @property
    def pieces(self) -> set[str]:
        """The pieces that were done before."""
        return {kept.piece for kept in self.before}

    @property
    def seconds(self) -> float:
        """How long they took."""
        return sum(kept.seconds for kept in self.before)

    def add(self, piece: object, result: dict[str, Any]) -> None:
        """Put the result of a piece on file."""
        now = time.monotonic()
        seconds, self._told = now - self._told, now
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(Kept(str(piece), round(seconds, 3), result)) + "\n")


def code_digest(module: str) -> str:
    """A digest of the modules of this project that come with this one, by name and content."""
    digest = hashlib.sha256()
    for name, file in _loaded_with(module):
        digest.update(f"{name}\0".encode() + Path(file).read_bytes())
    return digest.hexdigest()


def _loaded_with(module: str) -> list[list[str]]:
    program = (
        f"import json, sys, {module}\n"
        "files = [(name, m.__file__) for name, m in sys.modules.items() if getattr(m, '__file__', None)]\n"
        "print(json.dumps(sorted(f for f in files if f[0].split('.')[0] in ('vmlockctl', 'tests'))))"
    )
    command = [sys.executable, "-c", program]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
