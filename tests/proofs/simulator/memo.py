"""Pure functions of ``ondisk``, remembered: most sectors are decoded many times before they change.

Nothing of ``lease`` is touched. A function of bytes (and of keywords) that reads nothing else and returns
something immutable gives the same answer from a table; an exception is never kept, so it is raised anew.
Checksums are summed by a library (``checksums``).
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from tests.proofs.checksums import summing_quickly
from vmlockctl import records
from vmlockctl.lease import ballot, delta, paxos, release, resource
from vmlockctl.ondisk import dblock, leader

_SIZE = 4096
_PATCHES: list[tuple[Any, str, Callable[..., Any]]] = []


def _remember(function: Callable[..., Any], name: str, used: int, *modules: Any) -> None:
    """Keep the answers for the first ``used`` bytes: a record is the same in whatever it was read with."""
    kept = lru_cache(maxsize=_SIZE)(function)

    def remembered(data: Any, **options: Any) -> Any:
        return kept(data[:used], **options)

    _PATCHES.extend((module, name, remembered) for module in modules)


_remember(leader.verify_paxos, "verify_paxos", leader.LEADER.size, resource)
_remember(leader.verify_delta, "verify_delta", leader.LEADER.size, delta)
_remember(dblock.verify_dblock, "verify_dblock", dblock.DBLOCK.size, ballot, paxos, release, resource)
_remember(leader.name_field, "name_field", leader.NAME_LEN, delta)

# The records of ``vmlockctl.records`` are made to be quick to define; the standard ones are quick to make.
for record in tuple.__subclasses__():
    if record.__new__ is records._new:
        standard = namedtuple(record.__name__, record._fields, defaults=record._field_defaults.values())
        _PATCHES.extend((record, name, getattr(standard, name)) for name in ("__new__", "_replace"))


@contextmanager
def remembering() -> Iterator[None]:
    """Within this block the shipped procedures decode from memory."""
    before = [(module, name, getattr(module, name)) for module, name, _ in _PATCHES]
    try:
        for module, name, kept in _PATCHES:
            setattr(module, name, kept)
        with summing_quickly():
            yield
    finally:
        for module, name, shipped in before:
            setattr(module, name, shipped)
