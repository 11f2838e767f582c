"""The byte locks on a disk image: QEMU's permissions, virtlockd's byte 0, and who holds them.

QEMU (since 2.10) locks single bytes of every image that it opens, through open-file-description locks, for
which /proc/locks shows no pid; /proc/PID/fdinfo of the holder does (libvirt-and-qemu.md section 4). For
permission i, byte 100+i read-locked says "I use it", byte 200+i "nobody else may". virtlockd write-locks
byte 0 (section 3).

    i   0 consistent read   1 write   2 write unchanged   3 resize   4 graph modification (QEMU <= 6.1)

A lock that the kernel reports and no process here holds belongs to another client of the file's server, to
a process that we may not look into, or to nobody any more (a FUSE file system that did not let go).
"""

from __future__ import annotations

import fcntl
import os
import struct

from vmlockctl.host.openers import Identity
from vmlockctl.host.process import read_proc
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Optional

PERMISSIONS = ("consistent read", "write", "write unchanged", "resize", "graph modification")
WRITE = 1  # the permission that matters most
_USED, _UNSHARED = 100, 200
VIRTLOCKD_BYTE = 0

_FLOCK = struct.Struct("hhxxxxqqixxxx")  # l_type, l_whence, l_start, l_len, l_pid; 64-bit Linux
_F_OFD_GETLK = 36

assert _FLOCK.size == 32


class ByteLock(NamedTuple):
    """One line of a lock table. ``end`` is the last byte, None for "to the end of the file"."""

    kind: str  # OFDLCK, POSIX or FLOCK
    mode: str  # READ or WRITE
    start: int
    end: Optional[int]

    def covers(self, byte: int) -> bool:
        return self.start <= byte and (self.end is None or byte <= self.end)


class ImageUse(NamedTuple):
    """What the byte locks of one holder say: indexes of ``PERMISSIONS``."""

    used: tuple[int, ...]
    unshared: tuple[int, ...]

    @property
    def writes(self) -> bool:
        return WRITE in self.used

    @property
    def forbids_writers(self) -> bool:
        return WRITE in self.unshared

    def __bool__(self) -> bool:
        return bool(self.used or self.unshared)


def image_use(locks: Iterable[ByteLock]) -> ImageUse:
    """Decode QEMU's bytes; any other lock of the image says nothing here."""
    ours = [lock for lock in locks if lock.kind != "FLOCK"]
    return ImageUse(_permissions(ours, _USED), _permissions(ours, _UNSHARED))


def _permissions(locks: Sequence[ByteLock], base: int) -> tuple[int, ...]:
    return tuple(i for i in range(len(PERMISSIONS)) if any(lock.covers(base + i) for lock in locks))


def byte_ranges(locks: Iterable[ByteLock]) -> str:
    """``100-101,201``: the bytes of these locks, as an operator finds them in lslocks."""
    bounds = sorted({(lock.start, lock.end) for lock in locks})
    return ",".join(
        str(start) if start == end else f"{start}-{'' if end is None else end}" for start, end in bounds
    )


def describe_use(use: ImageUse) -> str:
    """In words: what a holder does, and what it forbids."""
    does = "writes the image" if use.writes else "reads the image"
    if not use.used:
        does = "has the image"
    if use.forbids_writers:
        return f"{does}, and forbids others to write it"
    others = [PERMISSIONS[i] for i in use.unshared]
    return (
        f"{does}, and forbids others: {', '.join(others)}" if others else f"{does}, and lets others write it"
    )


def locks_of_process(pid: int, identity: Identity, *, proc: str = "/proc") -> list[ByteLock]:
    """The locks that a process holds on a disk, from its descriptors of it.

    Raises ``PermissionError`` where we may not look into the process; one that is gone holds nothing.
    """
    found: list[ByteLock] = []
    try:
        descriptors = os.listdir(f"{proc}/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        return []
    for name in descriptors:
        try:
            content = read_proc(f"{proc}/{pid}/fdinfo/{name}")
            if b"lock:" in content and Identity.of_path(f"{proc}/{pid}/fd/{name}") == identity:
                found += parse_fdinfo(content)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(set(found), key=lambda lock: (lock.start, lock.mode))


def parse_fdinfo(content: bytes) -> Iterator[ByteLock]:
    """``lock: 1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101`` lines; others are passed over."""
    for line in content.splitlines():
        if line.startswith(b"lock:"):
            parsed = _parse_lock(line.split()[1:])
            if parsed is not None:
                yield parsed[0]


def parse_proc_locks(content: bytes) -> Iterator[tuple[ByteLock, int, str]]:
    """(lock, pid or -1, "MAJ:MIN:INODE") of each lock of /proc/locks; who waits for one is passed over."""
    for line in content.splitlines():
        words = line.split()
        if len(words) > 1 and words[1] == b"->":
            continue
        parsed = _parse_lock(words)
        if parsed is not None:
            yield parsed


def _parse_lock(words: Sequence[bytes]) -> Optional[tuple[ByteLock, int, str]]:
    """``1: POSIX ADVISORY WRITE PID MAJ:MIN:INODE START END``."""
    if len(words) < 8 or words[1] not in (b"OFDLCK", b"POSIX", b"FLOCK"):
        return None
    try:
        end = None if words[7] == b"EOF" else int(words[7])
        lock = ByteLock(words[1].decode(), words[3].decode(), int(words[6]), end)
        return lock, int(words[4]), words[5].decode()
    except ValueError:
        return None


def kernel_locks(
    path: str, *, proc: str = "/proc", table: Optional[bytes] = None
) -> list[tuple[ByteLock, int]]:
    """Every lock of a file that this kernel knows, with the pid it states (-1: none). Raises ``OSError``.

    ``table``: /proc/locks, where it was read before.

    By file system device and inode of the path itself: a lock of a block device lies on its node.
    """
    found = os.stat(path)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    if table is None:
        table = read_proc(f"{proc}/locks")
    lines = b"\n".join(line for line in table.splitlines() if wanted.encode() in line)
    return [(lock, pid) for lock, pid, place in parse_proc_locks(lines) if place == wanted]


def foreign_bytes(path: str, bytes_to_try: Iterable[int]) -> list[int]:
    """The bytes that somebody, anywhere, holds in a way that keeps a writer out.

    Asks the file system, so another client's locks show where the server tells them (NFSv4); takes no lock.
    Raises ``OSError`` where the file cannot be opened or has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        held = []
        for byte in bytes_to_try:
            question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            answer = fcntl.fcntl(descriptor, _F_OFD_GETLK, question)
            if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                held.append(byte)
        return held
    finally:
        os.close(descriptor)


def interesting_bytes() -> list[int]:
    """Byte 0 of virtlockd, and all of QEMU's."""
    count = len(PERMISSIONS)
    return [VIRTLOCKD_BYTE, *range(_USED, _USED + count), *range(_UNSHARED, _UNSHARED + count)]
