"""Asking the owner of a lease to let go (sanlock-format.md section 4.9).

The asker writes the request record and sets the owner's bit in the bitmap of its own delta record, with its
next renewals; the owner's host looks at the requests of what it holds when it sees its bit. A request is for
one version: the next. It is over when the lease reaches that version, and never for a later one, because
a sanlock daemon that shares a lease and meets such a request kills its own process group (12.2-i).

I/Os of a request: r1 leader, r2 request record, w3 and r4 request record. Of a look: r1 request record.
"""

from __future__ import annotations

from vmlockctl.errors import OnDiskError, RequestPending, StorageError
from vmlockctl.lease.delta import occupied_records
from vmlockctl.lease.resource import Claimant, Resource, locate
from vmlockctl.lease.steps import Area, Procedure, read_sectors, write_sectors
from vmlockctl.lease.timeouts import read_timeout_seconds, write_timeout_seconds
from vmlockctl.ondisk import bitmap
from vmlockctl.ondisk.geometry import REQUEST_SECTOR
from vmlockctl.ondisk.request import FORCE, GRACEFUL, Request, verify_request
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class Asked(NamedTuple):
    """A request that stands on the disk, and the owner whom it asks."""

    lver: int
    force_mode: int
    owner_id: int
    owner_generation: int


def request(claimant: Claimant, resource: Resource, *, force: bool) -> Procedure[Optional[Asked]]:
    """Ask the exclusive owner to let go; ``force``: its host kills the holder instead of asking it to end.

    None where nobody holds the lease exclusively: there is nobody to ask. A pending request for the same
    version is raised from graceful to force, never lowered. Raises ``RequestPending`` where one for a later
    version stands (-273), and ``StorageError`` where ours is not there afterwards; ``OnDiskError`` leaves.
    """
    area, leader = yield from locate(claimant, resource)
    if leader.is_free:
        return None
    lver = leader.lver + 1
    found = yield from read_request(claimant, area)
    if found.force_mode and found.lver > lver:
        raise RequestPending(
            f"{safe(resource.name)}: a request for version {found.lver} stands already, "
            f"expected at most {lver}",
            details={"lver": found.lver, "force_mode": found.force_mode},
        )
    wanted = FORCE if force else GRACEFUL
    if (found.lver, found.force_mode) != (lver, FORCE):
        yield from _write(claimant, area, found._replace(lver=lver, force_mode=wanted), "request")
        stands = yield from read_request(claimant, area)
        # Another host that asks at the same time may have raised it.
        if stands.lver != lver or stands.force_mode not in (wanted, FORCE):
            raise _not_there(area, stands)
    return Asked(lver, wanted, leader.owner_id, leader.owner_generation)


def clear_request(claimant: Claimant, resource: Resource) -> Procedure[bool]:
    """Take back whatever request stands. Returns whether one did."""
    area, _leader = yield from locate(claimant, resource)
    found = yield from read_request(claimant, area)
    if not found.lver and not found.force_mode:
        return False
    yield from _write(claimant, area, found._replace(lver=0, force_mode=0), "clear the request")
    stands = yield from read_request(claimant, area)
    if stands == found:
        raise _not_there(area, stands)
    return True


def pending_request(claimant: Claimant, resource: Resource, *, lver: int) -> Procedure[Optional[Request]]:
    """The owner's side: a request for a version after the one that we hold exclusively, or None."""
    area, _leader = yield from locate(claimant, resource)
    found = yield from read_request(claimant, area)
    return found if found.force_mode and found.lver > lver else None


def read_request(claimant: Claimant, area: Area) -> Procedure[Request]:
    data = yield from read_sectors(area, REQUEST_SECTOR, 1, read_timeout_seconds(claimant.io_timeout))
    try:
        return verify_request(data)
    except OnDiskError as error:
        raise error.at(area.path, area.byte_offset(REQUEST_SECTOR)) from None


def _write(claimant: Claimant, area: Area, record: Request, what: str) -> Procedure[None]:
    yield from write_sectors(
        area,
        REQUEST_SECTOR,
        record.to_bytes().ljust(area.geometry.sector_size, b"\0"),
        write_timeout_seconds(claimant.io_timeout),
        what=f"{what} for lver {record.lver} mode {record.force_mode}",
    )


def _not_there(area: Area, found: Request) -> StorageError:
    return StorageError(
        f"{area.path}:{area.byte_offset(REQUEST_SECTOR)}: what was just written is not there, "
        f"found a request for version {found.lver}, mode {found.force_mode}",
        hint="another host asked at the same time, or the storage lost the write: try again",
    )


def hosts_asking(area: Area, image: bytes, host_id: int) -> list[int]:
    """The hosts whose delta records, in an image of the lockspace, have our bit set."""
    return [
        asker
        for asker, _record in occupied_records(area, image)
        if asker != host_id and host_id in bitmap.host_ids_in(_delta_sector(area, image, asker))
    ]


def _delta_sector(area: Area, image: bytes, host_id: int) -> bytes:
    start = area.geometry.delta_sector(host_id) * area.geometry.sector_size
    return image[start : start + area.geometry.sector_size]
