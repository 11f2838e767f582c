"""What each host does: the shipped procedures, one after the other, as a graph of suspended procedures.

A host's program is a list of rounds. In each it acquires the lease, holds it, and releases it; what goes
wrong is retracted, as the managers do it. A node is one suspended procedure of one host, with the step that
it waits for. What follows from a result is found out once, by replaying the results that led to the node; and
nodes that remember the same are one node (``remembered``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, Optional

from tests.proofs.explorer.image import Image
from tests.proofs.explorer.memory import (
    IO_TIMEOUT,
    LOCKSPACE,
    NOW,
    RESOURCE,
    SEEN_AT,
    Memory,
    Place,
    host_name,
)
from tests.proofs.explorer.remembered import remembered
from vmlockctl.errors import ContentionError, IoTimeout, OnDiskError, StorageError
from vmlockctl.lease import paxos, release, resource
from vmlockctl.lease.liveness import Observation
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.steps import Clock, Random, ReadSectors, Wait, WriteSector

EXCLUSIVE, SHARED = "EX", "SH"

START, READ, WRITE, DONE, WRONG = range(5)  # kinds of node

_OVER = "over"  # the end of a program
_SPARE = 4  # suspended procedures that are kept at a node, so that few have to be replayed
_LATER = 50  # the attempt that a host makes when all programs are over

ACQUIRE, VERIFY, RELEASE, RETRACT = "acquire", "verify", "release", "retract"
BEGIN, END = "begin", "end"

View = tuple[tuple[int, bool], ...]  # of each host: its generation, and whether it was seen to be dead
ERRORS = {"error": StorageError("Input/output error"), "timeout": IoTimeout("no answer from the storage")}


class Phase(NamedTuple):
    """Where a host is in its program: one procedure, and what it is called with."""

    kind: str
    attempt: int  # acquires of this host so far: its clock
    round: int
    tries: int  # acquires in this round
    generation: int
    view: View = ()
    lver: int = 0
    shared: bool = False
    grants: Optional[str] = None  # the mode in which the host holds the lease from here on


class Node:
    """One suspended procedure of one host."""

    __slots__ = (
        "after", "content", "drops", "failed", "host_id", "kind", "local", "looked", "number", "parent", "partly",
        "phase", "place", "result", "slot", "slots", "suspended", "told", "what", "wrote",
    )  # fmt: skip

    def __init__(self, host_id: int, phase: Phase, kind: int) -> None:
        self.host_id = host_id
        self.phase = phase
        self.kind = kind
        self.number = -1
        self.parent: Optional[Node] = None
        self.result: Any = None  # what the parent was told
        self.suspended: list[Any] = []  # procedures that stand here, each to be resumed once
        self.place: Optional[Place] = None
        self.slots: list[int] = []
        self.slot = -1
        self.content = -1
        self.what = ""
        self.local = False  # nobody else can change what it reads
        self.drops = False  # its step ends the hold
        self.wrote = False  # this procedure has begun a write
        self.partly: tuple[int, ...] = ()  # of a read sector by sector: what it has seen so far
        self.told: dict[int, Node] = {}  # memory -> what follows when the read sees it
        # What follows, by what was looked at: numbers in ``slots`` -> their contents -> node.
        self.looked: dict[tuple[int, ...], dict[tuple[int, ...], Node]] = {}
        self.after: Optional[Node] = None  # what follows when the write is acknowledged
        self.failed: dict[str, Node] = {}


class Programs:
    """The nodes of all hosts of a scene, made as they are reached."""

    def __init__(self, memory: Memory, rounds: Mapping[int, tuple[str, ...]], **options: Any) -> None:
        self.memory = memory
        self.nodes: list[Node] = []
        self.torn: bool = options.pop("torn")
        self.attempts: int = options.pop("attempts")
        self.watched: bool = options.pop("watched")  # others may be seen to die: an acquire begins on its own
        self.verify: bool = options.pop("verify")
        self.deltas_change: bool = options.pop("deltas_change")
        self.merge: bool = options.pop("merge")
        assert not options, options
        # Behind the program stands one more round, for the time when everybody else has ended.
        self._rounds = {host_id: (*modes, _OVER, EXCLUSIVE, _OVER) for host_id, modes in rounds.items()}
        self._known: dict[Hashable, Node] = {}
        self._claimants: dict[Hashable, Claimant] = {}
        self._constants = {id(RESOURCE), id(LOCKSPACE)}
        self.live: View = tuple((1, False) for _ in rounds)

    # -- what follows --------------------------------------------------------------------------------

    def first(self, host_id: int, generation: int = 1) -> Node:
        return self._enter(host_id, Phase(BEGIN, 0, 0, 0, generation))

    def over(self, host_id: int) -> Node:
        """The end of a host's program."""
        return self._enter(host_id, Phase(END, 0, 0, 0, 0))

    def alone(self, host_id: int, generation: int, view: View, tries: int) -> Node:
        """An acquire of a host when all programs are over, to be tried so many times."""
        last = len(self._rounds[host_id]) - 2
        return self._enter(
            host_id, Phase(ACQUIRE, _LATER, last, self.attempts - tries, generation, view)
        )

    def begin(self, node: Node, view: View) -> Node:
        """An acquire begins, with what its host has seen of the others."""
        return self._enter(node.host_id, node.phase._replace(kind=ACQUIRE, view=view))

    def reads(self, node: Node, memory: int) -> Node:
        """A read comes back with what is in the memory now; whole, or its next sector."""
        seen = self.memory.seen(memory, node.slots)
        if self.torn and len(node.slots) > 1:
            seen = (*node.partly, seen[len(node.partly)])
        child = None
        for numbers, children in node.looked.items():
            child = child or children.get(tuple([seen[number] for number in numbers]))
        if child is None:
            if len(seen) < len(node.slots):
                child, numbers = self._sees_part(node, seen), tuple(range(len(seen)))
            else:
                child, numbers = self._sees(node, seen)
            node.looked.setdefault(numbers, {})[tuple([seen[number] for number in numbers])] = child
        node.told[memory] = child
        return child

    def acknowledged(self, node: Node) -> Node:
        if node.after is None:
            node.after = self._resume(node, None)
        return node.after

    def fails(self, node: Node, error: str) -> Node:
        if error not in node.failed:
            node.failed[error] = self._resume(node, error)
        return node.failed[error]

    # -- one procedure after another -----------------------------------------------------------------

    def _enter(self, host_id: int, phase: Phase) -> Node:
        if phase.kind == BEGIN and self._rounds[host_id][phase.round] == _OVER:
            phase = Phase(END, 0, 0, 0, 0)
        elif phase.kind == BEGIN and not self.watched:
            phase = phase._replace(kind=ACQUIRE, view=self.live)
        key = host_id, phase
        if key not in self._known:
            if phase.kind in (BEGIN, END):
                self._known[key] = self._add(Node(host_id, phase, START if phase.kind == BEGIN else DONE))
            else:
                generator = self._procedure(host_id, phase)
                self._known[key] = self._suspended(host_id, phase, generator, None, None, wrote=False)
        return self._known[key]

    def _procedure(self, host_id: int, phase: Phase) -> Any:
        claimant = self._claimant(host_id, phase)
        if phase.kind == ACQUIRE:
            return paxos.acquire(claimant, RESOURCE, shared=self._rounds[host_id][phase.round] == SHARED)
        if phase.kind == VERIFY:
            return resource.verify_held(claimant, RESOURCE, lver=phase.lver, shared=phase.shared)
        if phase.kind == RELEASE:
            return release.release(claimant, RESOURCE, lver=phase.lver, shared=phase.shared)
        assert phase.kind == RETRACT, phase
        return release.retract(claimant, RESOURCE)

    def _claimant(self, host_id: int, phase: Phase) -> Claimant:
        key = host_id, phase.attempt, phase.generation, phase.view
        if key not in self._claimants:
            claimant = self._claimants[key] = self._made_claimant(host_id, phase)
            self._constants.add(id(claimant))
        return self._claimants[key]

    def _made_claimant(self, host_id: int, phase: Phase) -> Claimant:
        now, rows = NOW + phase.attempt, {}
        for other, (generation, dead) in enumerate(phase.view, start=1):
            rows[other] = Observation(
                owner_id=other,
                owner_generation=generation,
                timestamp=SEEN_AT + generation - 1,
                host_name=host_name(other),
                io_timeout=IO_TIMEOUT,
                first_check=now - 100,
                last_check=now,
                last_live=now - 69 if dead else now,
            )
        return Claimant(LOCKSPACE, host_id, phase.generation, IO_TIMEOUT, rows)

    def _ended(self, node: Node, outcome: Any) -> Node:
        """The procedure of a node has returned or raised: what its host does then."""
        phase, host_id = node.phase, node.host_id
        following = phase._replace(view=(), grants=None)
        if isinstance(outcome, StorageError):
            if type(node.result) is not str:
                return self._wrong(node, f"no I/O failed, and {phase.kind} raised {outcome!r}")
            return self._enter(host_id, following._replace(kind=RETRACT))
        if isinstance(outcome, ContentionError) and phase.kind == ACQUIRE:
            if node.wrote or node.kind == WRITE:
                return self._enter(host_id, following._replace(kind=RETRACT))
            return self._next_attempt(host_id, following)
        if isinstance(outcome, BaseException):
            return self._wrong(node, f"{phase.kind} raised {type(outcome).__name__}: {outcome}")
        if phase.kind == ACQUIRE:
            return self._granted(node, outcome)
        if phase.kind == VERIFY:
            return self._enter(host_id, following._replace(kind=RELEASE))
        if phase.kind == RELEASE:
            return self._next_round(host_id, following)
        return self._next_attempt(host_id, following)

    def _granted(self, node: Node, held: Any) -> Node:
        phase = node.phase
        mode = self._rounds[node.host_id][phase.round]
        if held.shared != (mode == SHARED):
            return self._wrong(node, f"asked for {mode}, granted {held}")
        if held.leader.owner != (node.host_id, phase.generation):
            return self._wrong(node, f"granted by a leader that names {held.leader.owner}")
        kind = VERIFY if self.verify else RELEASE
        return self._enter(
            node.host_id,
            phase._replace(kind=kind, view=(), lver=held.leader.lver, shared=held.shared, grants=mode),
        )

    def _next_attempt(self, host_id: int, phase: Phase) -> Node:
        """After an acquire that came to nothing: once more, or on to the next round."""
        if phase.tries + 1 >= self.attempts:
            return self._next_round(host_id, phase)
        phase = phase._replace(kind=BEGIN, attempt=phase.attempt + 1, tries=phase.tries + 1)
        return self._enter(host_id, phase._replace(lver=0, shared=False))

    def _next_round(self, host_id: int, phase: Phase) -> Node:
        phase = Phase(BEGIN, phase.attempt + 1, phase.round + 1, 0, phase.generation)
        return self._enter(host_id, phase)

    # -- one procedure -------------------------------------------------------------------------------

    def _sees(self, node: Node, seen: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        """What follows when a read returns, and which of the sectors decided that."""
        assert node.place is not None
        image = self.memory.read(node.place, seen)
        everything = tuple(range(len(seen)))
        if not self.merge:
            return self._resume(node, (seen, image.whole())), everything
        child = self._resume(node, (seen, image))
        if child.kind == WRONG:  # perhaps only because it looked at the image in an unforeseen way
            return self._resume(node, (seen, image.whole())), everything
        first = node.place.first
        sectors = [self.memory.sector_number(slot) - first for slot in node.slots]
        return child, tuple(number for number, sector in enumerate(sectors) if sector in image.seen)

    def _resume(self, node: Node, result: Any) -> Node:
        wrote = node.wrote or node.kind == WRITE
        origin = node
        while origin.partly:
            assert origin.parent is not None
            origin = origin.parent
        generator = origin.suspended.pop() if origin.suspended else self._replayed(origin)
        return self._suspended(node.host_id, node.phase, generator, origin, result, wrote=wrote)

    def _replayed(self, node: Node) -> Any:
        """A procedure that stands where the node's stood, for a second result."""
        trail = []
        at = node
        while at.parent is not None and not at.suspended:
            trail.append((at.parent, at.result))
            at = at.parent
        if at.suspended:
            generator = at.suspended.pop()
        else:
            generator = self._procedure(node.host_id, node.phase)
            self._ask(generator, None, None, node.phase)
        for parent, result in reversed(trail):
            self._ask(generator, parent, result, node.phase)
        return generator

    def _ask(self, generator: Any, node: Optional[Node], result: Any, phase: Phase) -> Any:
        """Tell a procedure a result; return the next step that is an access to the storage."""
        if node is None:
            step = next(generator)
        elif type(result) is str:
            step = generator.throw(ERRORS[result].with_traceback(None))
        elif node.kind == READ:
            step = generator.send(result[1])
        else:
            step = generator.send(None)
        while not isinstance(step, (ReadSectors, WriteSector)):
            if isinstance(step, Clock):
                step = generator.send(NOW + phase.attempt)
            elif isinstance(step, Random):
                step = generator.send(0.5)
            else:
                assert isinstance(step, Wait), step
                step = generator.send(None)
        return step

    def _suspended(
        self, host_id: int, phase: Phase, generator: Any, parent: Optional[Node], result: Any, *, wrote: bool
    ) -> Node:
        node = Node(host_id, phase, DONE)
        node.parent, node.result, node.wrote = parent, result, wrote
        try:
            step = self._ask(generator, parent, result, phase)
        except StopIteration as end:
            return self._ended(node, end.value)
        except Exception as error:  # noqa: BLE001 - what a procedure raises is what is explored
            return self._ended(node, error)
        state = remembered(generator, self._constants) if self.merge else None
        key: Hashable = (host_id, phase, wrote, step, state)
        if state is None:
            key = node
            if isinstance(result, tuple) and isinstance(result[1], Image):
                result[1].whole()  # it may still be looked at
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._add(self._describe(node, step))
        if len(known.suspended) < _SPARE:
            known.suspended.append(generator)
        return known

    def _describe(self, node: Node, step: Any) -> Node:
        memory, first = self.memory, node.parent is None
        if isinstance(step, ReadSectors):
            node.kind, node.place = READ, memory.place(step)
            node.slots = memory.slots(node.place)
            private = {memory.own_slot(node.host_id)}
            if not self.deltas_change:
                private |= {memory.delta_slot(host_id) for host_id in self._rounds}
            node.local = private.issuperset(node.slots)
            node.drops = first and node.phase.kind == RELEASE
            return node
        node.kind, node.what, node.content = WRITE, step.what, memory.content(step.data)
        try:
            node.slot = memory.slot(step)
        except KeyError:
            return self._make_wrong(node, f"wrote sector {step.sector} of {step.area.path}: {step.what}")
        try:
            memory.verify(node.slot, step.data)
        except OnDiskError as error:
            return self._make_wrong(node, f"wrote a record that does not verify: {error}")
        foreign = node.slot not in (0, memory.own_slot(node.host_id))
        if foreign and (any(step.data) or not self._is_dead(node)):
            return self._make_wrong(node, f"wrote a sector of another host: {step.what}")
        return node

    def _is_dead(self, node: Node) -> bool:
        """Whether the sector that a node writes is that of a host that its host has seen dead."""
        return any(
            dead and node.slot == self.memory.own_slot(host_id)
            for host_id, (_, dead) in enumerate(node.phase.view, start=1)
        )

    def _sees_part(self, node: Node, seen: tuple[int, ...]) -> Node:
        part = Node(node.host_id, node.phase, READ)
        part.parent, part.wrote, part.partly = node, node.wrote, seen
        part.place, part.slots, part.drops = node.place, node.slots, False
        return self._add(part)

    def _wrong(self, node: Node, text: str) -> Node:
        return self._add(self._make_wrong(node, text))

    def _make_wrong(self, node: Node, text: str) -> Node:
        node.kind, node.what = WRONG, text
        return node

    def _add(self, node: Node) -> Node:
        node.number = len(self.nodes)
        self.nodes.append(node)
        return node

