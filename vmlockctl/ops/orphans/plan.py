"""The writes that a fix does, for --dry-run: which record, where, and what becomes of it."""

from __future__ import annotations

from vmlockctl.errors import VmlockctlError
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ops.dump_leases import AreaDump, dump
from vmlockctl.ops.orphans.finding import ADOPT, RELEASE_OURS, REMOVE, Finding, Write
from vmlockctl.ops.orphans.view import membership_of
from vmlockctl.ops.session import Session, lease_path
from vmlockctl.ops.status import Status
from vmlockctl.specs import resource_name
from vmlockctl.storage.patience import names_of

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
        paths = [lease_path(membership, resource_name(name)) for name in names_of(finding.disk)]
    writes: list[Write] = []
    for path in paths:
        writes += _writes_in(path, finding.fix, seen)
    return writes


def _writes_in(path: str, fix: str, seen: Status) -> Iterator[Write]:
    assert seen.this_host is not None
    area = _area_of(path)
    geometry = seen.lockspace.area.geometry
    lver, before = 0, "free"
    if area is None:
        yield Write(path, 0, "file", "none", f"a free lease of {geometry.align_size} bytes")
    else:
        assert area.leader is not None
        geometry = Geometry(area.sector_size or 512, area.align_size or 1 << 20)
        lver, before = area.leader["lver"], _leader_owner(area.leader, seen)
    host_id, ours = seen.this_host["host_id"], f"owner {_owner(seen.this_host)}"
    dblock = geometry.dblock_sector(host_id) * geometry.sector_size
    released = Write(path, dblock, "our dblock", _dblock_of(area, host_id), f"version {lver}, released")
    if fix == RELEASE_OURS:
        yield released
        yield Write(path, 0, "leader", f"version {lver}, {before}", f"version {lver}, free")
        return
    new = f"version {lver + 1}"
    yield released._replace(new=new)
    yield Write(path, 0, "leader", f"version {lver}, {before}", f"{new}, {ours}")
    if fix == REMOVE:
        yield Write(path, 0, "file", f"{new}, {ours}", "removed")
        yield Write(path, 0, "leader of the removed file", f"{new}, {ours}", "cleared")
        return
    note = geometry.note_sectors()[0] * geometry.sector_size
    old = area.owner_note if area is not None else None
    yield Write(path, note, "owner note", f"version {old.get('lver')}" if old else "none", new)
    if fix != ADOPT:
        yield released._replace(old=new, new=f"{new}, released")
        yield Write(path, 0, "leader", f"{new}, {ours}", f"{new}, free")


def _dblock_of(area: Optional[AreaDump], host_id: int) -> str:
    for dblock in (area.dblocks or []) if area is not None else []:
        if dblock["host_id"] == host_id:
            return f"version {dblock['lver']}" + (", released" if dblock["released"] else "")
    return "never used"


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
