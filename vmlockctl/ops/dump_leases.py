"""dump-leases: every record of lease areas, decoded; never writes, drops nothing.

Damage is a finding, not an error: what is broken is named with sanlock's number, and everything around
it is still shown. Dblocks are read up to the highest host id that is in use as far as the areas
say; ``all_blocks`` reads every one.
"""

from __future__ import annotations

import os
import stat

from vmlockctl.errors import (
    NoSuchArea,
    OnDiskError,
    TruncatedArea,
    UsageError,
    WrongMagic,
    storage_error,
)
from vmlockctl.lease.timeouts import DEFAULT_IO_TIMEOUT
from vmlockctl.ondisk import bitmap, ownernote
from vmlockctl.ondisk.dblock import USED_LEN, Dblock, ModeBlock, verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, NOTE_SIZE, PROBE_SIZE, REQUEST_SECTOR, Geometry
from vmlockctl.ondisk.leader import (
    DELTA_MAGIC,
    PAXOS_CLEARED_MAGIC,
    PAXOS_MAGIC,
    Leader,
    verify_delta,
    verify_paxos,
)
from vmlockctl.ondisk.request import REQUEST, REQUEST_MAGIC, Request, verify_request
from vmlockctl.ops.disknames import DiskName, noted_disk
from vmlockctl.ops.dump_rindex import is_rindex, rindex_dict, rindex_geometry
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, split_colons
from vmlockctl.storage.patience import exists, patiently
from vmlockctl.storage.reader import read_pieces
from vmlockctl.storage.worker import Worker
from vmlockctl.text import decode_name
from vmlockctl.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, Optional

    from vmlockctl.ops.disknames import DiskNames

LOCKSPACE = "lockspace"
RESOURCE = "resource"
CLEARED = "cleared"
RINDEX = "rindex"
UNKNOWN = "unknown"
ONLY_ZEROS = "only zeros"

_KINDS = {DELTA_MAGIC: LOCKSPACE, PAXOS_MAGIC: RESOURCE, PAXOS_CLEARED_MAGIC: CLEARED}
# Sectors of a 4096-byte head that can hold dblocks at 512: hosts 1 to 6.
_HEAD_HOSTS = PROBE_SIZE // 512 - 2
_TIMEOUT_SECONDS = 4 * DEFAULT_IO_TIMEOUT
_UNUSED = bytes(USED_LEN)
_AREAS_AT_ONCE = 256


class AreaDump(NamedTuple):
    """One area; the fields that its kind does not have are None."""

    path: str
    offset: int
    kind: str
    sector_size: Optional[int]
    align_size: Optional[int]
    leader: Optional[dict[str, Any]]
    leaders: Optional[list[dict[str, Any]]]
    request: Optional[dict[str, Any]]
    dblocks: Optional[list[dict[str, Any]]]
    owner_note: Optional[dict[str, Any]]
    damage: list[dict[str, Any]]
    lvb: Optional[str] = None  # hex, without the zeros behind it; None where it is all zeros, or not there
    rindex: Optional[dict[str, Any]] = None
    disk: Optional[str] = None  # that the lease stands for, where anybody knows it
    disk_source: Optional[str] = None  # who knows it, in words

    def as_dict(self) -> dict[str, Any]:
        """The fields that this kind of area has."""
        keep = {"path", "offset", "kind", "sector_size", "align_size", "damage"}
        if self.kind == LOCKSPACE:
            keep |= {"leaders"}
        elif self.kind == RINDEX:
            keep |= {"rindex"}
        elif self.kind != UNKNOWN:
            keep |= {"leader", "request", "dblocks", "owner_note", "lvb", "disk", "disk_source"}
        return {field: value for field, value in self._asdict().items() if field in keep}


class _Place(NamedTuple):
    """A path and the part of it that is to be read; size 0 = to its end."""

    path: str
    offset: int
    size: int
    resource_name: Optional[str]
    space_name: Optional[str]


def dump(
    paths: Sequence[str], *, all_blocks: bool = False, hosts: int = 0, missing_ok: bool = False
) -> Iterator[AreaDump]:
    """Decode the areas of files, devices (``PATH[:OFFSET[:SIZE]]``) and lease directories, in order.

    ``hosts``: the highest host id that may be in use, where no lockspace among the paths tells.
    ``missing_ok``: the paths were listed before, and any of them may have been removed since.
    """
    hosts = max(hosts, _HEAD_HOSTS)
    for place in (place for path in paths for place in _places(path, missing_ok=missing_ok)):
        worker = Worker(place.path)
        try:
            for area in _dump_place(place, worker, 2000 if all_blocks else hosts, all_blocks):
                if area.leaders:
                    hosts = max(hosts, *(record["host_id"] for record in area.leaders))
                yield area
        except NoSuchArea:
            if not missing_ok:
                raise
        finally:
            worker.close()


