"""Whole areas: what ``init`` writes (sections 1.5 and 2.2)."""

from __future__ import annotations

from vmlockctl.ondisk.leader import PAXOS_CLEARED_MAGIC, Leader, new_delta, new_paxos
from vmlockctl.ondisk.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlockctl.ondisk.geometry import Geometry


def lockspace_area(geometry: Geometry, *, space_name: str, io_timeout: int) -> bytes:
    """An initialised lockspace: one free delta record per possible host."""
    record = new_delta(geometry, space_name=space_name, io_timeout=io_timeout)
    records = record.sector(geometry.sector_size) * geometry.max_hosts
    return records.ljust(geometry.align_size, b"\0")


def unpublished_lockspace_area(area: bytes) -> bytes:
    """The same area with the first record's magic zeroed.

    Written first, so that a crash half way leaves an area that every reader refuses; the first
    sector of ``area`` follows as the commit (section 1.5).
    """
    return bytes(4) + area[4:]


def resource_area(geometry: Geometry, *, space_name: str, resource_name: str, num_hosts: int = 0) -> bytes:
    """An initialised, free paxos lease."""
    leader = new_paxos(geometry, space_name=space_name, resource_name=resource_name, num_hosts=num_hosts)
    head = leader.sector(geometry.sector_size) + Request().to_bytes().ljust(geometry.sector_size, b"\0")
    return head.ljust(geometry.align_size, b"\0")


def cleared_leader(geometry: Geometry, *, space_name: str, resource_name: str, timestamp: int) -> Leader:
    """The leader of a resource that was taken away: no reader takes it for a lease (section 2.2)."""
    leader = new_paxos(geometry, space_name=space_name, resource_name=resource_name)
    return leader._replace(magic=PAXOS_CLEARED_MAGIC, write_timestamp=timestamp).sealed()
