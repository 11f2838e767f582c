"""What ``init`` writes, in all five geometries."""

from __future__ import annotations

import pytest

from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.errors import WrongMagic
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.area import lockspace_area, resource_area, unpublished_lockspace_area
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.leader import verify_delta, verify_paxos
from vmlockctl.ondisk.request import verify_request


@each_geometry
def test_a_lockspace(geometry: Geometry) -> None:
    area = lockspace_area(geometry, space_name="ls", io_timeout=7)
    size = geometry.sector_size
    assert len(area) == geometry.align_size
    first = verify_delta(area[:size], space_name="ls")
    assert first.geometry == geometry
    assert (first.max_hosts, first.num_hosts, first.io_timeout) == (1, 0, 7)
    assert first.is_free
    assert first.owner == (0, 0)
    assert area == area[:size] * geometry.max_hosts + bytes((geometry.sectors - geometry.max_hosts) * size)


@each_geometry
def test_a_half_written_lockspace_is_refused_by_every_reader(geometry: Geometry) -> None:
    area = lockspace_area(geometry, space_name="ls", io_timeout=7)
    unpublished = unpublished_lockspace_area(area)
    assert unpublished[4:] == area[4:]
    with pytest.raises(WrongMagic):
        verify_delta(unpublished[: geometry.sector_size], space_name="ls")


@each_geometry
@pytest.mark.parametrize("num_hosts", [0, 8])
def test_a_resource(geometry: Geometry, num_hosts: int) -> None:
    area = resource_area(geometry, space_name="ls", resource_name="res", num_hosts=num_hosts)
    size = geometry.sector_size
    assert len(area) == geometry.align_size
    leader = verify_paxos(area[:size], space_name="ls", resource_name="res")
    assert leader.geometry == geometry
    assert leader.max_hosts == geometry.max_hosts
    assert leader.num_hosts == (num_hosts or geometry.max_hosts)
    assert leader.is_free
    verify_request(area[size : 2 * size])
    assert not any(area[2 * size :])
    sector, _ = geometry.note_sectors()
    assert ownernote.from_bytes(area[sector * size :]) is None
