"""The resource index: its records, its procedures over a mutated device, and its dump.

The device has the index, its lease, and four places: ``a`` is free, ``b`` is held by a live host, the third
was deleted, the last never used. Nothing in an index has a checksum, so every mutation is believed or refused
by what it says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

from tests.proofs.fuzzing.areas import same
from tests.proofs.fuzzing.cases import Case, Found, Patch, Target, check_error
from tests.proofs.fuzzing.memory import Memory
from tests.proofs.fuzzing.mutate import DBLOCK_LAYOUT, LEADER_LAYOUT, Layout, Mutator
from tests.proofs.fuzzing.output import check_json, printed
from tests.proofs.fuzzing.procedures import dead_shared_mark
from tests.proofs.fuzzing.scenes import LIVE, NOW, SPACE, SPACE_PATH, US, claimant, space_image
from vmlockctl.cli import dump_leases as dump_command
from vmlockctl.errors import VmlockctlError
from vmlockctl.lease import rindex as procedures
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.resource import Resource
from vmlockctl.lease.rindexrecords import Index, is_cleared
from vmlockctl.lease.steps import Area, WriteSector
from vmlockctl.ondisk.dblock import verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import Leader, verify_paxos
from vmlockctl.ondisk.rindex import ENTRY, Header, entries_in, verify_entry, verify_header
from vmlockctl.ops import dump_leases
from vmlockctl.ops.dump_rindex import is_rindex, rindex_geometry
from vmlockctl.text import safe
from vmlockctl.units import MIB

PATH, AREAS = "/device", 6
INDEX = Index(PATH, 0, SPACE)
HEADER_LAYOUT = Layout((*((4 * i, 4) for i in range(6)), (24, 8), (32, 48)), 80)
# The eight entries of a sector of 512 bytes: offset, flags, unused, name.
ENTRY_LAYOUT = Layout(
    tuple((64 * i + at, size) for i in range(8) for at, size in ((0, 8), (8, 4), (12, 4), (16, 48))), 512
)
_LOCKSPACE = Lockspace(Area(SPACE_PATH, 0, DEFAULT_GEOMETRY), SPACE, 10)
_WE = claimant(_LOCKSPACE, US)
_HELD = 3  # the area of b, which a live host holds


@cache
def device() -> bytes:
    files = {SPACE_PATH: space_image(DEFAULT_GEOMETRY), PATH: bytes(AREAS * MIB)}
    memory = Memory(files, now=4000)

    def run(procedure: Any) -> Any:
        return memory.run(procedure, may_write=lambda *_: None)

    run(procedures.format_rindex(INDEX, DEFAULT_GEOMETRY))
    for name in ("a", "b", "c"):
        run(procedures.create(_WE, INDEX, name, device_size=AREAS * MIB))
    run(acquire(claimant(_LOCKSPACE, LIVE), Resource(PATH, _HELD * MIB, "b")))
    run(procedures.delete(_WE, INDEX, "c"))
    return memory.image(PATH)


# -- records ----------------------------------------------------------------------------------------------


def _read_header(sector: bytes) -> None:
    header = verify_header(sector, rx_offset=0, space_name=SPACE)
    if not 0 < header.max_entries * ENTRY.size < header.table_sectors * header.sector_size <= 8 * MIB:
        raise Found(f"a table that does not fit: {header}")
    if not sector.startswith(header.to_bytes()):
        raise Found("decoding and encoding again changes the record")


def _read_entries(sector: bytes) -> None:
    head = device()[:512]
    header = Header.from_bytes(head)
    for number, entry in entries_in(header, head + sector):
        if not safe(entry.resource).isprintable():
            raise Found("a name that is not safe")
        verify_entry(header, number, entry)


_RECORDS: dict[str, tuple[Callable[[bytes], None], Layout, int]] = {
    "rindex-header": (_read_header, HEADER_LAYOUT, 0),
    "rindex-entry": (_read_entries, ENTRY_LAYOUT, 1),
}


@lru_cache(maxsize=40)
def _mutator(layout: Layout, sector: int) -> Mutator:
    content = device()
    others = [content[512 * at : 512 * (at + 1)] for at in (0, 1, 2048, 4096)]
    return Mutator(content[512 * sector : 512 * (sector + 1)], layout, others, seed=sector)


def _record_target(name: str, share: int) -> Target:
    read, layout, sector = _RECORDS[name]

    def run(data: bytes) -> float:
        try:
            read(data)
        except VmlockctlError as error:
            check_error(error)
        return 0.0

    return Target(
        name,
        share,
        batch=128,
        cases=lambda source, count: _mutator(layout, sector).cases(source, count),
        run=run,
        describe=lambda data: Case(name, "", "", (Patch(PATH, 512 * sector, data),)),
        revive=lambda case: case.patches[0].data,
    )


# -- procedures -------------------------------------------------------------------------------------------


def _may_write(memory: Memory, step: WriteSector) -> None:
    if step.area.path != PATH:
        raise Found(f"a write to {step.area.path}: {step.what}")
    size = step.area.geometry.sector_size
    at = step.area.byte_offset(step.sector)
    before = bytes(memory.files[PATH][at : at + len(step.data)])
    if step.area.offset == 0:
        _write_table(step, before)
    elif step.sector == 0:
        _write_leader(before)
    elif step.sector == step.area.geometry.dblock_sector(US) and len(step.data) == size:
        verify_dblock(step.data, host_id=US)
    elif len(step.data) == size:
        dead_shared_mark(step, before)
    elif not is_cleared(bytes(memory.files[PATH][step.area.offset : step.area.offset + size])):
        raise Found(f"an area is written behind a leader that is not cleared: {step.what}")


def _write_table(step: WriteSector, before: bytes) -> None:
    changed = [
        at
        for at in range(0, len(before), ENTRY.size)
        if before[at : at + ENTRY.size] != step.data[at : at + ENTRY.size]
    ]
    if step.sector == 0 or len(step.data) != step.area.geometry.sector_size or len(changed) > 1:
        raise Found(f"more than one entry of the index is changed: {step.what} at {changed}")


def _write_leader(before: bytes) -> None:
    """Nothing is overwritten that is not understood."""
    if any(before) and not is_cleared(before):
        verify_paxos(before, space_name=SPACE, resource_name=Leader.from_bytes(before).resource)


ACTIONS: dict[str, Callable[[], Any]] = {
    "lookup": lambda: procedures.lookup(INDEX, "b"),
    "create": lambda: procedures.create(_WE, INDEX, "new", device_size=AREAS * MIB),
    "delete": lambda: procedures.delete(_WE, INDEX, "a"),
    "delete-held": lambda: procedures.delete(_WE, INDEX, "b"),
    "update": lambda: procedures.update(_WE, INDEX, "b", offset=_HELD * MIB),
    "remove": lambda: procedures.remove_entry(_WE, INDEX, "a"),
    "rebuild": lambda: procedures.rebuild(_WE, INDEX, device_size=AREAS * MIB),
}


@cache
def _memory() -> Memory:
    return Memory({SPACE_PATH: space_image(DEFAULT_GEOMETRY), PATH: device()}, now=NOW)


def _run(case: Case) -> float:
    memory = _memory()
    memory.change(case.patches, case.size)
    waited = 0.0
    try:
        if case.action.startswith("dump"):
            _dump(memory.image(PATH)[: memory.sizes[PATH]], case.action)
        else:
            _change(memory, case)
    except VmlockctlError as error:
        check_error(error)
    finally:
        waited = memory.waited
        memory.restore()
    return waited


def _change(memory: Memory, case: Case) -> None:
    start, end = _HELD * MIB, (_HELD + 1) * MIB
    before = bytes(memory.files[PATH][start:end])
    try:
        memory.run(ACTIONS[case.action](), may_write=_may_write)
    finally:
        touched = any(start <= patch.offset < end for patch in case.patches)
        if not touched and bytes(memory.files[PATH][start:end]) != before:
            raise Found("the area of a resource that a live host holds was changed")


def _dump(image: bytes, action: str) -> None:
    place = dump_leases._Place(PATH, 0, 0, None, None)
    head = image[: 2 * dump_leases.PROBE_SIZE]
    if len(head) < dump_leases.PROBE_SIZE or not is_rindex(head, 0):
        return
    geometry = rindex_geometry(head) or DEFAULT_GEOMETRY
    area = dump_leases._dump_rindex(place, 0, geometry, image[: geometry.align_size])
    if action.endswith("json"):
        check_json(printed(lambda: dump_command._print_json([area])))
    else:
        printed(lambda: dump_command._print_text([area]))


# (sector of the device, its layout): the index, the leaders and dblocks of its lease and of the places.
_SECTORS = [
    *[(0, HEADER_LAYOUT)] * 3,
    *[(1, ENTRY_LAYOUT)] * 4,
    *((2048 * area, LEADER_LAYOUT) for area in range(1, AREAS)),
    *((2048 * area + 1 + host_id, DBLOCK_LAYOUT) for area in (1, 2, _HELD) for host_id in (1, 2, 3)),
]


def _cases(source: random.Random, count: int) -> Iterator[Case]:
    actions = [*ACTIONS, "dump", "dump json"]
    for _ in range(count):
        patches = []
        while not patches or source.random() < 0.4:
            sector, layout = source.choice(_SECTORS)
            patches.append(Patch(PATH, 512 * sector, _mutator(layout, sector).one(source)))
        size = (
            source.choice([512, 4096, 5000, MIB, 2 * MIB, 5 * MIB + 512]) if source.random() < 0.03 else None
        )
        yield Case("rindex", "", source.choice(actions), tuple(patches), size)


TARGETS = [
    _record_target("rindex-header", 200),
    _record_target("rindex-entry", 200),
    Target("rindex", 10, 4, _cases, _run, same, same),
]