def with_disks(areas: Iterable[AreaDump], names: DiskNames) -> Iterator[AreaDump]:
    """The areas, with the disk of each lease: as its owner note tells, else by whoever knows its digest."""
    for area in areas:
        if area.rindex is not None:
            for entry in area.rindex["entries"]:
                found = names.find(entry["name"])
                entry["disk"] = found.path if found is not None else None
        elif area.leader is not None:
            resource = area.leader["resource_name"]
            noted = noted_disk(area.owner_note or {}, resource)
            found = DiskName(noted, "owner note") if noted is not None else names.find(resource)
            if found is not None:
                area = area._replace(disk=found.path, disk_source=found.source)
        yield area


def _places(text: str, *, missing_ok: bool = False) -> Iterator[_Place]:
    try:
        yield from _places_at(text, missing_ok=missing_ok)
    except OSError as error:
        raise storage_error(error, text, "cannot look at the lease area") from None


def _places_at(text: str, *, missing_ok: bool) -> Iterator[_Place]:
    kind = _kind_of_file(text)
    if stat.S_ISDIR(kind):
        names = sorted(name for name in patiently(text, lambda: os.listdir(text)) if not name.startswith("."))
        names.sort(key=lambda name: name != LIBVIRT_LOCKSPACE)
        has_lockspace = LIBVIRT_LOCKSPACE in names
        for name in names:
            path = os.path.join(text, name)
            if stat.S_ISREG(_kind_of_file(path)):
                in_layout = has_lockspace and name != LIBVIRT_LOCKSPACE
                yield _Place(
                    path, 0, 0, name if in_layout else None, LIBVIRT_LOCKSPACE if has_lockspace else None
                )
        return
    if not kind:
        if missing_ok:
            return
        fields = split_colons(text)
        if len(fields) in (2, 3) and exists(fields[0]):
            offset, size = parse_size(fields[1]), parse_size(fields[2]) if len(fields) == 3 else 0
            if offset % 512:
                raise UsageError(f"offset {offset} is not a multiple of 512")
            yield _Place(os.path.abspath(fields[0]), offset, size, None, None)
            return
        raise NoSuchArea(f"{text}: no such lease area or directory")
    yield _Place(os.path.abspath(text), 0, 0, None, None)


def _kind_of_file(path: str) -> int:
    """The mode of a path, 0 where there is nothing. Raises ``OSError`` where that cannot be told."""
    try:
        return patiently(path, lambda: os.stat(path)).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def _dump_place(place: _Place, worker: Worker, hosts: int, all_blocks: bool) -> Iterator[AreaDump]:  # noqa: FBT001
    first = read_pieces(
        place.path, [(place.offset, 2 * PROBE_SIZE)], timeout_seconds=_TIMEOUT_SECONDS, worker=worker
    )
    end = min(first.size, place.offset + place.size) if place.size else first.size
    head = first.pieces[0]
    geometry = _guess_geometry(head, place.offset) or DEFAULT_GEOMETRY
    offset = place.offset
    if end <= offset or len(head) < PROBE_SIZE:
        yield _too_short(place, offset, len(head))
        return
    while offset < end:
        step = geometry.align_size
        offsets = list(range(offset, end, step))[:_AREAS_AT_ONCE]
        size = max(2 * PROBE_SIZE if all_blocks else PROBE_SIZE, _head_size(geometry, hosts))
        heads = read_pieces(
            place.path, [(at, size) for at in offsets], timeout_seconds=_TIMEOUT_SECONDS, worker=worker
        )
        for at, data in zip(offsets, heads.pieces):
            area, found = _dump_area(place, at, data, worker, hosts, all_blocks, geometry)
            if found is not None and end < at + found.align_size:
                area.damage.append(_ends_early(at, end - at, found))
            yield area
            offset = at + (found or geometry).align_size
            if found is not None and found != geometry:
                geometry = found  # an area of another size: the rest is aligned to it
                break


