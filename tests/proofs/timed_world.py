"""Time in whole ticks: every latency of every I/O of the shipped generators, each state once (faults.md 3b).

Some contenders want one host id. Each is a generator; it cannot be copied, but it is deterministic, so what
it asks for next follows from what it was told (``Player``). A state is the sector on the disk and, of each
contender, what it was told and how old its I/O, its wait and its last good renewal are. Absolute time is no
part of it, so every start offset is explored.

    Within a tick   an I/O looks or lands at any moment from its issue to its answer, and is answered at most
                    ``timeout_seconds`` ticks after its issue; any order among the contenders
    At its end      waits end after the I/Os whose last tick it is: an I/O lasts at most its timeout, a wait
                    at least its length
    A holder        lives up to and including ``lifetime`` ticks after the start of its last good renewal, the
                    whole host is gone then, with whatever it had in flight; it may fall silent at any moment
                    before. Where ``pauses``, it stands still between two renewals instead, clock and all, and
                    goes on when another has its host id (faults.md finding 1)

A reading of the clock gives a number that the host has not given before: timestamps are compared for equality
only (sanlock-format.md 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Optional

from vmlockctl.lease.steps import Clock, Journal, ReadSectors, Wait, WriteSector

CLOCK, CLAIMED, GRANTED, RENEWED = "clock", "claimed", "granted", "renewed"
LOST, LEAVING, DONE = "lost", "leaving", "done"


class Mark(NamedTuple):
    """What a contender announces to the checker."""

    what: str


class Due(NamedTuple):
    """Wait until so many seconds after the last reading of the clock."""

    seconds: int


class Violation(NamedTuple):
    what: str
    trace: tuple[str, ...]


class Outcome(NamedTuple):
    """What was explored, and what was found; ``first`` is one of the shortest."""

    states: int
    violations: int
    first: Optional[Violation]
    takeovers: int  # claims on the record of a holder that is gone


# How far a contender is with what it asked for. GONE: the whole host, at the end of its lifetime.
AWAY, ISSUED, LANDED, WAITING, ENDED, SILENT, PAUSED, GONE = range(8)

_NEVER = -1
_STALE = -2  # it was paused past the end of its lifetime, and does not know


class _Node(NamedTuple):
    """A contender that was told so much: what it announced on the way, and what it asks for now."""

    marks: tuple[str, ...]
    step: Any
    told: tuple[Optional[int], ...]
    granted: bool


class _Contender(NamedTuple):
    stage: int
    node: int
    age: int  # ticks since its I/O was issued or its wait began
    seen: int  # the sector that its read saw
    asked: int  # ticks since it last read its clock
    good: int  # ticks since the start of its last good renewal; negative where it holds nothing

    @property
    def lives(self) -> bool:
        """Whether it rightfully holds the host id."""
        return self.good >= 0


class _Move(NamedTuple):
    """Something that can happen in a state."""

    action: str
    after: Any
    wrong: str = ""
    took_over: int = 0


_UNBORN = -1
_AWAY = _Contender(AWAY, _UNBORN, 0, 0, 0, _NEVER)


class Player:
    """One contender's generator, as a machine: (node, sector told) -> node."""

    def __init__(
        self, name: str, make: Callable[[], Generator[Any, Any, None]], *, clock: int, lifetime: int
    ) -> None:
        self.name = name
        self.lifetime = lifetime
        self._make = make
        self._clock = clock
        self.nodes: list[_Node] = []
        self._next: dict[tuple[int, Optional[int]], int] = {}

    def follow(self, node: int, told: Optional[int], sectors: list[bytes]) -> int:
        key = (node, told)
        if key not in self._next:
            history = () if node == _UNBORN else (*self.nodes[node].told, told)
            self._next[key] = len(self.nodes)
            self.nodes.append(self._replay(history, sectors))
        return self._next[key]

    def _replay(self, history: tuple[Optional[int], ...], sectors: list[bytes]) -> _Node:
        procedure, pending = self._make(), list(history)
        marks: list[str] = []
        clock, answer, granted = self._clock, None, False
        while True:
            try:
                step = procedure.send(answer)
            except StopIteration:
                return _Node(tuple(marks), None, history, granted)
            answer = None
            if isinstance(step, Clock):
                clock, answer = clock + 1, clock + 1
                marks.append(CLOCK)
            elif isinstance(step, Journal):
                marks += [] if granted else [CLAIMED]
            elif isinstance(step, Mark):
                granted = granted or step.what == GRANTED
                marks.append(step.what)
            elif not pending:
                return _Node(tuple(marks), step, history, granted)
            else:
                told = pending.pop(0)
                answer = None if told is None else _image(sectors[told], step)
                marks.clear()


