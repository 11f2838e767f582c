"""All hosts of a scene and the sectors they share: what can happen next, from any state.

A state is a tuple of integers: the memory, the rest (faults left, writes in flight, who is crashed, seen to
be dead, holding), and of each host its node. Successors come in a fixed order, so a list of choices replays.

Reduction. A host whose next access is a read of sectors that nobody else can change (its own; the delta
records, where nobody joins) goes first and alone: that commutes with everything, and nothing that is checked
depends on it. Waits, clocks and random numbers are answered at once. A hold begins with the last result of
its acquire and ends with the first I/O of its release, so each overlaps as much as it can. Hosts are *not*
interchanged: a ballot number contains the host id and the larger one wins, so a state and its mirror image
have different futures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.proofs.explorer.memory import Memory, delta_sector
from tests.proofs.explorer.nodes import DONE, READ, START, WRITE, WRONG, Node, View
from tests.proofs.explorer.programs import EXCLUSIVE, SHARED, Programs
from tests.proofs.explorer.scenes import Scene
from vmlockctl.ondisk.dblock import Dblock

State = tuple[int, ...]
Move = tuple[int, State]

# What happens in a move; its code is this, plus the host, plus the number of the write in flight.
STEP, ERROR, ERROR_LANDED, TIMEOUT, CRASH, DIE, REJOIN, LAND, DROP = range(0, 9 << 8, 1 << 8)
_HOST = 0xFF
_FLIGHT = 16


class InFlight(NamedTuple):
    """A write that nobody waits for any more."""

    host_id: int
    slot: int
    content: int


class Rest(NamedTuple):
    """Whatever else decides what can still happen, or be wrong."""

    crashes: int
    late: int
    errors: int
    rejoins: int
    highest: int = 0  # the largest version granted exclusively
    in_flight: tuple[InFlight, ...] = ()
    crashed: tuple[int, ...] = ()
    dead: tuple[int, ...] = ()  # crashed, and silent for so long that everybody may see it
    holders: tuple[tuple[int, str], ...] = ()
    generations: tuple[int, ...] = ()


class Violated(Exception):
    """An invariant is broken by a move, which has this code and this number among the moves of its state."""

    def __init__(self, kind: str, text: str, code: int = -1) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
        self.code = code
        self.choice = -1


class World:
    """A scene, and everything that was found out about it."""

    def __init__(self, scene: Scene, *, merge: bool = True) -> None:
        self.scene = scene
        self.hosts = range(1, len(scene.programs) + 1)
        self.observer = len(scene.programs) + 1
        self.memory = Memory(self.observer)
        self.programs = Programs(
            self.memory,
            {**dict(zip(self.hosts, scene.programs)), self.observer: ()},
            torn=scene.torn,
            attempts=scene.attempts,
            watched=scene.crashes > 0,
            verify=scene.verify,
            deltas_change=scene.rejoins > 0,
            merge=merge,
        )
        self.nodes = self.programs.nodes
        self._over = {host_id: self.programs.over(host_id) for host_id in self.hosts}
        self._rests: list[Rest] = []
        self._rest_numbers: dict[Rest, int] = {}
        self._idle: list[frozenset[int]] = []
        self._changes: dict[Any, int] = {}

    def initial(self) -> State:
        scene = self.scene
        rest = Rest(scene.crashes, scene.late, scene.errors, scene.rejoins, generations=(1,) * self.observer)
        nodes = [self.programs.first(host_id).number for host_id in self.hosts]
        return (self.memory.initial, self._number(rest), *nodes)

    def rest(self, state: State) -> Rest:
        return self._rests[state[1]]

    def is_final(self, state: State) -> bool:
        return all(self.nodes[number].kind == DONE for number in state[2:])

    def moves(self, state: State) -> list[Move]:
        """Everything that can happen now. Raises ``Violated``."""
        moves: list[Move] = []
        try:
            self._moves(moves, state)
        except Violated as violated:
            violated.choice = len(moves)
            raise
        return moves

    def _moves(self, moves: list[Move], state: State) -> None:
        rest, idle, nodes = self._rests[state[1]], self._idle[state[1]], self.nodes
        if not rest.in_flight or self.scene.quarantine:
            for host_id, number in enumerate(state[2:], start=1):
                if nodes[number].local and host_id not in idle:
                    self._read(moves, state, host_id, nodes[number], rest)
                    return
        for host_id, number in enumerate(state[2:], start=1):
            node = nodes[number]
            kind = node.kind
            if kind == DONE or host_id in idle:
                continue
            if kind == READ:
                self._read(moves, state, host_id, node, rest)
            elif kind == WRITE:
                self._write(moves, state, host_id, node, rest)
            else:
                assert kind == START, node.what
                begun = self.programs.begin(node, self.view(rest))
                moves.append((STEP + host_id, self._enters(state, host_id, begun, STEP + host_id)))
        if rest.in_flight or rest.crashed:
            self._happens(moves, state, rest)

    def view(self, rest: Rest) -> View:
        return tuple(
            (generation, host_id in rest.dead) for host_id, generation in enumerate(rest.generations, start=1)
        )

    # -- a host goes on ------------------------------------------------------------------------------

    def _read(self, moves: list[Move], state: State, host_id: int, node: Node, rest: Rest) -> None:
        code = STEP + host_id
        child = node.told.get(state[0]) or self.programs.reads(node, state[0])
        after = state if node.becomes is None else self._becomes(state, host_id, node.becomes)
        moves.append((code, self._enters(after, host_id, child, code)))
        if rest.errors:
            after = self._change(after, "errors", -1)
            moves.append((ERROR + host_id, self._fails(after, host_id, node, "error")))
        if rest.crashes and node.becomes is not None:
            moves.append((CRASH + host_id, self._crashes(state, host_id)))

    def _write(self, moves: list[Move], state: State, host_id: int, node: Node, rest: Rest) -> None:
        code = STEP + host_id
        memory = node.lands.get(state[0])
        if memory is None:
            memory = node.lands[state[0]] = self.memory.written(state[0], node.slot, node.content)
            if node.slot == host_id and self.scene.quarantine:
                self._only_forward(state[0], memory, host_id)
        landed = (memory, *state[1:])
        child = node.after or self.programs.acknowledged(node)
        moves.append((code, self._enters(landed, host_id, child, code)))
        if rest.errors:
            for kind, after in ((ERROR, state), (ERROR_LANDED, landed)):
                after = self._change(after, "errors", -1)
                moves.append((kind + host_id, self._fails(after, host_id, node, "error")))
        if rest.late or rest.crashes:
            flying = self._flies(state, InFlight(host_id, node.slot, node.content))
            if rest.late:
                after = self._change(flying, "late", -1)
                moves.append((TIMEOUT + host_id, self._fails(after, host_id, node, "timeout")))
            if rest.crashes:
                moves.append((CRASH + host_id, self._crashes(flying, host_id)))

    def _fails(self, state: State, host_id: int, node: Node, error: str) -> State:
        child = node.failed.get(error) or self.programs.fails(node, error)
        return self._enters(state, host_id, child, (ERROR if error == "error" else TIMEOUT) + host_id)

    def _enters(self, state: State, host_id: int, node: Node, code: int) -> State:
        """The host stands at a node now. Raises ``Violated``."""
        if node.kind == WRONG:
            raise Violated("wrong", f"host {host_id} {node.what}", code)
        rest = state[1]
        if node.grants:
            rest = self._granted(rest, host_id, node, code)
        return (state[0], rest, *state[2 : host_id + 1], node.number, *state[host_id + 2 :])

    def _granted(self, number: int, host_id: int, node: Node, code: int) -> int:
        key = number, host_id, node.phase.grants, node.phase.lver
        if key in self._changes:
            return self._changes[key]
        rest, mode, lver = self._rests[number], node.phase.grants, node.phase.lver
        assert mode is not None
        holders = (*(holder for holder in rest.holders if holder[0] != host_id), (host_id, mode))
        if len(holders) > 1 and {held for _, held in holders} != {SHARED}:
            raise Violated("two owners", " and ".join(f"host {h} {held}" for h, held in holders), code)
        if lver <= rest.highest:
            raise Violated(
                "version", f"host {host_id} is granted version {lver}, after version {rest.highest}", code
            )
        highest = lver if mode == EXCLUSIVE else rest.highest
        result = self._number(rest._replace(holders=tuple(sorted(holders)), highest=highest))
        self._changes[key] = result
        return result

    # -- what else happens ---------------------------------------------------------------------------

    def _happens(self, moves: list[Move], state: State, rest: Rest) -> None:
        for number, write in enumerate(rest.in_flight):
            left = rest.in_flight[:number] + rest.in_flight[number + 1 :]
            over = (state[0], self._number(rest._replace(in_flight=left)), *state[2:])
            code = write.host_id + (number << _FLIGHT)
            memory = self.memory.written(state[0], write.slot, write.content)
            moves.append((LAND + code, (memory, *over[1:])))
            if self.scene.quarantine and write.host_id not in rest.crashed:
                moves.append((DROP + code, over))
        for host_id in rest.crashed:
            if host_id not in rest.dead:
                moves.append((DIE + host_id, self._dies(state, host_id, rest)))
            elif rest.rejoins and not any(write.host_id == host_id for write in rest.in_flight):
                moves.append((REJOIN + host_id, self._rejoins(state, host_id, rest)))

    def _only_forward(self, before: int, after: int, host_id: int) -> None:
        """A host's own ballots and versions only grow, where its late writes cannot come between."""
        old, new = (Dblock.from_bytes(self.memory.sector(memory, host_id)) for memory in (before, after))
        if (new.lver, new.mbal) < (old.lver, old.mbal):
            raise Violated("backward", f"host {host_id} wrote {new} over {old}", STEP + host_id)

    def _flies(self, state: State, write: InFlight) -> State:
        key = state[1], write
        number = self._changes.get(key)
        if number is None:
            rest = self._rests[state[1]]
            number = self._number(rest._replace(in_flight=tuple(sorted((*rest.in_flight, write)))))
            self._changes[key] = number
        return (state[0], number, *state[2:])

    def _change(self, state: State, field: str, amount: int) -> State:
        key = state[1], field
        number = self._changes.get(key)
        if number is None:
            rest = self._rests[state[1]]
            number = self._number(rest._replace(**{field: getattr(rest, field) + amount}))
            self._changes[key] = number
        return (state[0], number, *state[2:])

    def _becomes(self, state: State, host_id: int, mode: str) -> State:
        """From now on its host holds the lease in this mode, or not at all."""
        rest = self._rests[state[1]]
        holders = tuple(holder for holder in rest.holders if holder[0] != host_id)
        if mode and len(holders) < len(rest.holders):
            holders = tuple(sorted((*holders, (host_id, mode))))
        return (state[0], self._number(rest._replace(holders=holders)), *state[2:])

    def _crashes(self, state: State, host_id: int) -> State:
        """Its VM counts as running until it is seen to be dead: all that is certain before is silence."""
        rest = self._rests[state[1]]
        rest = rest._replace(crashes=rest.crashes - 1, crashed=tuple(sorted((*rest.crashed, host_id))))
        over = self._over[host_id].number
        return (state[0], self._number(rest), *state[2 : host_id + 1], over, *state[host_id + 2 :])

    def _dies(self, state: State, host_id: int, rest: Rest) -> State:
        holders = tuple(holder for holder in rest.holders if holder[0] != host_id)
        rest = rest._replace(dead=tuple(sorted((*rest.dead, host_id))), holders=holders)
        return (state[0], self._number(rest), *state[2:])

    def _rejoins(self, state: State, host_id: int, rest: Rest) -> State:
        """Its writes of the earlier generation are over: it waited long enough, with its host id."""
        generation = rest.generations[host_id - 1] + 1
        rest = rest._replace(
            rejoins=rest.rejoins - 1,
            crashed=tuple(other for other in rest.crashed if other != host_id),
            dead=tuple(other for other in rest.dead if other != host_id),
            generations=(*rest.generations[: host_id - 1], generation, *rest.generations[host_id:]),
        )
        slot = self.memory.delta_slot(host_id)
        record = delta_sector(self.memory.sector(state[0], slot), host_id, generation)
        memory = self.memory.written(state[0], slot, self.memory.content(record))
        node = self.programs.first(host_id, generation).number
        return (memory, self._number(rest), *state[2 : host_id + 1], node, *state[host_id + 2 :])

    def _number(self, rest: Rest) -> int:
        number = self._rest_numbers.setdefault(rest, len(self._rests))
        if number == len(self._rests):
            self._rests.append(rest)
            waiting = {write.host_id for write in rest.in_flight} if self.scene.quarantine else set()
            self._idle.append(frozenset(waiting))
        return number
