"""Direct I/O on regular files and block devices: aligned, exact, never cached.

A cached read shows another host's write a minute late (faults.md finding 7), so there is no
fallback to buffered I/O. Every function here may hang with the storage; ``worker.py`` runs them where
that hurts nobody.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat

from vmlockctl.errors import (
    NoDirectIo,
    OnDiskError,
    StorageError,
    TruncatedArea,
    VmlockctlError,
    storage_error,
)


class Buffer:
    """Page-aligned memory for one I/O at a time. It is never reused while a write may be in flight."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self.size = size

    def view(self, size: int) -> memoryview:
        return memoryview(self._map)[:size]

    def fill(self, data: bytes) -> None:
        self._map[: len(data)] = data

    def bytes(self, size: int) -> bytes:
        return self._map[:size]


def open_direct(path: str, *, writable: bool) -> int:
    """Open a lease area for direct I/O; refuse what is neither a regular file nor a block device."""
    flags = os.O_RDWR | os.O_SYNC if writable else os.O_RDONLY
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL and _is_lease_area(os.stat(path).st_mode):
            raise NoDirectIo(f"{path}: the storage does not support O_DIRECT") from None
        if error.errno in (errno.EISDIR, errno.EINVAL):
            raise _no_lease_area(path, os.stat(path).st_mode) from None
        raise storage_error(error, path, "cannot open") from None
    mode = os.fstat(fd).st_mode
    if not _is_lease_area(mode):
        os.close(fd)
        raise _no_lease_area(path, mode)
    return fd


def _is_lease_area(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _no_lease_area(path: str, mode: int) -> OnDiskError:
    found = "a directory" if stat.S_ISDIR(mode) else "neither a regular file nor a block device"
    return OnDiskError(f"{path}: not a lease area", found=found, expected="a file or a block device")


def file_identity(fd: int) -> tuple[int, int, int]:
    """Which file this is, whatever path led to it: file system and inode, or a device number.

    The file system's own id and not ``st_dev``: a new mount of the same one has another number.
    """
    found = os.fstat(fd)
    if stat.S_ISBLK(found.st_mode):
        return (0, 0, found.st_rdev)
    return (os.fstatvfs(fd).f_fsid, found.st_ino, 0)


def sync_directory(path: str) -> None:
    """Bring the names in a directory to the storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems cannot, and need not
    finally:
        os.close(fd)


def read_exact(fd: int, path: str, offset: int, size: int, buffer: Buffer) -> bytes:
    """Read exactly ``size`` bytes or raise."""
    try:
        count = os.preadv(fd, [buffer.view(size)], offset)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise NoDirectIo(f"{path}:{offset}: direct read of {size} bytes refused") from None
        raise storage_error(error, f"{path}:{offset}", "cannot read") from None
    if count != size:
        raise _short_read(fd, path, offset, count, size)
    return buffer.bytes(size)


def _short_read(fd: int, path: str, offset: int, count: int, size: int) -> VmlockctlError:
    """Damage where the area ends too soon; else an I/O error, of which nothing is known but that."""
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        return storage_error(error, f"{path}:{offset}", "cannot read")
    found, expected = f"{count} bytes", f"{size} bytes"
    if end >= offset + size:
        return StorageError(f"{path}:{offset}: short read, found {found}, expected {expected}")
    return TruncatedArea(f"{path}:{offset}: the area is too short", found=found, expected=expected)


def write_exact(fd: int, path: str, offset: int, data: bytes, buffer: Buffer) -> None:
    """Write exactly ``data``, on the storage when this returns (O_SYNC), or raise.

    A write never makes a file longer: an area that was truncated under us is damage.
    """
    size = len(data)
    buffer.fill(data)
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
        if end < offset + size:
            raise TruncatedArea(
                f"{path}:{offset}: the area is too short to write to",
                found=f"{end} bytes",
                expected=f"{offset + size} bytes",
            )
        count = os.pwritev(fd, [buffer.view(size)], offset)
    except OSError as error:
        raise storage_error(error, f"{path}:{offset}", "cannot write") from None
    if count != size:
        raise StorageError(f"{path}:{offset}: short write, found {count} bytes, expected {size}")
