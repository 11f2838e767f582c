"""The devices that the suite runs on: a regular file, and loop devices with sectors of 512 and 4096 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.filesystems import loop_device
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.units import MIB

SIZE = 4 * MIB


class Device(NamedTuple):
    path: str
    backing: Path  # the same bytes as a file
    geometry: Geometry  # of areas on it

    @property
    def unit(self) -> int:
        """The smallest I/O that it takes."""
        return self.geometry.sector_size


def pattern(size: int, first: int = 0) -> bytes:
    """Bytes in which every sector differs from every other."""
    return b"".join((first + number).to_bytes(4, "big") * 128 for number in range(size // 512))


@pytest.fixture(
    params=[
        "file",
        pytest.param("loop 512", marks=pytest.mark.real("losetup")),
        pytest.param("loop 4096", marks=pytest.mark.real("losetup")),
    ]
)
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    backing = tmp_path / "area"
    backing.write_bytes(pattern(SIZE))
    if request.param == "file":
        yield Device(str(backing), backing, DEFAULT_GEOMETRY)
        return
    sector_size = int(request.param.split()[1])
    geometry = DEFAULT_GEOMETRY if sector_size == 512 else Geometry(4096, 2 * MIB)
    with loop_device(backing, sector_size=sector_size) as path:
        yield Device(str(path), backing, geometry)
