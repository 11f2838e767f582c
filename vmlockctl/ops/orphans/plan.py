"""The writes that a fix does, for --dry-run: which record, where, and what becomes of it."""

from __future__ import annotations

import os

from vmlockctl.errors import VmlockctlError
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ops.dump_leases import AreaDump, dump
from vmlockctl.ops.orphans.finding import ADOPT, RELEASE_OURS, REMOVE, Finding, Write
from vmlockctl.ops.orphans.view import membership_of
from vmlockctl.ops.session import Session, lease_path
from vmlockctl.ops.status import Status
from vmlockctl.specs import resource_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional


def planned_writes(session: Session, seen: Status, finding: Finding) -> list[Write]:
    """The writes on the storage, in their order, if nobody else comes in between."""
    membership = membership_of(session, seen)
    if seen.this_host is None or membership is None or finding.fix is None:
        return []
    paths = [finding.path or ""]
    if finding.fix == ADOPT and finding.disk is not None:
        names = dict.fromkeys((finding.disk, os.path.realpath(finding.disk)))
        paths = [lease_path(membership, resource_name(name)) for name in names]
    writes: list[Write] = []
    for path in paths:
        writes += _writes_in(path, finding.fix, seen)
    return writes


def _writes_in(path: str, fix: str, seen: Status) -> Iterator[Write]:
    assert seen.this_host is not None
    ours = f"owner {_owner(seen.this_host)}"
    area = _area_of(path)
    if area is None:
        geometry = seen.lockspace.area.geometry
        yield Write(path, 0, "file", "none", f"a free lease of {geometry.align_size} bytes")
        lver, before = 0, "free"
    else:
        assert area.leader is not None
        geometry = Geometry(area.sector_size or 512, area.align_size or 1 << 20)
        lver, before = area.leader["lver"], _leader_owner(area.leader, seen)
    dblock = geometry.dblock_sector(seen.this_host["host_id"]) * geometry.sector_size
    if fix == RELEASE_OURS:
        yield Write(path, dblock, "our dblock", f"version {lver}", f"version {lver}, released")
        yield Write(path, 0, "leader", f"version {lver}, {before}", f"version {lver}, free")
        return
    yield Write(path, dblock, "our dblock", "whatever it is", f"ballot for version {lver + 1}")
    yield Write(path, 0, "leader", f"version {lver}, {before}", f"version {lver + 1}, {ours}")
    if fix == REMOVE:
        yield Write(path, 0, "file", f"version {lver + 1}, {ours}", "removed")
        return
    note = geometry.note_sectors()[0] * geometry.sector_size
    yield Write(path, note, "owner note", "whatever it is", f"of version {lver + 1}")
    if fix != ADOPT:
        yield Write(path, dblock, "our dblock", f"version {lver + 1}", f"version {lver + 1}, released")
        yield Write(path, 0, "leader", f"version {lver + 1}, {ours}", f"version {lver + 1}, free")


def _area_of(path: str) -> Optional[AreaDump]:
    try:
        areas: Sequence[AreaDump] = list(dump([path]))
    except VmlockctlError:
        return None
    return areas[0] if areas and areas[0].leader is not None else None


def _leader_owner(leader: dict[str, Any], seen: Status) -> str:
    if not leader["timestamp"]:
        return "free"
    host = next((host for host in seen.hosts if host.host_id == leader["owner_id"]), None)
    name = host.host_name if host is not None else None
    found = {"host_id": leader["owner_id"], "generation": leader["owner_generation"], "host_name": name}
    return f"owner {_owner(found)}"


def _owner(host: dict[str, Any]) -> str:
    """``1:3 (hostA)``: host id, generation, name."""
    return f"{host['host_id']}:{host['generation']} ({host['host_name'] or 'name unknown'})"
