"""What is on the disk, read beside the package's own storage layer: O_DIRECT, one record at a time.

The codec is ``vmlockctl.ondisk``; ``tests/interop/test_areas.py`` holds it to real sanlock's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from tests.support.waiting import wait_for
from vmlockctl.ondisk.leader import Leader

LOCKSPACE_NAME = "__LIBVIRT__DISKS__"
SECTOR = 512
AREA = 1024 * 1024


def lockspace_path(lease_dir: Path) -> Path:
    return lease_dir / LOCKSPACE_NAME


def resource_name(disk: os.PathLike[str] | str) -> str:
    """Name a disk's lease as libvirt does: the MD5 of the path, byte for byte."""
    return hashlib.md5(os.fsencode(disk), usedforsecurity=False).hexdigest()


def resource_path(lease_dir: Path, disk: os.PathLike[str] | str) -> Path:
    return lease_dir / resource_name(disk)


def read_direct(path: Path, offset: int, length: int) -> bytes:
    """Read past every cache. Whole pages are asked for, because a mount may sit on 4096-byte sectors."""
    start = offset - offset % mmap.PAGESIZE
    size = -(-(offset + length - start) // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, size) as buffer:
            got = os.preadv(fd, [buffer], start)
            return bytes(buffer[offset - start : min(got, offset - start + length)])
    finally:
        os.close(fd)


def write_direct(path: Path, offset: int, data: bytes) -> None:
    """Write whole 512-byte sectors past every cache, in one write."""
    assert offset % SECTOR == 0
    assert len(data) % SECTOR == 0
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(fd, [buffer], offset) == len(data)
    finally:
        os.close(fd)


def read_leader(path: Path, *, sector: int = 0, sector_size: int = SECTOR) -> Leader:
    return Leader.from_bytes(read_direct(path, sector * sector_size, sector_size))


def read_delta(lease_dir: Path, host_id: int) -> Leader:
    """The delta record of a host id in a 512-byte lockspace."""
    return read_leader(lockspace_path(lease_dir), sector=host_id - 1)


def write_leader(path: Path, leader: Leader, *, sector: int = 0) -> None:
    """Overwrite a record with a correct checksum: what a hostile or mistaken writer would do."""
    write_direct(path, sector * SECTOR, leader.sealed().sector(SECTOR))


def lease_leader(lease_dir: Path, disk: os.PathLike[str] | str) -> Optional[Leader]:
    """The leader of a disk's lease; None while there is no resource file."""
    try:
        return read_leader(resource_path(lease_dir, disk))
    except FileNotFoundError:
        return None


def lease_is_free(lease_dir: Path, disk: os.PathLike[str] | str) -> bool:
    """Free on the disk: nobody owns the leader, and nobody has a shared mark."""
    leader = lease_leader(lease_dir, disk)
    return leader is None or (leader.timestamp == 0 and not shared_hosts(lease_dir, disk))


def lease_owner(lease_dir: Path, disk: os.PathLike[str] | str) -> int:
    """The host id that owns the lease exclusively, or 0."""
    leader = lease_leader(lease_dir, disk)
    return leader.owner_id if leader is not None and leader.timestamp else 0


def shared_hosts(lease_dir: Path, disk: os.PathLike[str] | str, max_hosts: int = 16) -> list[int]:
    """Host ids with a mark in their mode block (byte 128 of sector host_id + 1)."""
    area = read_direct(resource_path(lease_dir, disk), 0, (max_hosts + 2) * SECTOR)
    return [host for host in range(1, max_hosts + 1) if area[(host + 1) * SECTOR + 128] & 1]


class Sighting(NamedTuple):
    """A record as it was first seen; ``seen`` is CLOCK_MONOTONIC after the read."""

    seen: float
    leader: Leader


class RecordWatch:
    """Every version of one record, with the time at which it appeared on the disk.

    What a test measures from ("the last renewal", "the takeover") is the disk, never a log.
    """

    def __init__(self, path: Path, *, sector: int = 0, every_seconds: float = 0.01) -> None:
        self.sightings: list[Sighting] = []
        self._path, self._sector, self._every_seconds = path, sector, every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        wait_for("the first read of the record", lambda: self.sightings, within=10)

    def _watch(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(FileNotFoundError):
                leader = read_leader(self._path, sector=self._sector)
                if not self.sightings or leader != self.sightings[-1].leader:
                    self.sightings.append(Sighting(time.monotonic(), leader))
            self._ended.wait(self._every_seconds)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)

    @property
    def last(self) -> Sighting:
        return self.sightings[-1]

    def since(self, moment: float) -> list[Sighting]:
        return [sighting for sighting in self.sightings if sighting.seen > moment]

    def wait_for_change(self, *, within: float) -> Sighting:
        """Return the next version of the record."""
        count = len(self.sightings)
        wait_for("a change of the record", lambda: len(self.sightings) > count, within=within)
        return self.sightings[count]

    def wait_for(self, what: str, condition: Callable[[Leader], bool], *, within: float) -> Sighting:
        """Return the first sighting from now on, the present one included, that fulfils the condition."""
        start = len(self.sightings) - 1
        found = wait_for(
            what,
            lambda: [seen for seen in self.sightings[start:] if condition(seen.leader)],
            within=within,
        )
        return found[0]


@contextlib.contextmanager
def watch_delta(lease_dir: Path, host_id: int) -> Iterator[RecordWatch]:
    watch = RecordWatch(lockspace_path(lease_dir), sector=host_id - 1)
    try:
        yield watch
    finally:
        watch.close()


@contextlib.contextmanager
def watch_lease(lease_dir: Path, disk: os.PathLike[str] | str) -> Iterator[RecordWatch]:
    watch = RecordWatch(resource_path(lease_dir, disk))
    try:
        yield watch
    finally:
        watch.close()


def directory_digest(lease_dir: Path, *, live_host_ids: tuple[int, ...] = ()) -> dict[str, str]:
    """A hash of every file, with the delta records that running daemons renew left out."""
    digests = {}
    for path in sorted(lease_dir.rglob("*")):
        if not path.is_file():
            continue
        content = bytearray(path.read_bytes())
        if path.name == LOCKSPACE_NAME:
            for host_id in live_host_ids:
                content[(host_id - 1) * SECTOR : host_id * SECTOR] = bytes(SECTOR)
        digests[str(path.relative_to(lease_dir))] = hashlib.sha256(content).hexdigest()
    return digests
