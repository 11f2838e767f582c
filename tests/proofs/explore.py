"""Explore bounded scenes of the shipped procedures: every interleaving, crashes, late writes, retries."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any, Optional

from tests.proofs.explorer import SCENES, Result, check, replay
from tests.proofs.progress import Progress

DEFAULT_STATES = 10_000_000  # of one scene: two at a time fit into 8 GB of memory
_LOOK_SECONDS = 5.0

# About how many states the larger scenes have, for the ETA and the order: the long ones begin first.
_SMALL = 150_000
_MORE = 1 << 40
_SIZES = {
    "two-all": _MORE, "four-1": _MORE, "two-retry": 8_000_000, "two-late-twice": 6_500_000,
    "two-errors": 5_700_000, "two-epochs": 3_100_000, "three-2": 3_200_000, "three-epochs": 1_000_000,
    "three-late": 830_000, "three-crash": 800_000, "two-rejoin": 740_000, "two-to-exclusive": 500_000,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scene", action="append", choices=sorted(SCENES), help="only these; default: all")
    parser.add_argument("--states", type=int, default=DEFAULT_STATES, help="at most so many of one scene")
    parser.add_argument("--shortest", action="store_true", help="breadth first: a shortest trace")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replay", help="choices of one run of the only --scene, as a violation prints them")


def main(arguments: argparse.Namespace) -> int:
    """Explore, print a line for each scene and one of figures; 1 if a scene ends otherwise than it must."""
    names, began = list(arguments.scene or SCENES), time.monotonic()
    if arguments.replay is not None:
        choices = [int(choice) for choice in arguments.replay.split(",") if choice]
        print("\n".join(replay(SCENES[names[0]], choices)))
        return 0
    names.sort(key=lambda name: -_SIZES.get(name, _SMALL))
    results: dict[str, Result] = {}
    for name, result in _explored(names, arguments.states, shortest=arguments.shortest, jobs=arguments.jobs):
        results[name] = result
        print(line(name, result), flush=True)
    wrong = [name for name, result in results.items() if not as_it_must(name, result)]
    states = sum(result.states for result in results.values())
    finished = sum(result.finished for result in results.values())
    endings = sum(result.endings for result in results.values())
    most = max(result.most_ios for result in results.values())
    print(
        f"explore: {states} states of {len(names)} scenes ({finished} to their end), {endings} final states, "
        f"a lone host acquires within {most} I/Os, {len(wrong)} violations or stuck states"
        f"{': ' + ', '.join(wrong) if wrong else ''}, {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


def _explored(names: list[str], states: int, *, shortest: bool, jobs: int) -> Iterator[tuple[str, Result]]:
    """Each scene in a process of its own: its memory is given back with it."""
    visited: Any = multiprocessing.Value("q", 0)
    progress = Progress("explore", sum(min(states, _SIZES.get(name, _SMALL)) for name in names))
    with multiprocessing.Pool(jobs, _share, (visited,), maxtasksperchild=1) as pool:
        results = pool.imap_unordered(_explore_one, [(name, states, shortest) for name in names])
        left = len(names)
        while left:
            try:
                yield results.next(timeout=_LOOK_SECONDS)
                left -= 1
            except multiprocessing.TimeoutError:
                progress.add(visited.value - progress.done, states=visited.value, scenes_left=left)


_visited: Any = None  # of all processes together


def _share(visited: Any) -> None:
    global _visited  # noqa: PLW0603 - a pool's initializer has no other way to hand something over
    _visited = visited


def _explore_one(task: tuple[str, int, bool]) -> tuple[str, Result]:
    name, states, shortest = task
    return name, check(name, max_states=states, shortest=shortest, report=_report)


def _report(states: int) -> None:
    with _visited.get_lock():
        _visited.value += states


def as_it_must(name: str, result: Result) -> bool:
    """Clean; or, of a scene that shows the explorer's teeth, with the violation that it must find."""
    wanted: Optional[str] = SCENES[name].finds
    return wanted == (result.violation.kind if result.violation is not None else None)


def line(name: str, result: Result) -> str:
    """One scene in figures, and the trace of what was found."""
    how = "all" if result.finished else "the first"
    text = f"{name}: {how} {result.states} states, {result.moves} moves, {result.seconds:.0f} s"
    if result.violation is None:
        return f"{text}: clean"
    choices = ",".join(map(str, result.violation.replay))
    steps = "\n".join(f"  {step}" for step in result.violation.trace)
    again = f"python -m tests.proofs explore --scene {name} --replay {choices}"
    return f"{text}: {result.violation.kind}: {result.violation.text}\n{steps}\n  again: {again}"
