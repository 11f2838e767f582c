"""The run directory: this host's own records, as files that every process of ours can read back.

    daemon.lock               held (flock) by the running daemon; the standby waits on it
    daemon.pid, standby.pid   who they are; the daemon touches its file while it is not stuck
    LOCKSPACE/host.json       our host lease in a lockspace
    LOCKSPACE/host.lock       held (flock) by whoever renews or joins that host lease
    LOCKSPACE/hosts.json      what we have observed of the other hosts
    LOCKSPACE/bits.json       the hosts whose bits our renewals set, and until when (requests)
    LOCKSPACE/claims/RES.json a claim, RES.lock held (flock) while somebody works on it
    state/                    what outlives a reboot, where the run directory was moved

State is files, mutual exclusion is flock, truth is on the disk. Two run directories on one machine are
two hosts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from vmlockctl import clock
from vmlockctl.errors import ConfigError, StorageRefused, VmlockctlError, storage_error
from vmlockctl.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

DEFAULT_RUN_DIR = "/run/vmlockctl"
DEFAULT_STATE_DIR = "/var/lib/vmlockctl"
_MODE = 0o700
# The file system is at fault, and no other user or place in it would fare better.
_BROKEN = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE)


class RunDir:
    """Paths of one host's records."""

    def __init__(self, path: Optional[str] = None) -> None:
        moved = path or os.environ.get("VMLOCKCTL_RUN_DIR")
        if moved:
            self.path = os.path.abspath(moved)
            self.state_path = os.path.join(self.path, "state")
        elif os.getuid() == 0:
            self.path, self.state_path = DEFAULT_RUN_DIR, DEFAULT_STATE_DIR
        else:
            self.path, self.state_path = _unprivileged_dirs()
        self.is_moved = bool(moved)

    def create(self) -> RunDir:
        """Make the directories; nobody but us may look inside."""
        for path in (self.path, self.state_path):
            try:
                _make_directories(path)
            except OSError as error:
                if error.errno in _BROKEN:
                    raise storage_error(error, path, "cannot create the run directory") from None
                raise StorageRefused(
                    f"{path}: cannot create the run directory: {error.strerror}",
                    hint="run as root, or name another one with --run-dir or VMLOCKCTL_RUN_DIR",
                ) from None
        return self

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def state_file(self, name: str) -> str:
        return os.path.join(self.state_path, name)

    @property
    def default_lease_dir(self) -> str:
        """The host-local lease directory: protects this host only."""
        return self.state_file("leases")

    def lockspace_dirs(self) -> list[str]:
        """The directory of every lockspace that this host has records of, sorted."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        paths = (os.path.join(self.path, name) for name in sorted(names) if name != "state")
        return [path for path in paths if os.path.isdir(path)]

    def lockspace_dir(self, name: str, path: str, offset: int) -> str:
        """The directory for a lockspace; its name, or name~hash where two have the same name."""
        import zlib

        plain = os.path.join(self.path, _as_file_name(name))
        hashed = f"{plain}~{zlib.crc32(f'{path}:{offset}'.encode('utf-8', 'surrogateescape')):08x}"
        if os.path.isdir(hashed):
            return hashed
        held = read_json(os.path.join(plain, "host.json"))
        if held is None or (held.get("path"), held.get("offset")) == (path, offset):
            return plain
        return hashed


def _unprivileged_dirs() -> tuple[str, str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise ConfigError(
            "no run directory: XDG_RUNTIME_DIR is not set",
            hint="name one with --run-dir or VMLOCKCTL_RUN_DIR, or run as root",
        )
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(runtime, "vmlockctl"), os.path.join(state, "vmlockctl")


def _as_file_name(name: str) -> str:
    if name not in ("", ".", "..") and not name.startswith(".") and "/" not in name and name.isprintable():
        return name
    return "~" + name.encode("utf-8", "surrogateescape").hex()


def read_json(path: str) -> Optional[dict[str, Any]]:
    """A record of ours; None where there is none. Half-written ones cannot exist (``write_json``)."""
    try:
        with open(path, encoding="utf-8") as file:
            record = loads(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _local_error(error, path, "cannot read") from None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def write_json(path: str, record: dict[str, Any], *, durable: bool = False) -> None:
    """Replace a record of ours in one step. ``durable`` survives a power failure."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", opener=_private) as file:
            file.write(dumps(record))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove_quietly(temporary)
        raise _local_error(error, path, "cannot write") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _local_error(error: OSError, path: str, doing: str) -> VmlockctlError:
    told = storage_error(error, path, doing)
    if isinstance(told, StorageRefused) and error.errno != errno.EROFS:
        told.hint = "run as the user that runs the daemon"
    return told


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _local_error(error, path, "cannot remove") from None


def _remove_quietly(path: str) -> None:
    """For a temporary file whose making failed: that is the error to tell."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _make_directories(path: str) -> None:
    """As ``makedirs``, which takes a directory that it cannot look at for something else."""
    try:
        os.makedirs(path, mode=_MODE)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise


def make_directory(path: str) -> None:
    try:
        _make_directories(path)
    except OSError as error:
        raise _local_error(error, path, "cannot create") from None


def record_names(path: str) -> list[str]:
    """The names of the records (without ``.json``) in a directory of ours, sorted; [] where there is none."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _local_error(error, path, "cannot read") from None
    return sorted(name[:-5] for name in names if name.endswith(".json"))


class FileLock:
    """An exclusive flock on a file. A process that dies lets go of it, whatever killed it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    @property
    def is_held(self) -> bool:
        return self._fd >= 0

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; the file is made when it is missing."""
        return self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def acquire(self) -> None:
        """Take the lock, waiting as long as it takes."""
        while not self._acquire(fcntl.LOCK_EX):
            pass

    def acquire_within(self, seconds: float) -> bool:
        """Take the lock, waiting at most so long."""
        deadline = clock.monotonic() + seconds
        while not self.try_acquire():
            if clock.monotonic() >= deadline:
                return False
            clock.sleep(0.01)
        return True

    def _acquire(self, operation: int) -> bool:
        assert self._fd < 0, f"{self.path} is locked already"
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _local_error(error, self.path, "cannot lock") from None
        try:
            fcntl.flock(fd, operation)
            # Whoever removed the file held the lock; its successor has another file to lock.
            if os.fstat(fd).st_ino == os.stat(self.path).st_ino:
                self._fd, fd = fd, -1
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise _local_error(error, self.path, "cannot lock") from None
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def is_current(self) -> bool:
        """Whether the path still leads to the file that we hold."""
        try:
            return self._fd >= 0 and os.fstat(self._fd).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def release(self, *, unlink: bool = False) -> None:
        """Let go; ``unlink`` also removes the file, while nobody else can hold it."""
        if self._fd >= 0:
            if unlink:
                remove(self.path)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def is_locked(path: str) -> bool:
    """Whether somebody holds the flock of this file now; in doubt, yes. A missing file is not locked."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def read_pid(path: str) -> int:
    """The pid in a pid file, or 0."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def write_pid(path: str, pid: int) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="ascii", opener=_private) as file:
            file.write(f"{pid}\n")
        os.replace(temporary, path)
    except OSError as error:
        _remove_quietly(temporary)
        raise _local_error(error, path, "cannot write") from None
