"""Suspended procedures as nodes of a graph, made as they are reached.

A node is one suspended procedure of one host, with the access to the storage that it waits for. What follows
from a result is found out once: by resuming a procedure that stands there, or one that is brought there by
replaying its results. Nodes that remember the same are one node (``remembered``), so each of the procedures
that come to it may go on from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, NamedTuple, Optional

from tests.proofs.explorer.image import Image
from tests.proofs.explorer.memory import LOCKSPACE, NOW, RESOURCE, Memory, Place
from tests.proofs.explorer.remembered import remembered
from vmlockctl.errors import IoTimeout, OnDiskError, StorageError
from vmlockctl.lease.steps import Clock, Random, ReadSectors, Wait, WriteSector

START, READ, WRITE, DONE, WRONG = range(5)  # kinds of node

View = tuple[tuple[int, bool], ...]  # of each host: its generation, and whether it was seen to be dead
ERRORS = {"error": StorageError("Input/output error"), "timeout": IoTimeout("no answer from the storage")}

_SPARE = 2  # suspended procedures that are kept at a node, so that few have to be replayed


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
        "after", "becomes", "content", "failed", "host_id", "kind", "lands", "local", "looked", "number",
        "parent", "partly", "phase", "place", "result", "slot", "slots", "suspended", "told", "what", "wrote",
    )  # fmt: skip

    def __init__(self, host_id: int, phase: Phase, kind: int) -> None:
        self.host_id = host_id
        self.phase = phase
        self.kind = kind
        self.number = -1
        self.parent: Optional[Node] = None
        self.result: Any = None  # what the parent was told: (contents, bytes), the name of an error, or None
        self.suspended: list[Any] = []  # procedures that stand here, each to be resumed once
        self.place: Optional[Place] = None
        self.slots: list[int] = []
        self.slot = -1
        self.content = -1
        self.what = ""
        self.local = False  # nobody else can change what it reads
        self.becomes: Optional[str] = None  # the mode in which its host holds the lease from its step on
        self.wrote = False  # this procedure has begun a write
        self.partly: tuple[int, ...] = ()  # of a read sector by sector: what it has seen so far
        self.told: dict[int, Node] = {}  # memory -> what follows when the read sees it
        # What follows, by what was looked at: numbers in ``slots`` -> their contents -> node.
        self.looked: dict[tuple[int, ...], dict[tuple[int, ...], Node]] = {}
        self.lands: dict[int, int] = {}  # memory -> the memory after the write
        self.after: Optional[Node] = None  # what follows when the write is acknowledged
        self.failed: dict[str, Node] = {}

    @property
    def grants(self) -> bool:
        """Whether a host that comes here holds the lease from now on, in the mode of its phase."""
        return self.phase.grants is not None and self.parent is None


class Procedures(ABC):
    """The graph. What a host does when a procedure has ended is for ``Programs`` to say."""

    def __init__(self, memory: Memory, *, torn: bool, deltas_change: bool, merge: bool) -> None:
        self.memory = memory
        self.nodes: list[Node] = []
        self._torn = torn
        self._deltas_change = deltas_change
        self._merge = merge
        self._known: dict[Hashable, Node] = {}
        self._constants = {id(RESOURCE), id(LOCKSPACE)}

    @abstractmethod
    def procedure(self, host_id: int, phase: Phase) -> Any:
        """A new generator for a phase."""

    @abstractmethod
    def ended(self, node: Node, outcome: Any) -> Node:
        """The procedure of a node has returned, or raised, an outcome: what its host does then."""

    # -- what follows --------------------------------------------------------------------------------

    def reads(self, node: Node, memory: int) -> Node:
        """A read comes back with what is in the memory now; whole, or its next sector."""
        seen = self.memory.seen(memory, node.slots)
        if self._torn and len(node.slots) > 1:
            seen = (*node.partly, seen[len(node.partly)])
        child = None
        for numbers, children in node.looked.items():
            if len(numbers) <= len(seen):
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

    # -- one procedure -------------------------------------------------------------------------------

    def started(self, host_id: int, phase: Phase) -> Node:
        key = host_id, phase
        if key not in self._known:
            generator = self.procedure(host_id, phase)
            self._known[key] = self._suspended(host_id, phase, generator, None, None, wrote=False)
        return self._known[key]

    def resting(self, host_id: int, phase: Phase, kind: int) -> Node:
        """A place between procedures."""
        key = host_id, phase
        if key not in self._known:
            self._known[key] = self._add(Node(host_id, phase, kind))
        return self._known[key]

    def wrong(self, node: Node, text: str) -> Node:
        return self._add(_make_wrong(node, text))

    def _sees(self, node: Node, seen: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        """What follows when a read returns, and which of the sectors decided that."""
        assert node.place is not None
        image = self.memory.read(node.place, seen)
        everything = tuple(range(len(seen)))
        if not self._merge:
            return self._resume(node, (seen, image.whole())), everything
        child = self._resume(node, (seen, image))
        if child.kind == WRONG:  # perhaps only because it looked at the image in an unforeseen way
            return self._resume(node, (seen, image.whole())), everything
        first = node.place.first
        sectors = [self.memory.sector_number(slot) - first for slot in node.slots]
        return child, tuple(number for number, sector in enumerate(sectors) if sector in image.seen)

    def _sees_part(self, node: Node, seen: tuple[int, ...]) -> Node:
        part = Node(node.host_id, node.phase, READ)
        part.parent, part.wrote, part.partly = node, node.wrote, seen
        part.place, part.slots = node.place, node.slots
        return self._add(part)

    def _resume(self, node: Node, result: Any) -> Node:
        wrote = node.wrote or node.kind == WRITE
        origin = node
        while origin.partly:
            assert origin.parent is not None
            origin = origin.parent
        generator = origin.suspended.pop() if origin.suspended else self._replayed(origin)
        return self._suspended(node.host_id, node.phase, generator, origin, result, wrote=wrote)

    def _replayed(self, node: Node) -> Any:
        """Another procedure that stands at a node, from the nearest place behind it where one stands."""
        trail = []
        at = node
        while at.parent is not None and not at.suspended:
            trail.append((at.parent, at.result))
            at = at.parent
        if at.suspended:
            generator = at.suspended.pop()
        else:
            generator = self.procedure(node.host_id, node.phase)
            _ask(generator, None, None, node.phase)
        for parent, result in reversed(trail):
            _ask(generator, parent, result, node.phase)
        return generator

    def _suspended(
        self, host_id: int, phase: Phase, generator: Any, parent: Optional[Node], result: Any, *, wrote: bool
    ) -> Node:
        """The node at which a procedure stands when it was told a result."""
        node = Node(host_id, phase, DONE)
        node.parent, node.result, node.wrote = parent, result, wrote
        try:
            step = _ask(generator, parent, result, phase)
        except StopIteration as end:
            return self.ended(node, end.value)
        except Exception as error:  # noqa: BLE001 - what a procedure raises is what is explored
            return self.ended(node, error)
        state = remembered(generator, self._constants) if self._merge else None
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
        memory = self.memory
        if isinstance(step, ReadSectors):
            node.kind, node.place = READ, memory.place(step)
            node.slots = memory.slots(node.place)
            private = {memory.own_slot(node.host_id)}
            if not self._deltas_change:
                private |= memory.delta_slots
            node.local = private.issuperset(node.slots)
            return node
        node.kind, node.what, node.content = WRITE, step.what, memory.content(step.data)
        try:
            node.slot = memory.slot(step)
            memory.verify(node.slot, step.data)
        except KeyError:
            return _make_wrong(node, f"wrote sector {step.sector} of {step.area.path}: {step.what}")
        except OnDiskError as error:
            return _make_wrong(node, f"wrote a record that does not verify: {error}")
        foreign = node.slot not in (0, memory.own_slot(node.host_id))
        if foreign and (any(step.data) or not self._clears_the_dead(node)):
            return _make_wrong(node, f"wrote a sector of another host: {step.what}")
        return node

    def _clears_the_dead(self, node: Node) -> bool:
        """Whether the sector that a node writes is that of a host that its host has seen dead."""
        return any(
            dead and node.slot == self.memory.own_slot(host_id)
            for host_id, (_, dead) in enumerate(node.phase.view, start=1)
        )

    def _add(self, node: Node) -> Node:
        node.number = len(self.nodes)
        self.nodes.append(node)
        return node


def _make_wrong(node: Node, text: str) -> Node:
    node.kind, node.what = WRONG, text
    return node


def _ask(generator: Any, node: Optional[Node], result: Any, phase: Phase) -> Any:
    """Tell a procedure the result of a node's step; return its next access to the storage."""
    if node is None:
        step = next(generator)
    elif isinstance(result, str):
        step = generator.throw(ERRORS[result].with_traceback(None))
    else:
        step = generator.send(result[1] if result else None)
    while not isinstance(step, (ReadSectors, WriteSector)):
        if isinstance(step, Clock):
            step = generator.send(NOW + phase.attempt)
        elif isinstance(step, Random):
            step = generator.send(0.5)
        else:
            assert isinstance(step, Wait), step
            step = generator.send(None)
    return step
