"""What ``status`` says of a lease whose records do not agree: never "free" while somebody may hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sim.scene import DISK, NOW, SPACE
from vmlockctl.ondisk.area import resource_area
from vmlockctl.ondisk.dblock import FLAG_RELEASED, NO_MODE, Dblock, own_sector
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import Leader
from vmlockctl.ops.dump_leases import dump
from vmlockctl.ops.status import Lease, lease_of

OWNED = {"owner_id": 1, "owner_generation": 1, "lver": 4, "timestamp": 900, "write_id": 1}


def seen(tmp_path: Path, leader: dict[str, int], dblocks: dict[int, Dblock]) -> Lease:
    area = bytearray(resource_area(DEFAULT_GEOMETRY, space_name=SPACE, resource_name=DISK, num_hosts=8))
    record = Leader.from_bytes(bytes(area))._replace(**leader).sealed()
    area[: len(record.to_bytes())] = record.to_bytes()
    for host_id, dblock in dblocks.items():
        start = DEFAULT_GEOMETRY.dblock_sector(host_id) * 512
        area[start : start + 512] = own_sector(dblock, NO_MODE, 512)
    path = tmp_path / DISK
    path.write_bytes(area)
    [found] = dump([str(path)])
    return lease_of(found, {}, None, 0)


def value(owner: int, lver: int, *, flags: int = 0) -> Dblock:
    return Dblock(2000 + owner, 2000 + owner, owner, 1, NOW, lver, flags=flags).sealed()


@pytest.mark.parametrize(
    ("leader", "dblocks", "owners"),
    [
        pytest.param(OWNED, {1: value(1, 4)}, [1], id="held"),
        pytest.param({**OWNED, "timestamp": 0}, {1: value(1, 4, flags=FLAG_RELEASED)}, [], id="free"),
        pytest.param({**OWNED, "write_id": 2}, {1: value(1, 4)}, [1], id="committed by another"),
        pytest.param({**OWNED, "write_id": 2}, {1: value(1, 4, flags=FLAG_RELEASED)}, [], id="released"),
        pytest.param({**OWNED, "write_id": 2}, {1: value(1, 6, flags=FLAG_RELEASED)}, [], id="moved on"),
        pytest.param({**OWNED, "write_id": 2}, {1: value(1, 4), 3: value(3, 6)}, [3], id="went back"),
        pytest.param({**OWNED, "timestamp": 0}, {3: value(3, 5)}, [3], id="a value of the next version"),
        pytest.param(OWNED, {1: value(1, 4), 3: Dblock(2003, lver=5).sealed()}, [1], id="somebody tries"),
    ],
)  # fmt: skip
def test_who_holds_it(
    tmp_path: Path, leader: dict[str, Any], dblocks: dict[int, Dblock], owners: list[int]
) -> None:
    found = seen(tmp_path, leader, dblocks)
    assert [owner["host_id"] for owner in found.owners] == owners
    assert found.mode == ("exclusive" if owners else "free")
