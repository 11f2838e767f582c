"""Make a new lease area appear whole: libvirt takes "exists" for "initialised".

A regular file is written under a dot name, synced, read back (a write that was acknowledged and lost must
not be published), then linked to its final name, which fails if somebody else was first; or renamed over the
one that it replaces. A block device is written in two steps, the first sector last.
"""

from __future__ import annotations

import errno
import os
import stat

from vmlockctl.errors import CannotCreate, StorageError, VmlockctlError, storage_error
from vmlockctl.storage.device import Buffer, open_direct, read_exact, sync_directory, write_exact
from vmlockctl.storage.worker import Worker

_PAGE = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional


def publish_file(
    path: str,
    area: bytes,
    *,
    sector_size: int,
    owner: Optional[tuple[int, int]],
    mode: int,
    timeout_seconds: float,
) -> bool:
    """Create ``path`` with the bytes of ``area``; False if it exists already, which is left as it is.

    Raises ``CannotCreate`` (no room), ``NoDirectIo`` (none of single sectors, on storage with larger ones),
    ``StorageRefused``, ``StorageError``; the temporary file is gone then.
    """
    temporary = _temporary_name(path)

    def action(buffer: Buffer) -> bool:
        try:
            _write_new(temporary, area, owner, mode, buffer)
            _try_sector(temporary, path, sector_size, buffer)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise _cannot_create(error, path) from None
        finally:
            _unlink(temporary)
        sync_directory(os.path.dirname(path))
        return True

    return _in_worker(path, action, len(area), timeout_seconds, "create")


def replace_file(path: str, area: bytes, *, timeout_seconds: float) -> None:
    """Put the bytes of ``area`` in the place of the file ``path``, whole, with its owner and mode.

    Until the last moment the old file is there, and after it the new one: no crash leaves anything between.
    Then the old one is overwritten with zeros, for who still has it open (a sanlock daemon has): it must see
    that its records are gone, and not go on renewing a file that nobody else reads.
    """
    path = os.path.realpath(path)
    temporary = _temporary_name(path)

    def action(buffer: Buffer) -> None:
        try:
            old = open_direct(path, writable=True)
            try:
                before = os.fstat(old)
                owner = (before.st_uid, before.st_gid)
                _write_new(temporary, area, owner, stat.S_IMODE(before.st_mode), buffer)
                os.rename(temporary, path)
                sync_directory(os.path.dirname(path))
                wiped = min(len(area), before.st_size) // _PAGE * _PAGE
                write_exact(old, path, 0, bytes(wiped), buffer)
            finally:
                os.close(old)
        except OSError as error:
            _unlink(temporary)
            raise _cannot_create(error, path) from None
        except BaseException:
            _unlink(temporary)
            raise

    _in_worker(path, action, len(area), timeout_seconds, "replace")


def format_in_place(path: str, offset: int, areas: tuple[bytes, ...], *, timeout_seconds: float) -> None:
    """Write ``areas`` over each other at ``offset``, in order: the last one is the commit."""

    def action(buffer: Buffer) -> None:
        fd = open_direct(path, writable=True)
        try:
            for area in areas:
                write_exact(fd, path, offset, area, buffer)
                _see_it_there(fd, path, offset, area, buffer)
        finally:
            os.close(fd)

    _in_worker(path, action, max(map(len, areas)), timeout_seconds, "format")


def _in_worker(
    path: str, action: Callable[[Buffer], object], size: int, timeout_seconds: float, what: str
) -> bool:
    worker = Worker(path)
    try:
        return bool(worker.call(action, size, timeout_seconds, f"{path}: {what}"))
    finally:
        worker.close()


def _write_new(path: str, area: bytes, owner: Optional[tuple[int, int]], mode: int, buffer: Buffer) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, mode)
        if owner is not None and owner != (os.getuid(), os.getgid()):
            os.fchown(fd, *owner)
        os.posix_fallocate(fd, 0, len(area))
        os.fsync(fd)
    finally:
        os.close(fd)
    direct = open_direct(path, writable=True)
    try:
        write_exact(direct, path, 0, area, buffer)
        os.fsync(direct)
        _see_it_there(direct, path, 0, area, buffer)
    finally:
        os.close(direct)


def _try_sector(temporary: str, path: str, sector_size: int, buffer: Buffer) -> None:
    """Read one sector: a file system on a disk with larger ones takes whole areas, and no record."""
    fd = open_direct(temporary, writable=False)
    try:
        read_exact(fd, path, 0, sector_size, buffer)
    finally:
        os.close(fd)


def _see_it_there(fd: int, path: str, offset: int, area: bytes, buffer: Buffer) -> None:
    """Raise ``StorageError`` unless a direct read returns what was just written."""
    if read_exact(fd, path, offset, len(area), buffer) != area:
        raise StorageError(f"{path}:{offset}: the storage lost a write that it had acknowledged")


def _temporary_name(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.urandom(6).hex()}")


def _cannot_create(error: OSError, path: str) -> VmlockctlError:
    if error.errno == errno.EOPNOTSUPP:
        return CannotCreate(f"{path}: cannot create: the file system cannot allocate or link files")
    return storage_error(error, path, "cannot create")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
