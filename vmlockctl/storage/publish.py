"""Make a new lease area appear whole: libvirt takes "exists" for "initialised".

A regular file is written under a dot name, synced, then linked to its final name, which fails if
somebody else was first. A block device is written in two steps, the first sector last.
"""

from __future__ import annotations

import errno
import os

from vmlockctl.errors import CannotCreate, VmlockctlError
from vmlockctl.storage.device import Buffer, open_direct, storage_error, write_exact
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional


def publish_file(
    path: str, area: bytes, *, owner: Optional[tuple[int, int]], mode: int, timeout_seconds: float
) -> bool:
    """Create ``path`` with the bytes of ``area``; False if it exists already, which is left as it is.

    Raises ``CannotCreate`` (no room), ``StorageRefused``, ``StorageError``; the temporary file is gone then.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.urandom(6).hex()}")

    def action(buffer: Buffer) -> bool:
        try:
            _write_new(temporary, area, owner, mode, buffer)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise _cannot_create(error, path) from None
        finally:
            _unlink(temporary)
        _sync_directory(directory)
        return True

    return _in_worker(path, action, len(area), timeout_seconds, "create")


def format_in_place(path: str, offset: int, areas: tuple[bytes, ...], *, timeout_seconds: float) -> None:
    """Write ``areas`` over each other at ``offset``, in order: the last one is the commit."""

    def action(buffer: Buffer) -> None:
        fd = open_direct(path, writable=True)
        try:
            for area in areas:
                write_exact(fd, path, offset, area, buffer)
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
    finally:
        os.close(direct)


def _cannot_create(error: OSError, path: str) -> VmlockctlError:
    if error.errno == errno.EOPNOTSUPP:
        return CannotCreate(f"{path}: cannot create: the file system cannot allocate or link files")
    return storage_error(error, path, "cannot create")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems cannot, and need not
    finally:
        os.close(fd)
