"""Processes, known so well that no other process can be taken for them.

A pid alone says nothing: it is used again. A process is its pid, its start time (clock ticks since
boot) and the boot it lives in; a signal goes through a pidfd that was opened first and compared with
the start time afterwards, so it can reach no successor. Doubt means running: what /proc hides from us
(``hidepid``) and a dead main thread whose other threads still run are alive. A zombie is not: its
memory and its file descriptors are gone, and only its exit status waits for the parent.
"""

from __future__ import annotations

import errno
import os

from vmlockctl import clock
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_DEAD_STATES = b"ZXx"
# Fields of /proc/PID/stat (proc(5) counts from 1; field 3, the state, follows the last parenthesis).
_STATE_FIELD = 3
_FLAGS_FIELD = 9
_START_TIME_FIELD = 22
_KERNEL_THREAD = 0x00200000

_PID_MAX = 2**31 - 1
_KILL_SECONDS = 10.0
_SIGKILL_BIT = 1 << 8

_boot_id = ""


class Process(NamedTuple):
    pid: int
    start_time: int  # clock ticks after boot
    boot_id: str


class Stat(NamedTuple):
    """What we use of /proc/PID/stat."""

    comm: str
    state: str
    start_time: int
    is_kernel_thread: bool

    @property
    def is_zombie(self) -> bool:
        return self.state.encode() in _DEAD_STATES


def read_proc(path: str) -> bytes:
    """Read a /proc file whole. Raises ``FileNotFoundError`` when its process is gone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = chunk = os.read(descriptor, 16384)
        while chunk:
            chunk = os.read(descriptor, 65536)
            content += chunk
        return content
    except ProcessLookupError:
        raise FileNotFoundError(errno.ENOENT, "process is gone", path) from None
    finally:
        os.close(descriptor)


def parse_stat(content: bytes) -> Stat:
    """Decode /proc/PID/stat; the name may hold spaces and parentheses, so the last one ends it."""
    end = content.rindex(b")")
    fields = content[end + 2 :].split()
    return Stat(
        comm=os.fsdecode(content[content.index(b"(") + 1 : end]),
        state=fields[0].decode(),
        start_time=int(fields[_START_TIME_FIELD - _STATE_FIELD]),
        is_kernel_thread=bool(int(fields[_FLAGS_FIELD - _STATE_FIELD]) & _KERNEL_THREAD),
    )


def read_stat(pid: int) -> Optional[Stat]:
    """None if the process is gone. Raises ``PermissionError`` if it exists and /proc hides it."""
    try:
        return parse_stat(read_proc(f"/proc/{pid}/stat"))
    except FileNotFoundError:
        if not exists(pid):
            return None
    try:  # it may have been born, or reaped, between the two looks
        return parse_stat(read_proc(f"/proc/{pid}/stat"))
    except FileNotFoundError:
        if not exists(pid):
            return None
        raise PermissionError(errno.EPERM, "process is hidden", f"/proc/{pid}/stat") from None


def boot_id() -> str:
    """Read the kernel's name for this boot."""
    global _boot_id  # noqa: PLW0603 - it cannot change while we run
    if not _boot_id:
        _boot_id = read_proc("/proc/sys/kernel/random/boot_id").decode().strip()
    return _boot_id


def identify(pid: int) -> Optional[Process]:
    """Name the process that has this pid now; None if there is none, or a zombie, or only a thread.

    Raises ``PermissionError`` if it exists and /proc hides it: it is somebody else's.
    """
    stat = read_stat(pid)
    if stat is None or not _runs(pid, stat) or not _is_thread_group_leader(pid):
        return None
    return Process(pid, stat.start_time, boot_id())


def is_alive(process: Process) -> bool:
    """Tell whether exactly this process still runs; in doubt, it does."""
    if process.boot_id != boot_id():
        return False
    try:
        stat = read_stat(process.pid)
    except PermissionError:
        return True
    return stat is not None and stat.start_time == process.start_time and _runs(process.pid, stat)


