"""The lock value block among hosts: it goes from holder to holder, and touches nothing else of the area.

``test_rindex.py`` has it on files, and the geometries that have none.
"""

from __future__ import annotations

import pytest

from tests.sim.scene import Scene, seen_silent
from vmlockctl.errors import LeaseLost, NotHeld
from vmlockctl.lease.lvb import read_lvb, write_lvb
from vmlockctl.lease.resource import write_note
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.units import MIB

VALID = pytest.mark.parametrize("geometry", [DEFAULT_GEOMETRY, Geometry(4096, 8 * MIB)])


@VALID
def test_it_goes_from_holder_to_holder(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry)
    held = scene.acquire(1)
    assert scene.run(1, read_lvb(scene.claimant(1), held)) == bytes(geometry.sector_size)
    before = scene.storage.image(scene.area)
    scene.run(1, write_lvb(scene.claimant(1), held, b"value"))
    assert [(io.kind, io.sector, io.count) for io in scene.last.ios[1:]] == [("w", 2002, 1)]
    at = 2002 * geometry.sector_size
    image = scene.storage.image(scene.area)
    assert image[at : at + geometry.sector_size] == b"value".ljust(geometry.sector_size, b"\0")
    assert image[:at] == before[:at]
    assert image[at + geometry.sector_size :] == before[at + geometry.sector_size :]
    # The owner note is beside it.
    scene.run(1, write_note(scene.claimant(1), held.area, ownernote.to_bytes({"vm": "a"})))
    scene.release(1, held)
    other = scene.acquire(2)
    assert scene.run(2, read_lvb(scene.claimant(2), other)).rstrip(b"\0") == b"value"
    scene.run(2, write_lvb(scene.claimant(2), other, b"x" * geometry.sector_size))
    scene.run(2, write_lvb(scene.claimant(2), other, b""))
    assert scene.run(2, read_lvb(scene.claimant(2), other)) == bytes(geometry.sector_size)


def test_a_shared_holder_reads() -> None:
    scene = Scene()
    held = scene.acquire(1)
    scene.run(1, write_lvb(scene.claimant(1), held, b"value"))
    scene.release(1, held)
    shared = scene.acquire(2, shared=True)
    assert scene.run(2, read_lvb(scene.claimant(2), shared)).startswith(b"value\0")
    with pytest.raises(NotHeld, match="held shared"):
        scene.run(2, write_lvb(scene.claimant(2), shared, b"other"))
    assert scene.last.ios == []


def test_nobody_writes_his_successors() -> None:
    scene = Scene()
    scene.put_delta(1)
    held = scene.acquire(1)
    successor = scene.acquire(2, observations={1: seen_silent(1, scene.sim.now, 200)})
    scene.run(2, write_lvb(scene.claimant(2), successor, b"new"))
    with pytest.raises(LeaseLost):
        scene.run(1, write_lvb(scene.claimant(1), held, b"old"))
    assert scene.run(2, read_lvb(scene.claimant(2), successor)).rstrip(b"\0") == b"new"
