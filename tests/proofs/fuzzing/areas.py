"""Mutated areas: patches of whole sectors over a scene, for the procedures and for what prints areas."""

from __future__ import annotations

import random
from functools import cache, lru_cache
from typing import Optional

from tests.proofs.fuzzing.cases import Case, Patch
from tests.proofs.fuzzing.mutate import DBLOCK_LAYOUT, LEADER_LAYOUT, REQUEST_LAYOUT, Mutator
from tests.proofs.fuzzing.notes import note_bytes
from tests.proofs.fuzzing.scenes import FEW_SCENES, RESOURCE_PATH, SCENES, SPACE_PATH, Scene, scene

_HOSTS = range(1, 7)


def choose_scene(source: random.Random, *, any_size: bool = True) -> Scene:
    """Mostly a small one for few hosts; one of twenty in any geometry. It serves for several cases."""
    return scene(source.choice(SCENES if any_size and source.random() < 0.05 else FEW_SCENES))


def _mutator(name: str, path: str, sector: int) -> Mutator:
    """Of one sector; all but the first one of an area are the same in every geometry."""
    size, state = name.split("/")
    if path == SPACE_PATH:
        state = "unused"
    if size == "few" or sector:
        return _small_mutator(f"few/{state}", path, sector)
    return _other_mutator(name, path, sector)


def _make_mutator(name: str, path: str, sector: int) -> Mutator:
    made = scene(name)
    size = made.geometry.sector_size
    content = made.space if path == SPACE_PATH else made.resource
    layout = LEADER_LAYOUT
    if path == RESOURCE_PATH and sector:
        layout = REQUEST_LAYOUT if sector == 1 else DBLOCK_LAYOUT
    others = [content[size * i : size * (i + 1)] for i in range(4) if i != sector]
    return Mutator(content[size * sector : size * (sector + 1)], layout, others, seed=sector)


# A mutator takes half a megabyte: those of the small scenes are kept, of the others the last ones.
_small_mutator, _other_mutator = cache(_make_mutator), lru_cache(maxsize=2)(_make_mutator)


def _resource_sector(source: random.Random) -> int:
    return source.choice([0, 0, 0, 1, *(host_id + 1 for host_id in _HOSTS)])


def _patch(made: Scene, path: str, source: random.Random) -> Patch:
    """One mutated, moved or blanked sector of either area."""
    size = made.geometry.sector_size
    if path == RESOURCE_PATH and source.random() < 0.1:
        sector, _ = made.geometry.note_sectors()
        return Patch(path, sector * size, note_bytes(source))
    sector = source.choice(_HOSTS) - 1 if path == SPACE_PATH else _resource_sector(source)
    kind = source.random()
    if kind < 0.85:
        return Patch(path, sector * size, _mutator(made.name, path, sector).one(source))
    if kind < 0.95:  # a sector that was written to the wrong place, or into the wrong area
        content = made.space if source.random() < 0.3 else made.resource
        other = source.randrange(8)
        return Patch(path, sector * size, content[other * size : (other + 1) * size])
    return Patch(path, sector * size, bytes(size))


def mutated_area(
    target: str, action: str, made: Scene, source: random.Random, *, path: str = RESOURCE_PATH
) -> Case:
    """A scene with one to four bad sectors, most of them in ``path``; sometimes the file is cut short."""
    patches = [_patch(made, path, source)]
    while source.random() < 0.4:
        patches.append(_patch(made, path if source.random() < 0.7 else other_path(path), source))
    size: Optional[int] = None
    if source.random() < 0.03:
        size = source.choice([0, 1, 511, 512, 4095, 4096, 8192, made.geometry.align_size - 512, 12345])
    return Case(target, made.name, action, tuple(patches), size)


def other_path(path: str) -> str:
    return SPACE_PATH if path == RESOURCE_PATH else RESOURCE_PATH


def same(case: Case) -> Case:
    return case
