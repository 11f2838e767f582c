"""What each host does: the shipped procedures, one after the other.

A host's program is a list of rounds. In each it acquires the lease, holds it, perhaps changes the mode
(``EX>SH``, ``SH>EX``), and releases it. What goes wrong is retracted until the storage answers, as the
managers and the daemon do it: after an acquire that was refused before its first write there is nothing
to retract, and after a conversion that was not finished the lease is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tests.proofs.explorer.memory import IO_TIMEOUT, LOCKSPACE, NOW, RESOURCE, SEEN_AT, Memory, host_name
from tests.proofs.explorer.nodes import DONE, READ, START, Node, Phase, Procedures, View
from vmlockctl.errors import ContentionError, StorageError
from vmlockctl.lease import convert, paxos, release, resource
from vmlockctl.lease.liveness import Observation
from vmlockctl.lease.resource import Claimant

EXCLUSIVE, SHARED = "EX", "SH"

# The procedures; KEEP settles a conversion that was cut off.
ACQUIRE, VERIFY, RELEASE, RETRACT = "acquire", "verify", "release", "retract"
TO_SHARED, TO_EXCLUSIVE, KEEP = "to shared", "to exclusive", "keep"
BEGIN, END = "begin", "end"  # before an acquire, and behind the program

_OVER = "over"  # the end of a program
_LATER = 50  # the attempt that a host makes when all programs are over
_SILENT_SECONDS = 69  # of a host that is dead


class Programs(Procedures):
    """The nodes of all hosts of a scene, and what leads from one procedure to the next."""

    def __init__(
        self,
        memory: Memory,
        rounds: Mapping[int, tuple[str, ...]],
        *,
        attempts: int,
        watched: bool,
        verify: bool,
        **options: bool,
    ) -> None:
        super().__init__(memory, **options)
        self._attempts = attempts
        self._watched = watched  # others may be seen to die: when an acquire begins makes a difference
        self._verify = verify
        # Behind the program stands one more round, for the time when everybody else has ended.
        self._rounds = {host_id: (*modes, _OVER, EXCLUSIVE, _OVER) for host_id, modes in rounds.items()}
        self._claimants: dict[Hashable, Claimant] = {}
        self._live: View = tuple((1, False) for _ in rounds)

    def first(self, host_id: int, generation: int = 1) -> Node:
        return self._enter(host_id, Phase(BEGIN, 0, 0, 0, generation))

    def over(self, host_id: int) -> Node:
        """The end of a host's program."""
        return self._enter(host_id, Phase(END, 0, 0, 0, 0))

    def begin(self, node: Node, view: View) -> Node:
        """An acquire begins, with what its host has seen of the others."""
        return self._enter(node.host_id, node.phase._replace(kind=ACQUIRE, view=view))

    def alone(self, host_id: int, generation: int, view: View, tries: int) -> Node:
        """An acquire of a host when all programs are over, to be tried so many times."""
        last = len(self._rounds[host_id]) - 2
        return self._enter(host_id, Phase(ACQUIRE, _LATER, last, self._attempts - tries, generation, view))

    # -- the procedures ------------------------------------------------------------------------------

    def procedure(self, host_id: int, phase: Phase) -> Any:
        who, lver = self._claimant(host_id, phase), phase.lver
        make: dict[str, Callable[[], Any]] = {
            ACQUIRE: lambda: paxos.acquire(who, RESOURCE, shared=self._modes(host_id, phase)[0] == SHARED),
            VERIFY: lambda: resource.verify_held(who, RESOURCE, lver=lver, shared=phase.shared),
            TO_SHARED: lambda: convert.to_shared(who, RESOURCE, lver=lver),
            TO_EXCLUSIVE: lambda: convert.to_exclusive(who, RESOURCE),
            RELEASE: lambda: release.release(who, RESOURCE, lver=lver, shared=phase.shared),
            RETRACT: lambda: release.retract(who, RESOURCE),
            KEEP: lambda: convert.back_to_shared(who, RESOURCE),
        }
        return make[phase.kind]()

    def _modes(self, host_id: int, phase: Phase) -> list[str]:
        return self._rounds[host_id][phase.round].split(">")

    def _claimant(self, host_id: int, phase: Phase) -> Claimant:
        key = host_id, phase.attempt, phase.generation, phase.view
        if key not in self._claimants:
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
                    last_live=now - _SILENT_SECONDS if dead else now,
                )
            claimant = Claimant(LOCKSPACE, host_id, phase.generation, IO_TIMEOUT, rows)
            self._claimants[key] = claimant
            self._constants.add(id(claimant))
        return self._claimants[key]

    # -- one procedure after another -----------------------------------------------------------------

    def _enter(self, host_id: int, phase: Phase) -> Node:
        if phase.kind == BEGIN and self._rounds[host_id][phase.round] == _OVER:
            phase = Phase(END, 0, 0, 0, 0)
        elif phase.kind == BEGIN and not self._watched:
            phase = phase._replace(kind=ACQUIRE, view=self._live)
        if phase.kind in (BEGIN, END):
            return self.resting(host_id, phase, START if phase.kind == BEGIN else DONE)
        node = self.started(host_id, phase)
        if phase.kind in (RELEASE, TO_SHARED) and node.kind == READ:
            node.becomes = "" if phase.kind == RELEASE else SHARED
        return node

    def ended(self, node: Node, outcome: Any) -> Node:
        phase, host_id = node.phase, node.host_id
        following = phase._replace(grants=None)
        if phase.kind != TO_EXCLUSIVE:
            following = following._replace(view=())
        if isinstance(outcome, BaseException):
            return self._failed(node, outcome, following)
        if phase.kind in (ACQUIRE, TO_EXCLUSIVE):
            return self._granted(node, outcome, following)
        if phase.kind == VERIFY:
            return self._enter(host_id, self._held(host_id, following))
        if phase.kind in (TO_SHARED, KEEP):
            return self._enter(host_id, following._replace(kind=RELEASE, shared=True))
        if phase.kind == RELEASE:
            return self._next_round(host_id, following)
        return self._next_attempt(host_id, following)

    def _failed(self, node: Node, error: BaseException, following: Phase) -> Node:
        """An error of the storage, or of the contest, is retracted; any other is no honest answer."""
        phase, host_id = node.phase, node.host_id
        storage, contention = isinstance(error, StorageError), isinstance(error, ContentionError)
        if storage and not isinstance(node.result, str):
            return self.wrong(node, f"{phase.kind}: no I/O failed, and it raised {error!r}")
        converting = phase.kind in (TO_SHARED, TO_EXCLUSIVE, KEEP)
        if not storage and not (contention and phase.kind in (ACQUIRE, TO_EXCLUSIVE)):
            return self.wrong(node, f"{phase.kind}: raised {type(error).__name__}: {error}")
        if phase.kind == ACQUIRE and contention and not node.wrote:
            return self._next_attempt(host_id, following)
        return self._enter(host_id, following._replace(kind=KEEP if converting else RETRACT, view=()))

    def _granted(self, node: Node, held: Any, following: Phase) -> Node:
        phase, host_id = node.phase, node.host_id
        mode = self._modes(host_id, phase)[phase.kind == TO_EXCLUSIVE]
        if held.shared != (mode == SHARED):
            return self.wrong(node, f"asked for {mode}, granted {held}")
        if held.leader.owner != (host_id, phase.generation):
            return self.wrong(node, f"granted by a leader that names {held.leader.owner}")
        following = following._replace(lver=held.leader.lver, shared=held.shared, grants=mode)
        if phase.kind == TO_EXCLUSIVE:
            return self._enter(host_id, following._replace(kind=RELEASE, view=()))
        if self._verify:
            return self._enter(host_id, following._replace(kind=VERIFY, view=phase.view))
        return self._enter(host_id, self._held(host_id, following._replace(view=phase.view)))

    def _held(self, host_id: int, phase: Phase) -> Phase:
        """What a holder does next: it changes the mode, or releases."""
        modes = self._modes(host_id, phase)
        if len(modes) == 1:
            return phase._replace(kind=RELEASE, view=())
        if modes[1] == SHARED:
            return phase._replace(kind=TO_SHARED, view=())
        return phase._replace(kind=TO_EXCLUSIVE, view=phase.view or self._live)

    def _next_attempt(self, host_id: int, phase: Phase) -> Node:
        """After an acquire that came to nothing: once more, or on to the next round."""
        if phase.tries + 1 >= self._attempts:
            return self._next_round(host_id, phase)
        phase = phase._replace(kind=BEGIN, attempt=phase.attempt + 1, tries=phase.tries + 1)
        return self._enter(host_id, phase._replace(lver=0, shared=False, view=()))

    def _next_round(self, host_id: int, phase: Phase) -> Node:
        return self._enter(host_id, Phase(BEGIN, phase.attempt + 1, phase.round + 1, 0, phase.generation))