def open_pidfd(process: Process) -> Optional[int]:
    """Open a descriptor that is certainly this process, or None when it is gone.

    The descriptor pins whatever has the pid now; if that still has the start time *after* the open, it
    had it during the open too. The caller closes it.
    Raises ``PermissionError`` if the process exists and /proc hides it.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # gone, or the pid is a thread's now
            return None
        raise
    try:
        stat = read_stat(process.pid)
        ours = stat is not None and stat.start_time == process.start_time and process.boot_id == boot_id()
        if ours and stat is not None and _runs(process.pid, stat):
            kept, descriptor = descriptor, -1
            return kept
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def send(pidfd: int, signal_number: int) -> bool:
    """Send a signal; False if the process is gone. Sent is not stopped: see ``has_ended``."""
    import signal

    try:
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    return True


def stop(process: Process, *, grace_seconds: float) -> bool:
    """Stop softly, then hard; False if it survives. Returns when it is seen to be gone."""
    import signal

    pidfd = open_pidfd(process)
    if pidfd is None:
        return True
    try:
        if grace_seconds > 0:
            send(pidfd, signal.SIGTERM)
            if has_ended(pidfd, timeout_seconds=grace_seconds):
                return True
        send(pidfd, signal.SIGKILL)
        return has_ended(pidfd, timeout_seconds=_KILL_SECONDS)
    finally:
        os.close(pidfd)


def has_ended(pidfd: int, *, timeout_seconds: float = 0) -> bool:
    """Wait until the last thread of the process is gone (reaped or not), at most so long."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def is_doomed(pid: int) -> bool:
    """Tell whether SIGKILL is pending: the process is still in the kernel, or frozen, and never comes back.

    It may hold locks, and I/O of it may land, but it runs no further instruction of its own.
    """
    try:
        status = read_proc(f"/proc/{pid}/status")
    except (FileNotFoundError, PermissionError):
        return False
    for line in status.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
            return True
    return False


def exists(pid: int) -> bool:
    """Tell whether any process or zombie has this pid, hidden or not."""
    try:
        belongs_to_us(pid)
    except ProcessLookupError:
        return False
    return True


def belongs_to_us(pid: int) -> bool:
    """Tell whether we may signal this process. Raises ``ProcessLookupError`` if there is none."""
    if not 0 < pid <= _PID_MAX:  # 0 and negative numbers would be process groups
        raise ProcessLookupError(errno.ESRCH, "no such process", str(pid))
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def started_at(start_time: int) -> float:
    """When a process with this start time (clock ticks after boot) began, in seconds since the epoch."""
    return clock.wall() - clock.boottime() + start_time / os.sysconf("SC_CLK_TCK")


def comm(pid: int) -> str:
    """Read the short name of a process; empty when it is gone."""
    try:
        return os.fsdecode(read_proc(f"/proc/{pid}/comm")).removesuffix("\n")
    except (FileNotFoundError, PermissionError):
        return ""


def cmdline(pid: int) -> list[str]:
    """Read the arguments of a process; empty when it is gone, a zombie or a kernel thread."""
    try:
        content = read_proc(f"/proc/{pid}/cmdline")
    except (FileNotFoundError, PermissionError):
        return []
    if not content:
        return []
    return [os.fsdecode(argument) for argument in content.removesuffix(b"\0").split(b"\0")]


def working_directory(pid: int) -> str:
    """Where the relative paths of a process begin; "/" where that cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def _is_thread_group_leader(pid: int) -> bool:
    """Tell a process from a thread: /proc answers for a thread id too, though it does not list it."""
    try:
        return f"\nTgid:\t{pid}\n".encode() in read_proc(f"/proc/{pid}/status")
    except FileNotFoundError:
        return False


def _runs(pid: int, stat: Stat) -> bool:
    """Tell whether any thread runs; the main thread of a running process may be a zombie."""
    if not stat.is_zombie:
        return True
    return bool(live_threads(pid))


def live_threads(pid: int) -> list[int]:
    """List the threads of a process that are not zombies."""
    threads = []
    try:
        for name in os.listdir(f"/proc/{pid}/task"):
            try:
                if not parse_stat(read_proc(f"/proc/{pid}/task/{name}/stat")).is_zombie:
                    threads.append(int(name))
            except FileNotFoundError:
                pass
    except (FileNotFoundError, ProcessLookupError):
        pass
    return threads


def name_ourselves(name: str) -> None:
    """Show this name in ``ps`` and ``top``, not the interpreter's."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name)
    except OSError:
        pass
