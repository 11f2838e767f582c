"""The resource index beside real sanlock: the same bytes, and each finds what the other made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.sanlockhost import sanlock_direct
from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.lease import rindex
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.rindexrecords import Index
from vmlockctl.lease.steps import Area
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ops.dump_leases import dump
from vmlockctl.storage.driver import Driver

pytestmark = pytest.mark.real("sanlock")
SPACE = "space"


def run(procedure: Any) -> Any:
    with Driver() as driver:
        return driver.run(procedure)


@each_geometry
def test_a_formatted_index_has_the_bytes_of_sanlocks(tmp_path: Path, geometry: Geometry) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_bytes(b"")
        os.truncate(path, 4 * geometry.align_size)
    sizes = ["-Z", str(geometry.sector_size), "-A", f"{geometry.align_size >> 20}M"]
    assert sanlock_direct("format", "-x", f"{SPACE}:{theirs}:0", *sizes).returncode == 0
    run(rindex.format_rindex(Index(str(ours), 0, SPACE), geometry))
    ours_bytes, theirs_bytes = bytearray(ours.read_bytes()), bytearray(theirs.read_bytes())
    # The last four bytes of the request record are padding that sanlock leaves undefined.
    padding = geometry.align_size + geometry.sector_size + 20
    ours_bytes[padding : padding + 4] = theirs_bytes[padding : padding + 4] = bytes(4)
    assert ours_bytes == theirs_bytes


def test_each_finds_what_the_other_made(tmp_path: Path) -> None:
    device, space = tmp_path / "device", tmp_path / "space"
    device.write_bytes(b"")
    os.truncate(device, 8 << 20)
    space.write_bytes(lockspace_area(DEFAULT_GEOMETRY, space_name=SPACE, io_timeout=1))
    index = Index(str(device), 0, SPACE)
    claimant = Claimant(Lockspace(Area(str(space), 0, DEFAULT_GEOMETRY), SPACE, 1), 1, 1, 1, {})
    spec = f"{SPACE}:{device}:0"
    run(rindex.format_rindex(index, DEFAULT_GEOMETRY))
    place = run(rindex.create(claimant, index, "ours", device_size=8 << 20))
    found = sanlock_direct("lookup", "-x", spec, "-e", "ours")
    assert found.returncode == 0, found
    assert str(place) in found.stdout

    # What sanlock rebuilds from the areas is what we look up, and what dump-leases shows.
    with device.open("r+b") as file:
        file.seek(3 << 20)
        file.write(resource_area(DEFAULT_GEOMETRY, space_name=SPACE, resource_name="theirs"))
    assert sanlock_direct("rebuild", "-x", spec).returncode == 0
    assert run(rindex.lookup(index, "theirs")) == 3 << 20
    shown = next(iter(dump([str(device)]))).rindex
    assert shown is not None
    assert [(entry["name"], entry["offset"]) for entry in shown["entries"]] == [
        ("ours", place),
        ("theirs", 3 << 20),
    ]
    run(rindex.delete(claimant, index, "ours"))
    assert sanlock_direct("lookup", "-x", spec, "-e", "ours").returncode != 0
