"""Single records given to the decoders and verifiers: the bulk of the cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from tests.proofs.fuzzing import notes
from tests.proofs.fuzzing.cases import Case, Found, Patch, Target, check_error
from tests.proofs.fuzzing.mutate import (
    DBLOCK_LAYOUT,
    LEADER_LAYOUT,
    REQUEST_LAYOUT,
    Layout,
    Mutator,
)
from tests.proofs.fuzzing.scenes import FEW_SCENES, IO_TIMEOUT, NOW, RESOURCE, SCENES, SPACE, US, scene
from tests.unit.ondisk.examples import EXAMPLES
from vmlockctl.errors import VmlockctlError
from vmlockctl.lease.liveness import NEVER_OBSERVED, dead_in_seconds, host_state, observe
from vmlockctl.ondisk import bitmap, ownernote
from vmlockctl.ondisk.dblock import MAX_MBAL, ModeBlock, own_sector, verify_dblock
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES
from vmlockctl.ondisk.leader import Leader, first_record, verify_delta, verify_paxos
from vmlockctl.ondisk.request import verify_request
from vmlockctl.text import safe

Record = tuple[str, bytes]  # the target's name, and the sector


# -- the readers ----------------------------------------------------------------------------------------


def _read_delta(sector: bytes) -> None:
    leader = verify_delta(sector, space_name=SPACE)
    if not (safe(leader.space).isprintable() and safe(leader.resource).isprintable()):
        raise Found("a name that is not safe")
    if not sector.startswith(leader.to_bytes()):
        raise Found("decoding and encoding again changes the record")


def _read_first(sector: bytes) -> None:
    if first_record(sector, space_name=None).geometry not in ALL_GEOMETRIES:
        raise Found("a geometry that does not exist")


def _read_paxos(sector: bytes) -> None:
    leader = verify_paxos(sector, space_name=SPACE, resource_name=RESOURCE, host_id=US)
    geometry = leader.geometry
    if not US <= leader.num_hosts <= leader.max_hosts == geometry.max_hosts >= leader.owner_id:
        raise Found("a number beyond its bounds was accepted")
    if not sector.startswith(leader.to_bytes()):
        raise Found("decoding and encoding again changes the record")


def _read_dblock(sector: bytes) -> None:
    dblock = verify_dblock(sector, host_id=US, num_hosts=2000)
    if dblock.mbal > MAX_MBAL or dblock.inp > 2000:
        raise Found("a number beyond its bounds was accepted")
    own_sector(dblock, ModeBlock.from_bytes(sector), 512)


def _read_request(sector: bytes) -> None:
    verify_request(sector[:64])


def _read_bitmap(sector: bytes) -> None:
    host_ids = bitmap.host_ids_in(sector)
    if host_ids and not 1 <= host_ids[0] <= host_ids[-1] <= 2048:
        raise Found("a host id that does not exist")


def _read_note(data: bytes) -> None:
    note = ownernote.from_bytes(data)
    if note is not None:
        ownernote.is_current(note, Leader.from_bytes(EXAMPLES["E7a"]))


def _observe(sector: bytes) -> None:
    record = Leader.from_bytes(sector)
    row = observe(NEVER_OBSERVED, record, NOW)
    later = observe(row, record, NOW + 20)
    state = host_state(later, NOW + 20, own_io_timeout=IO_TIMEOUT)
    left = dead_in_seconds(later, NOW + 20, own_io_timeout=IO_TIMEOUT)
    if state == "dead" or not 0 <= left <= 8 * 255 + 60:
        raise Found(f"taken for {state}, dead in {left} s, after 20 s of looking")


class _Base(NamedTuple):
    """A real record: a sector of a scene's lockspace or resource, or one of the worked examples."""

    scene: str
    sector: int = 0
    of_space: bool = False

    def read(self) -> bytes:
        if not self.scene:
            return EXAMPLES[f"E{self.sector}"] if self.sector != 7 else EXAMPLES["E7a"]
        made = scene(self.scene)
        size = made.geometry.sector_size
        return (made.space if self.of_space else made.resource)[size * self.sector :][:size]


class _Reader(NamedTuple):
    share: int
    read: Callable[[bytes], None]
    layout: Layout
    bases: Callable[[], Sequence[_Base]]


_DELTAS = [*(_Base("few/unused", i, of_space=True) for i in range(6)), *(_Base("", i) for i in range(1, 5))]
_LEADERS = [
    *(_Base(name) for name in SCENES if name.endswith("/unused") or name in FEW_SCENES),
    _Base("", 5),
    _Base("", 7),
]
_REQUESTS = [_Base("few/request", 1), _Base("", 6)]


@cache
def _dblocks() -> list[_Base]:
    """Those of every state that are in use, one that is not, and the worked examples."""
    every = [_Base(name, host_id + 1) for name in FEW_SCENES for host_id in range(1, 6)]
    used = [base for base in every if any(base.read())]
    return [*used, _Base("few/unused", 2), *(_Base("", number) for number in range(8, 12))]


READERS: dict[str, _Reader] = {
    "delta": _Reader(2000, _read_delta, LEADER_LAYOUT, lambda: _DELTAS),
    "first": _Reader(500, _read_first, LEADER_LAYOUT, lambda: _DELTAS),
    "leader": _Reader(3000, _read_paxos, LEADER_LAYOUT, lambda: _LEADERS),
    "dblock": _Reader(2500, _read_dblock, DBLOCK_LAYOUT, _dblocks),
    "request": _Reader(500, _read_request, REQUEST_LAYOUT, lambda: _REQUESTS),
    "bitmap": _Reader(300, _read_bitmap, LEADER_LAYOUT, lambda: _DELTAS),
    "observe": _Reader(600, _observe, LEADER_LAYOUT, lambda: _DELTAS),
}


@cache
def _mutator(base: _Base, layout: Layout) -> Mutator:
    others = [_Base("few/held-live", 0), _Base("few/held-live", 2), _DELTAS[1], _DELTAS[2]]
    return Mutator(base.read(), layout, [other.read() for other in others], seed=base.sector)


# -- the targets ----------------------------------------------------------------------------------------


def _cases(name: str) -> Callable[[random.Random, int], Iterator[bytes]]:
    def cases(source: random.Random, count: int) -> Iterator[bytes]:
        reader = READERS[name]
        return _mutator(source.choice(reader.bases()), reader.layout).cases(source, count)

    return cases


def _run(read: Callable[[bytes], None]) -> Callable[[bytes], float]:
    def run(sector: bytes) -> float:
        try:
            read(sector)
        except VmlockctlError as error:
            check_error(error)
        return 0.0

    return run


def _target(name: str, share: int, read: Callable[[bytes], None], cases: Any) -> Target:
    return Target(
        name,
        share,
        batch=128,
        cases=cases,
        run=_run(read),
        describe=lambda sector: Case(name, "", "", (Patch("", 0, sector),)),
        revive=lambda case: case.patches[0].data,
    )


TARGETS = [
    *(_target(name, reader.share, reader.read, _cases(name)) for name, reader in READERS.items()),
    _target("note", 100, _read_note, notes.cases),
]
