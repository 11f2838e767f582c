"""The end of a lease area whose file is gone (libvirt-and-qemu.md 8.2, rule 5).

Whoever opened the file before it was removed still reads and writes it, for as long as a sanlock daemon
waits for an owner to die. What it finds there must never become a lease beside the one in the file that may
take its place: the leader is marked as cleared, which every reader refuses.
"""

from __future__ import annotations

from vmlockctl.lease.resource import Claimant, Resource, is_ours, locate, lost, write_leader
from vmlockctl.lease.steps import Procedure, now
from vmlockctl.ondisk.area import cleared_leader


def void_removed(claimant: Claimant, resource: Resource, *, lver: int) -> Procedure[None]:
    """Clear the leader of a lease that we hold exclusively at ``lver``. Raises ``LeaseLost``."""
    area, leader = yield from locate(claimant, resource)
    if leader.lver != lver or not is_ours(claimant, leader):
        raise lost(area, leader, claimant, lver)
    cleared = cleared_leader(
        area.geometry, space_name=leader.space, resource_name=leader.resource, timestamp=(yield from now())
    )
    yield from write_leader(claimant, area, cleared, what=f"clear lver {lver} of a removed file")