def _head_size(geometry: Geometry, hosts: int) -> int:
    sectors = min(hosts, geometry.max_hosts) + 2
    size = sectors * geometry.sector_size
    return min(geometry.align_size, (size + PROBE_SIZE - 1) // PROBE_SIZE * PROBE_SIZE)


def _guess_geometry(head: bytes, offset: int = 0) -> Optional[Geometry]:
    """The sizes that a first record states, or that the second sector betrays where it is damaged."""
    if is_rindex(head, offset):
        return rindex_geometry(head)
    if len(head) >= 200 and int.from_bytes(head[:4], "little") in _KINDS:
        try:
            return Leader.from_bytes(head).geometry
        except OnDiskError:
            pass
    for geometry in (Geometry(512, 1 << 20), Geometry(4096, 8 << 20)):
        second = head[geometry.sector_size : geometry.sector_size + 256]
        magic = int.from_bytes(second[:4], "little")
        if magic == DELTA_MAGIC:
            try:
                return Leader.from_bytes(second).geometry
            except OnDiskError:
                continue
        if magic == REQUEST_MAGIC:
            return geometry
    return None


def _dump_area(
    place: _Place,
    offset: int,
    head: bytes,
    worker: Worker,
    hosts: int,
    all_blocks: bool,  # noqa: FBT001
    usual: Geometry,
) -> tuple[AreaDump, Optional[Geometry]]:
    """One area, from the head that was read with many others; more is read where it has more.

    ``usual`` is the geometry of the areas before it, for a resource index whose own is damaged.
    """
    if len(head) < PROBE_SIZE:
        return _too_short(place, offset, len(head)), None
    magic = int.from_bytes(head[:4], "little")
    geometry = _guess_geometry(head, offset)
    if is_rindex(head, offset):
        geometry = geometry or usual
        image = _read(place, worker, offset, geometry.align_size)
        return _dump_rindex(place, offset, geometry, image), geometry
    kind = _KINDS.get(magic) or _kind_of_damaged(head)
    if geometry is None or kind == UNKNOWN:
        return _unknown(place, offset, head), None
    if kind == LOCKSPACE:
        image = _read(place, worker, offset, geometry.align_size)
        return _dump_lockspace(place, offset, geometry, image, all_blocks), geometry
    wanted = geometry.align_size if all_blocks else _head_size(geometry, hosts)
    if len(head) < wanted:
        head = _read(place, worker, offset, wanted)
    note, lvb = b"", b""
    if Leader.from_bytes(head).lver:
        # The value block, where there is one, and the note are the last things of an area: one read.
        last = geometry.lvb_sector or geometry.note_sectors()[0]
        start = last * geometry.sector_size // PROBE_SIZE * PROBE_SIZE
        tail = _read(place, worker, offset + start, geometry.align_size - start)
        note = tail[-NOTE_SIZE:]
        if geometry.lvb_sector is not None:
            lvb = tail[last * geometry.sector_size - start :][: geometry.sector_size]
    area = _dump_resource(place, offset, kind, geometry, head, note)
    return area._replace(lvb=lvb.rstrip(b"\0").hex() or None), geometry


def _dump_rindex(place: _Place, offset: int, geometry: Geometry, image: bytes) -> AreaDump:
    index, found = rindex_dict(image, offset, geometry)
    damage = [_damage(at, error) for at, error in found]
    return AreaDump(
        place.path, offset, RINDEX, geometry.sector_size, geometry.align_size,
        None, None, None, None, None, damage, rindex=index,
    )  # fmt: skip


def _read(place: _Place, worker: Worker, offset: int, size: int) -> bytes:
    return read_pieces(place.path, [(offset, size)], timeout_seconds=_TIMEOUT_SECONDS, worker=worker).pieces[
        0
    ]


def _kind_of_damaged(head: bytes) -> str:
    for sector_size in (512, 4096):
        magic = int.from_bytes(head[sector_size : sector_size + 4], "little")
        if magic == DELTA_MAGIC:
            return LOCKSPACE
        if magic == REQUEST_MAGIC:
            return RESOURCE
    return UNKNOWN


def _dump_lockspace(
    place: _Place,
    offset: int,
    geometry: Geometry,
    image: bytes,
    all_blocks: bool,  # noqa: FBT001
) -> AreaDump:
    size = geometry.sector_size
    damage: list[dict[str, Any]] = []
    leaders = []
    space = place.space_name or decode_name(image[size + 56 : size + 104])
    usual = image[size * (geometry.max_hosts - 1) :][:size]  # most records were never acquired
    for host_id in range(1, geometry.max_hosts + 1):
        start = (host_id - 1) * size
        sector = image[start : start + size]
        if sector == usual and not all_blocks and host_id < geometry.max_hosts:
            continue
        if len(sector) < size:
            break
        try:
            verify_delta(sector, space_name=space)
            if host_id == 1:  # the one that states the sizes for everybody
                _ = Leader.from_bytes(sector).geometry
        except OnDiskError as error:
            damage.append(_damage(offset + start, error))
        record = Leader.from_bytes(sector)
        if all_blocks or record.owner_id or record.timestamp:
            leaders.append(
                {"host_id": host_id, "host_name": record.resource, **_leader_dict(record),
                 "bitmap": bitmap.host_ids_in(sector)}
            )  # fmt: skip
    return AreaDump(
        place.path, offset, LOCKSPACE, size, geometry.align_size, None, leaders, None, None, None, damage
    )


def _dump_resource(
    place: _Place, offset: int, kind: str, geometry: Geometry, data: bytes, note: bytes
) -> AreaDump:
    size = geometry.sector_size
    damage: list[dict[str, Any]] = []
    leader = Leader.from_bytes(data)
    try:
        verify_paxos(
            data[:size],
            space_name=place.space_name or leader.space,
            resource_name=place.resource_name or leader.resource,
        )
    except OnDiskError as error:
        if kind != CLEARED:
            damage.append(_damage(offset, error))
    request = _request_dict(data[REQUEST_SECTOR * size :], offset + REQUEST_SECTOR * size, damage)
    dblocks = []
    for host_id in range(1, geometry.max_hosts + 1):
        start = geometry.dblock_sector(host_id) * size
        used = data[start : start + USED_LEN]
        if len(used) < USED_LEN:
            break
        if used != _UNUSED:
            dblocks.append(_dblock_dict(host_id, used, offset + start, damage))
    return AreaDump(
        place.path,
        offset,
        kind,
        size,
        geometry.align_size,
        _leader_dict(leader),
        None,
        request,
        dblocks,
        _note_dict(note, leader),
        damage,
    )


def _request_dict(data: bytes, place: int, damage: list[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """None where the area ends before it, which is damage of its own."""
    if len(data) < REQUEST.size:
        return None
    try:
        verify_request(data[: REQUEST.size])
    except OnDiskError as error:
        damage.append(_damage(place, error))
    return Request.from_bytes(data)._asdict()


def _dblock_dict(host_id: int, used: bytes, place: int, damage: list[dict[str, Any]]) -> dict[str, Any]:
    valid = True
    try:
        verify_dblock(used, host_id=host_id)
    except OnDiskError as error:
        valid = False
        damage.append(_damage(place, error))
    dblock, mode = Dblock.from_bytes(used), ModeBlock.from_bytes(used)
    return {
        "host_id": host_id,
        **dblock._asdict(),
        "released": dblock.is_released,
        "shared": mode.is_shared,
        "mode_flags": mode.flags,
        "mode_generation": mode.generation,
        "valid": valid,
    }


def _note_dict(note: bytes, leader: Leader) -> Optional[dict[str, Any]]:
    found = ownernote.from_bytes(note) if len(note) == NOTE_SIZE else None
    return None if found is None else {**found, "current": ownernote.is_current(found, leader)}


def _leader_dict(leader: Leader) -> dict[str, Any]:
    return {**leader._asdict(), "space_name": leader.space, "resource_name": leader.resource}


def _damage(offset: int, error: OnDiskError) -> dict[str, Any]:
    return {"offset": offset, "code": error.code, "sanlk_rv": error.sanlk_rv, "text": error.message}


def _ends_early(offset: int, size: int, geometry: Geometry) -> dict[str, Any]:
    error = TruncatedArea(
        "the area is too short", found=f"{size} bytes", expected=f"{geometry.align_size} bytes"
    )
    return _damage(offset, error)


def _too_short(place: _Place, offset: int, size: int) -> AreaDump:
    error = TruncatedArea("too short for a lease area", found=f"{size} bytes", expected="at least 1M")
    return _no_area(place, offset, error)


def _unknown(place: _Place, offset: int, head: bytes) -> AreaDump:
    found = ONLY_ZEROS if not any(head) else f"magic {int.from_bytes(head[:4], 'little'):#010x}"
    return _no_area(place, offset, WrongMagic("no lease area here", found=found))


def _no_area(place: _Place, offset: int, error: OnDiskError) -> AreaDump:
    damage = [_damage(offset, error)]
    return AreaDump(place.path, offset, UNKNOWN, None, None, None, None, None, None, None, damage)
