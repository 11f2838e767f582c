"""dump-leases of files that were cut short: what is left is shown, and that the rest is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ops.dump_leases import dump


@pytest.mark.parametrize("geometry", ALL_GEOMETRIES, ids=str)
@pytest.mark.parametrize("kind", ["lockspace", "resource"])
@pytest.mark.parametrize("size", [4096, 12288])
@pytest.mark.parametrize("all_blocks", [False, True])
def test_an_area_that_was_cut_short(
    tmp_path: Path, geometry: Geometry, kind: str, size: int, all_blocks: bool
) -> None:
    path = tmp_path / "area"
    if kind == "lockspace":
        content = lockspace_area(geometry, space_name="ls", io_timeout=10)
    else:
        content = resource_area(geometry, space_name="ls", resource_name="res")
    path.write_bytes(content[:size])
    [area] = dump([str(path)], all_blocks=all_blocks)
    assert area.kind == kind
    assert "truncated-area" in [finding["code"] for finding in area.damage]
    if kind == "resource":
        assert area.leader is not None
        assert area.leader["resource_name"] == "res"
        assert (area.request is None) == (size <= geometry.sector_size)
