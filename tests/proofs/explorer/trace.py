"""A run in readable steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from tests.proofs.explorer.ending import Endings
from tests.proofs.explorer.nodes import READ, WRITE, Node
from tests.proofs.explorer.world import (
    CRASH,
    DIE,
    DROP,
    ERROR,
    ERROR_LANDED,
    LAND,
    REJOIN,
    STEP,
    TIMEOUT,
    State,
    Violated,
    World,
)

_FAULTS = {
    ERROR: "the I/O fails",
    ERROR_LANDED: "the I/O fails, but has landed",
    TIMEOUT: "the write times out and is still in flight",
    CRASH: "the host loses power; this write may be in flight",
}
_EVENTS = {
    DIE: "host {} has been silent for so long that it is dead",
    REJOIN: "host {} joins again with the next generation",
    LAND: "a late write of host {} lands",
    DROP: "a late write of host {} is known to be lost",
}


def narrate(world: World, choices: Sequence[int]) -> list[str]:
    """Follow the choices from the beginning; the last line says what is wrong, where something is."""
    lines: list[str] = []
    state = world.initial()
    for choice in choices:
        try:
            code, following = world.moves(state)[choice]
        except Violated as violated:
            lines.append(f"{len(lines) + 1}. {_step(world, state, violated.code)}")
            lines.append(f"{violated.kind.upper()}: {violated.text}")
            return lines
        text = _step(world, state, code)
        holders = world.rest(following).holders
        if holders != world.rest(state).holders:
            text += " [held by " + (", ".join(f"{h} {mode}" for h, mode in holders) or "nobody") + "]"
        lines.append(f"{len(lines) + 1}. {text}")
        if following[0] != state[0]:
            lines[-1] += f"\n      -> {world.memory.describe(following[0])}"
        state = following
    wrong = _ending(world, state)
    return lines if wrong is None else [*lines, wrong]


def _ending(world: World, state: State) -> Optional[str]:
    try:
        moves = world.moves(state)
        if world.is_final(state):
            Endings(world).check(state)
        elif not moves:
            return "STUCK"
    except Violated as violated:
        return f"{violated.kind.upper()}: {violated.text}"
    return None


def _step(world: World, state: State, code: int) -> str:
    host_id, kind = code & 0xFF, code & 0xFF00
    if kind in _EVENTS:
        return _EVENTS[kind].format(host_id)
    node = world.nodes[state[host_id + 1]]
    text = f"host {host_id} {_access(node)}"
    return text if kind == STEP else f"{text}: {_FAULTS[kind]}"


def _access(node: Node) -> str:
    phase = node.phase
    where = f"({phase.kind} {phase.attempt + 1})"
    if node.kind == WRITE:
        return f"{where} writes: {node.what}"
    if node.kind != READ or node.place is None:
        return f"{where} begins"
    first, count = node.place.first, node.place.count
    what = f"sector {first}" if count == 1 else f"sectors {first}..{first + count - 1}"
    part = f" (part {len(node.partly) + 1})" if node.partly else ""
    return f"{where} reads {what} of {node.place.path}{part}"
