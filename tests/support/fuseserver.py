"""The serving process of ``fusefs.py``: BACKING MOUNTPOINT CONTROL [keeps-locks].

Files are opened with FOPEN_DIRECT_IO, so O_DIRECT works and no page cache hides a fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
from fnmatch import fnmatch
from typing import Any, Optional

from mfusepy import FUSE, Operations

SLOW_SECONDS = 1.4  # more than the io_timeout of the tests
ERRORS = {name.lower(): getattr(errno, name) for name in (
    "EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE", "ENOTCONN", "EBADF", "EINTR",
)}  # fmt: skip
SECTOR = 512


class Faults:
    """The present fault, and who waits in it."""

    def __init__(self, backing: str) -> None:
        self._backing = backing
        self._changed = threading.Condition()
        self._fault: Optional[dict[str, Any]] = None
        self._old: dict[str, bytes] = {}
        self.hits = self.hung = 0

    def set(self, fault: Optional[dict[str, Any]]) -> None:
        with self._changed:
            self._fault, self.hits = fault, 0
            self._old = self._contents() if fault is not None and fault["action"] == "stale" else {}
            self._changed.notify_all()

    def _contents(self) -> dict[str, bytes]:
        found = {}
        for directory, _, names in os.walk(self._backing):
            for name in names:
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    found[path[len(self._backing) :]] = file.read()
        return found

    def old(self, path: str, offset: int, size: int) -> bytes:
        """What was there when the fault "stale" began."""
        return self._old.get(path, b"")[offset : offset + size]

    def _meets(self, operation: str, path: str) -> Optional[str]:
        fault = self._fault
        if fault is None or operation not in fault["operations"] or not fnmatch(path, fault["names"]):
            return None
        return str(fault["action"])

    def meet(self, operation: str, path: str) -> Optional[str]:
        """Apply the fault to an operation: raise, wait it out, or say what the operation shall do."""
        with self._changed:
            action = self._meets(operation, path)
            self.hits += action is not None
            if action == "hang":
                self.hung += 1
                while self._meets(operation, path) == "hang":
                    self._changed.wait()
                self.hung -= 1
                action = None
        if action == "slow":
            time.sleep(SLOW_SECONDS)
            action = None
        if action in ERRORS:
            raise OSError(ERRORS[action], os.strerror(ERRORS[action]), path)
        return action


def serve_control(path: str, faults: Faults) -> None:
    """Answer requests, one line each, until the process ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            request = json.loads(stream.readline())
            if "fault" in request:
                faults.set(request["fault"])
            stream.write(json.dumps({"hits": faults.hits, "hung": faults.hung}) + "\n")
            stream.flush()


class Passthrough(Operations):  # type: ignore[misc]  # mfusepy has no types
    """Every operation is the same one in the backing directory, unless a fault says otherwise."""

    use_ns = True

    def __init__(self, backing: str, faults: Faults) -> None:
        self._backing, self._faults = backing, faults

    def _real(self, operation: str, path: str) -> str:
        self._faults.meet(operation, path)
        return self._backing + path

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        return self._attributes(self._real("getattr", path))

    @staticmethod
    def _attributes(path: str) -> dict[str, Any]:
        found = os.lstat(path)
        attributes = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        for clock in ("st_atime", "st_mtime", "st_ctime"):
            attributes[clock] = attributes[f"{clock}_ns"]
        return attributes

    def readdir(self, path: str, fh: Any) -> list[tuple[str, dict[str, Any], int]]:
        real = self._real("readdir", path)
        entries = []
        for name in [".", "..", *os.listdir(real)]:
            with contextlib.suppress(FileNotFoundError):
                entries.append((name, self._attributes(os.path.join(real, name)), 0))
        return entries

    def open(self, path: str, fi: Any) -> int:
        fi.fh = os.open(self._real("open", path), fi.flags & ~(os.O_DIRECT | os.O_CREAT | os.O_EXCL))
        fi.direct_io = 1
        return 0

    def create(self, path: str, mode: int, fi: Any) -> int:
        fi.fh = os.open(self._real("create", path), (fi.flags & ~os.O_DIRECT) | os.O_CREAT, mode)
        fi.direct_io = 1
        return 0

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        action = self._faults.meet("read", path)
        if action == "stale":
            return self._faults.old(path, offset, size)
        return os.pread(fi.fh, size // 2 if action == "short" else size, offset)

    def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
        action = self._faults.meet("write", path) or ""
        if action.startswith("torn:"):
            os.pwrite(fi.fh, data[: int(action[5:])], offset)
        elif action == "shift":
            os.pwrite(fi.fh, data, offset + SECTOR)
        elif action == "short":
            return os.pwrite(fi.fh, data[: len(data) // 2], offset)
        elif action != "lose":
            os.pwrite(fi.fh, data, offset)
        return len(data)

    def fsync(self, path: str, datasync: int, fi: Any) -> int:
        self._faults.meet("fsync", path)
        os.fsync(fi.fh)
        return 0

    def flush(self, path: str, fi: Any) -> int:
        return 0

    def release(self, path: str, fi: Any) -> int:
        os.close(fi.fh)
        return 0

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        os.truncate(self._real("write", path), length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fi: Any) -> int:
        if mode != 0:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation")
        os.posix_fallocate(fi.fh, offset, size)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real("unlink", path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real("rename", old), self._backing + new)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._real("link", source), self._backing + target)
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._backing + target)
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._backing + path)

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._backing + path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._backing + path)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._backing + path, stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._backing + path, uid, gid, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        os.utime(self._backing + path, ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._backing + path)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}


class Flock(ctypes.Structure):
    _fields_ = [("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_int64),
                ("length", ctypes.c_int64), ("pid", ctypes.c_int)]  # fmt: skip


class KeepsLocks(Passthrough):
    """Grants every lock and lets go of none, as a file system does that misses the end of its holder."""

    def __init__(self, backing: str, faults: Faults) -> None:
        super().__init__(backing, faults)
        self._kept: list[tuple[str, int, int]] = []  # path, first byte, length

    def lock(self, path: str, fh: Any, command: int, pointer: Any) -> int:
        asked = ctypes.cast(pointer, ctypes.POINTER(Flock)).contents
        if command != fcntl.F_GETLK:
            if asked.type != fcntl.F_UNLCK:
                self._kept.append((path, asked.start, asked.length))
            return 0
        kept = [lock for lock in self._kept if lock[0] == path and lock[1] <= asked.start < lock[1] + lock[2]]
        asked.type = fcntl.F_RDLCK if kept and asked.type == fcntl.F_WRLCK else fcntl.F_UNLCK
        return 0


def serve(backing: str, mountpoint: str, control: str, kind: str = "") -> None:
    """Mount and answer the kernel until unmounted or killed."""
    faults = Faults(backing)
    threading.Thread(target=serve_control, args=(control, faults), daemon=True).start()
    # Nothing is remembered by the kernel: what the other side of the backing directory does is seen at once.
    # A file has the inode number that it has there, also after a new mount.
    operations = KeepsLocks if kind == "keeps-locks" else Passthrough
    FUSE(
        operations(backing, faults), mountpoint, raw_fi=True, foreground=True, attr_timeout=0,
        entry_timeout=0, fsname="faulty", use_ino=True,
    )  # fmt: skip


if __name__ == "__main__":
    serve(*sys.argv[1:])