@lru_cache(maxsize=256)
def _padded(sector: bytes, count: int) -> bytes:
    return sector.ljust(count * len(sector), b"\0")


def _image(sector: bytes, step: ReadSectors) -> bytes:
    return _padded(sector, step.sector_count)


class World:
    """Explores what a few players can do to one sector."""

    def __init__(
        self,
        players: list[Player],
        sector: bytes,
        *,
        silences: int,
        pauses: bool = False,
        slowest: float = float("inf"),
        alike: bool = True,
    ) -> None:
        """``slowest``: ticks that an I/O takes at most. ``alike``: the players differ in their names only."""
        self.players = players
        self.pauses = pauses
        self.slowest = slowest
        self.alike = alike
        self.sectors = [sector]
        self._numbers = {sector: 0}
        self._pool: dict[_Contender, _Contender] = {}
        self._start = (0, silences, *([_AWAY] * len(players)))

    def explore(self, told: Callable[[int], None] = lambda states: None, *, first: bool = False) -> Outcome:
        """Breadth first, so that the first violation is a shortest one. What follows one is not explored."""
        came_from: dict[Any, Any] = {self._start: None}
        level, violations, takeovers = [self._start], 0, 0
        found: Optional[Violation] = None
        while level and not (first and found):
            reached = []
            for state in level:
                moves = 0
                for move in self._moves(state):
                    moves += 1
                    takeovers += move.took_over
                    if move.wrong:
                        violations += 1
                        found = found or Violation(move.wrong, self._trace(came_from, state, move.action))
                    elif move.after not in came_from:
                        came_from[move.after] = (state, move.action)
                        reached.append(move.after)
                if not moves and not self._was_granted(state):
                    violations += 1
                    found = found or Violation("nobody got the host id", self._trace(came_from, state, ""))
            told(len(level))
            level = reached
        return Outcome(len(came_from), violations, found, takeovers)

    def _was_granted(self, state: Any) -> bool:
        """Whether somebody was granted it; while some have not started nothing is over."""
        return any(
            who.stage == AWAY or player.nodes[who.node].granted
            for who, player in zip(state[2:], self.players)
        )

    @staticmethod
    def _trace(came_from: dict[Any, Any], state: Any, action: str) -> tuple[str, ...]:
        steps = [action] if action else []
        while came_from[state] is not None:
            state, action = came_from[state]
            steps.append(action)
        return tuple(reversed(steps))

    # -- what can happen -------------------------------------------------------------------------------

    def _moves(self, state: Any) -> Iterator[_Move]:
        everybody = state[2:]
        if any(self._is_done(i, who) for i, who in enumerate(everybody)):
            return
        late = any(who.age >= self._timeout(i, who) for i, who in enumerate(everybody))
        waited = [who.stage == WAITING and self._is_over(i, who) for i, who in enumerate(everybody)]
        may_start = True
        for i, who in enumerate(everybody):
            if who.stage == AWAY and may_start:
                may_start = not self.alike  # then they start in order
                yield self._advance(state, i, None, "starts")
            elif who.stage == ISSUED:
                yield self._land(state, i)
            elif who.stage == LANDED:
                told = who.seen if isinstance(self._node(i, who).step, ReadSectors) else None
                yield self._advance(state, i, told, "is answered")
            elif waited[i] and not late:
                yield self._advance(state, i, None, "has waited")
            elif who.stage == SILENT and who.seen == _NEVER:
                yield self._land(state, i)
            elif who.stage == PAUSED and not who.lives and any(other.lives for other in everybody):
                yield _Move(
                    f"{self.players[i].name} goes on",
                    self._with(state, i, who._replace(stage=WAITING, good=_STALE)),
                )
            if who.lives and state[1] and who.stage < ENDED and (who.stage == WAITING or not self.pauses):
                yield self._fall_silent(state, i)
        if not late and not any(waited) and any(who.stage != AWAY for who in everybody):
            after = (*state[:2], *(self._kept(self._older(i, who)) for i, who in enumerate(everybody)))
            if after != state:
                yield _Move("tick", after)

    def _node(self, i: int, who: _Contender) -> _Node:
        return self.players[i].nodes[who.node]

    def _is_done(self, i: int, who: _Contender) -> bool:
        return who.stage == ENDED and self._node(i, who).marks[-1:] == (DONE,)

    def _timeout(self, i: int, who: _Contender) -> float:
        """Ticks that what it asked for may take."""
        if who.stage not in (ISSUED, LANDED):
            return float("inf")
        return min(self.slowest, self._node(i, who).step.timeout_seconds)

    def _is_over(self, i: int, who: _Contender) -> bool:
        step = self._node(i, who).step
        return (who.asked if isinstance(step, Due) else who.age) >= step.seconds

    def _older(self, i: int, who: _Contender) -> _Contender:
        if who.good >= self.players[i].lifetime:
            gone = _Contender(GONE, who.node, 0, 0, 0, _NEVER)
            return who._replace(good=_NEVER) if who.stage == PAUSED else gone
        good = who.good + 1 if who.lives else who.good
        if who.stage in (ISSUED, LANDED, WAITING):
            return who._replace(age=who.age + 1, asked=who.asked + 1, good=good)
        return who._replace(good=good)

    def _kept(self, who: _Contender) -> _Contender:
        return self._pool.setdefault(who, who)

    def _with(self, state: Any, i: int, who: _Contender) -> Any:
        return (*state[: i + 2], self._kept(who), *state[i + 3 :])

    def _land(self, state: Any, i: int) -> _Move:
        """An I/O looks at the sector, or is on it."""
        who, name = state[i + 2], self.players[i].name
        step = self._node(i, who).step
        if isinstance(step, ReadSectors):
            return _Move(f"{name} looks", self._with(state, i, who._replace(stage=LANDED, seen=state[0])))
        number = self._numbers.setdefault(step.data, len(self.sectors))
        if number == len(self.sectors):
            self.sectors.append(step.data)
        stage = SILENT if who.stage == SILENT else LANDED
        after = self._with((number, *state[1:]), i, who._replace(stage=stage, seen=0))
        over = who.good == _STALE and any(other.lives for other in state[2:])
        wrong = f"{name}, which is overdue, writes over the record of a live holder" if over else ""
        return _Move(f"{name} writes: {step.what}", after, wrong)

    def _fall_silent(self, state: Any, i: int) -> _Move:
        who = state[i + 2]
        pending = who.stage == ISSUED and isinstance(self._node(i, who).step, WriteSector)
        quiet = _Contender(SILENT, who.node, 0, _NEVER if pending else 0, 0, who.good)
        if self.pauses:
            quiet = who._replace(stage=PAUSED)
        after = self._with((state[0], state[1] - 1, *state[2:]), i, quiet)
        return _Move(f"{self.players[i].name} falls silent", after)

    def _advance(self, state: Any, i: int, told: Optional[int], how: str) -> _Move:
        """Tell a contender a result; it goes on to its next I/O or wait."""
        who, player = state[i + 2], self.players[i]
        number = player.follow(who.node, told, self.sectors)
        node = player.nodes[number]
        others = [other for j, other in enumerate(state[2:]) if j != i]
        asked, good, wrong, took_over = who.asked, who.good, "", 0
        for mark in node.marks:
            if mark == CLOCK:
                asked = 0
            elif mark in (GRANTED, RENEWED):
                good = asked
            elif mark == LEAVING:
                good = min(good, _NEVER)
            elif mark == LOST:
                wrong = wrong or ("" if good == _STALE else f"{player.name} lost what is rightfully its own")
                good = _NEVER
            if mark in (CLAIMED, GRANTED) and any(other.lives for other in others):
                wrong = wrong or f"{player.name} has {mark} the host id of a live holder"
            took_over += mark == CLAIMED and any(other.stage >= PAUSED for other in others)
        if node.step is None:
            then = _Contender(ENDED, number, 0, 0, 0, good)
        else:
            stage = WAITING if isinstance(node.step, (Wait, Due)) else ISSUED
            then = _Contender(stage, number, 0, 0, asked, good)
        return _Move(f"{player.name} {how}", self._with(state, i, then), wrong, took_over)
