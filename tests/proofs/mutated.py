"""One check on the shipped code or on a mutant of it, in a process of its own.

``python -m tests.proofs.mutated CHECK [MUTANT]`` prints what was found as one JSON object. The mutant is
compiled into its module when it is imported, so nobody has a part of the original.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, Optional

from tests.proofs.mutants_catalogue import BY_NAME, CHECKS, EXPLORER, Check, Mutant

ROOT = Path(__file__).resolve().parents[2]
MAX_STATES = 1_500_000  # within which a mutant must be found
MAX_UNCHANGED_STATES = 200_000  # of the original; the explorer's own proof goes to the end


class OutOfDate(Exception):
    """A snippet of the catalogue does not stand exactly once in its module."""


class Finding(NamedTuple):
    """How a check ended. ``steps``: of the trace to the violation."""

    violation: str
    steps: int
    trace: list[str]
    states: int
    seconds: float


def mutated_source(mutant: Mutant) -> str:
    """The source of the mutant's module with the bug in it. Raises ``OutOfDate``."""
    source = (ROOT / (mutant.module.replace(".", "/") + ".py")).read_text()
    if source.count(mutant.old) != 1:
        raise OutOfDate(
            f"{mutant.name!r}: {source.count(mutant.old)} times in {mutant.module}: {mutant.old!r}"
        )
    return source.replace(mutant.old, mutant.new)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._source = mutated_source(mutant)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._mutant.module:
            return None
        location = str(ROOT / (fullname.replace(".", "/") + ".py"))
        loader = _Loader(fullname, location, self._source)
        return importlib.util.spec_from_file_location(fullname, location, loader=loader)


def apply(mutant: Mutant) -> None:
    """From here on whoever imports the module has the bug."""
    assert not any(name.startswith("vmlockctl") for name in sys.modules), "the original is loaded already"
    if mutant.old:
        sys.meta_path.insert(0, _Finder(mutant))


def run(check: Check, max_states: int) -> Finding:
    began = time.monotonic()
    found = _explored(check.bounds, max_states) if check.checker == EXPLORER else _timed(check.bounds)
    return found._replace(seconds=round(time.monotonic() - began, 1))


def _explored(bounds: dict[str, Any], max_states: int) -> Finding:
    from tests.proofs.explorer import Scene, explore

    result = explore(Scene(**bounds), max_states=max_states, shortest=True)
    if result.violation is None:
        return Finding("", 0, [], result.states, 0)
    trace = result.violation.trace
    steps = sum(line.split(".")[0].isdigit() for line in trace)
    return Finding(f"{result.violation.kind}: {result.violation.text}", steps, trace, result.states, 0)


def _timed(bounds: dict[str, Any]) -> Finding:
    from tests.proofs.timed import Case, check

    case = Case(**{"contenders": 2, "watchdog": 1, "silences": 0, "leaves": False, **bounds})
    outcome = check(case, first=True)
    if outcome.first is None:
        return Finding("", 0, [], outcome.states, 0)
    trace = list(outcome.first.trace)
    return Finding(outcome.first.what, len(trace), trace, outcome.states, 0)


def main(check: str, name: Optional[str] = None) -> None:
    if name is not None:
        apply(BY_NAME[name])
    found = run(CHECKS[check], MAX_UNCHANGED_STATES if name is None else MAX_STATES)
    print(json.dumps(found._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
