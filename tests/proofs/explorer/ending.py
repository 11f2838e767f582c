"""Liveness: when every program is over, each host that is left acquires alone, within a bound."""

from __future__ import annotations

from tests.proofs.explorer.nodes import DONE, READ, START, WRONG, View
from tests.proofs.explorer.world import State, Violated, World

TRIES = 3  # a value that its host gave up may have to be committed first, and costs the acquire that does it
MOST_IOS = 40


class Endings:
    """Lone acquires from final states; the same ending is tried once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tried: dict[tuple[int, int, View, tuple[int, ...]], tuple[int, int]] = {}
        self._fine: set[tuple[int, View, tuple[int, ...]]] = set()
        self.most_ios = 0

    @property
    def count(self) -> int:
        return len(self._fine)

    def check(self, state: State) -> None:
        """Raises ``Violated``. Whoever crashed counts as dead; what is in flight stays there."""
        rest = self._world.rest(state)
        dead = {*rest.crashed, *rest.dead}
        generations = rest.generations
        view = tuple((generations[h - 1], h in dead) for h in range(1, len(generations) + 1))
        survivors = tuple(host_id for host_id in self._world.hosts if host_id not in dead)
        ending = state[0], view, survivors
        if ending in self._fine:
            return
        # Each goes first once, and what it leaves behind must do for the others.
        hosts = (self._world.observer, *survivors)
        for first in range(len(hosts)):
            memory = state[0]
            for host_id in hosts[first:] + hosts[:first]:
                memory, ios = self._alone(memory, host_id, view, generations)
                self.most_ios = max(self.most_ios, ios)
        self._fine.add(ending)

    def _alone(self, memory: int, host_id: int, view: View, generations: tuple[int, ...]) -> tuple[int, int]:
        key = memory, host_id, view, generations
        if key not in self._tried:
            self._tried[key] = self._walk(*key)
        return self._tried[key]

    def _walk(self, memory: int, host_id: int, view: View, generations: tuple[int, ...]) -> tuple[int, int]:
        """The memory after an acquire and its release, and the I/Os that the acquire took."""
        programs, ios, granted_after = self._world.programs, 0, 0
        node = programs.alone(host_id, generations[host_id - 1], view, TRIES)
        while node.kind != DONE:
            if node.grants:
                granted_after = ios
            if node.kind == WRONG:
                raise Violated("liveness", f"host {host_id} alone {node.what}")
            if node.kind == START:
                node = programs.begin(node, view)
                continue
            ios += not node.partly
            if node.kind == READ:
                node = programs.reads(node, memory)
                continue
            memory = self._world.memory.written(memory, node.slot, node.content)
            node = programs.acknowledged(node)
        if not granted_after:
            raise Violated("liveness", f"nobody holds the lease, and host {host_id} alone cannot acquire it")
        if granted_after > MOST_IOS:
            raise Violated("liveness", f"host {host_id} alone needed {granted_after} I/Os")
        return memory, granted_after
