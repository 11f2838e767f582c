"""Every reachable state of a scene, once.

Depth first, which keeps few states waiting; or breadth first, whose first violation has a shortest trace.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Optional

from tests.proofs.explorer.ending import Endings
from tests.proofs.explorer.scenes import SCENES, Scene
from tests.proofs.explorer.trace import narrate
from tests.proofs.explorer.world import State, Violated, World
from vmlockctl.lease import paxos
from vmlockctl.ondisk import checksum, dblock, leader

Report = Callable[[int], None]  # is told of states that were visited since it was last told
_REPORT_EVERY = 1 << 14


class Violation(NamedTuple):
    """What is broken, how it comes to that in readable steps, and the choices that lead there."""

    kind: str
    text: str
    trace: list[str]
    replay: tuple[int, ...]


class Result(NamedTuple):
    """How an exploration ended; ``states`` counts distinct states."""

    states: int
    finished: bool
    violation: Optional[Violation]
    moves: int = 0
    endings: int = 0
    most_ios: int = 0
    seconds: float = 0.0


def check(
    scene: str, *, max_states: Optional[int] = None, shortest: bool = False, report: Optional[Report] = None
) -> Result:
    """Explore a scene by its name."""
    return explore(SCENES[scene], max_states=max_states, shortest=shortest, report=report)


def explore(
    scene: Scene,
    *,
    max_states: Optional[int] = None,
    shortest: bool = False,
    merge: bool = True,
    report: Optional[Report] = None,
) -> Result:
    """Follow everything that can happen in a scene, up to the first violation or to ``max_states``.

    Of a scene that must find one kind of violation the others are ways that are not followed further.
    """
    with _bounded(scene):
        search = _Search(World(scene, merge=merge), max_states, report)
        return search.run(breadth_first=shortest or scene.finds is not None)


def replay(scene: Scene, choices: Sequence[int]) -> list[str]:
    """The steps of one run, given what was chosen in each state."""
    with _bounded(scene):
        return narrate(World(scene), choices)


@contextmanager
def _bounded(scene: Scene) -> Iterator[None]:
    """The bound on ballots, and checksums that are computed once for each record."""
    retries, plain = paxos.BALLOT_RETRIES, checksum.checksum
    once = lru_cache(maxsize=1 << 16)(plain)
    enabled = gc.isenabled()
    paxos.BALLOT_RETRIES = scene.ballots
    dblock.checksum = leader.checksum = once  # type: ignore[attr-defined]
    gc.disable()  # everything that is made here is kept, and nothing of it is a cycle to be collected
    try:
        yield
    finally:
        paxos.BALLOT_RETRIES = retries
        dblock.checksum = leader.checksum = plain  # type: ignore[attr-defined]
        if enabled:
            gc.enable()


class _Search:
    def __init__(self, world: World, max_states: Optional[int], report: Optional[Report]) -> None:
        self._world = world
        self._most = max_states or (1 << 62)
        self._report = report
        self._endings = Endings(world)

    def run(self, *, breadth_first: bool) -> Result:
        world, most, began = self._world, self._most, time.monotonic()
        start = world.initial()
        seen: set[State] = {start}
        # A path is a linked list: (path before, number of the choice). What nobody waits for is forgotten.
        waiting: deque[tuple[State, Any]] = deque([(start, None)])
        take = waiting.popleft if breadth_first else waiting.pop
        moves_made, visited, violation = 0, 0, None
        while waiting and visited < most:
            state, path = take()
            visited += 1
            try:
                moves = world.moves(state)
                if not moves or world.is_final(state):
                    self._end(state)
            except Violated as violated:
                if world.scene.finds not in (None, violated.kind):
                    continue
                violation = self._violation(violated, path)
                break
            moves_made += len(moves)
            for number, (_, following) in enumerate(moves):
                if following not in seen:
                    seen.add(following)
                    waiting.append((following, (path, number)))
            if self._report and not visited % _REPORT_EVERY:
                self._report(_REPORT_EVERY)
        return Result(
            states=len(seen),
            finished=not waiting and violation is None,
            violation=violation,
            moves=moves_made,
            endings=self._endings.count,
            most_ios=self._endings.most_ios,
            seconds=time.monotonic() - began,
        )

    def _end(self, state: State) -> None:
        if not self._world.is_final(state):
            raise Violated("stuck", "nothing can happen, and not every host has come to its end")
        self._endings.check(state)

    def _violation(self, violated: Violated, path: Any) -> Violation:
        choices: list[int] = [violated.choice] if violated.choice >= 0 else []
        while path is not None:
            path, number = path
            choices.append(number)
        choices.reverse()
        return Violation(violated.kind, violated.text, narrate(self._world, choices), tuple(choices))
