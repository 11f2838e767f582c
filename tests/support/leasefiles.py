"""A lease directory written byte by byte: a big lockspace and held leases, without any host that runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.disk import AREA, LOCKSPACE_NAME, SECTOR, resource_name
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.dblock import NO_MODE, Dblock, own_sector
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, NOTE_SIZE
from vmlockctl.ondisk.leader import Leader, name_field

HOSTS = (1, 2, 700)


def write_lockspace(lease_dir: Path) -> None:
    """2,000 slots, of which three are occupied."""
    lease_dir.mkdir()
    area = bytearray(lockspace_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, io_timeout=10))
    for host_id in HOSTS:
        start = (host_id - 1) * SECTOR
        record = Leader.from_bytes(bytes(area[start : start + SECTOR]))._replace(
            owner_id=host_id, owner_generation=1, timestamp=1000, resource_name=name_field(f"host{host_id}")
        )
        area[start : start + SECTOR] = record.sealed().sector(SECTOR)
    (lease_dir / LOCKSPACE_NAME).write_bytes(area)


def write_lease(lease_dir: Path, disk: str, *, owner: int = 2, noted_disk: str = "") -> Path:
    """A lease as a host left it that holds it, with its note."""
    resource = resource_name(disk)
    area = bytearray(resource_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, resource_name=resource))
    held = {"owner_id": owner, "owner_generation": 1, "lver": 3, "timestamp": 999, "write_id": owner}
    leader = Leader.from_bytes(bytes(area[:SECTOR]))._replace(**held)
    area[:SECTOR] = leader.sealed().sector(SECTOR)
    start = DEFAULT_GEOMETRY.dblock_sector(owner) * SECTOR
    dblock = Dblock(2000 + owner, 2000 + owner, owner, 1, 999, 3).sealed()
    area[start : start + SECTOR] = own_sector(dblock, NO_MODE, SECTOR)
    note = {"disk": noted_disk or disk, "vm": "web", "pid": 7, "host_id": owner, "generation": 1, "lver": 3}
    path = lease_dir / resource
    with path.open("wb") as file:
        file.write(area[: 2 * NOTE_SIZE])  # and holes: 200 of these would be 200 MiB
        file.seek(AREA - NOTE_SIZE)
        file.write(ownernote.to_bytes(note))
    return path
