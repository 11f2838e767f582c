"""Stop a command at one chosen system call on one chosen file, and decide there what becomes of it.

strace counts injections per system call *and per thread* (strace(1), "when="), and its -P wants paths that
are known beforehand; our I/O runs in threads, on temporary files with random names. So the same is done with
what strace's --seccomp-bpf rests on: a seccomp filter that hands every file system call to a supervisor
(seccomp_unotify(2)), which sees the calls of all threads in one order, knows the path behind each
descriptor, and lets the call go on, answers it with an error or a number, or kills the process before it.
``tests/proofs/test_crash.py`` holds the calls that are seen here to those that strace sees.

Run as a program this file is the small launcher that puts itself under the filter, sends the
supervisor's end away and becomes the command; so it imports nothing but the standard library.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple, Optional, Union

# -- the calls ------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Where a call's file is named: a descriptor, or (descriptor of the directory, path) arguments."""

    name: str
    fd: Optional[int] = None
    paths: tuple[tuple[Optional[int], int], ...] = ()


def _at(name: str, *pairs: tuple[Optional[int], int]) -> Kind:
    return Kind(name, None, pairs or ((0, 1),))


def _path(name: str, *indexes: int) -> Kind:
    return Kind(name, None, tuple((None, index) for index in (indexes or (0,))))


# x86_64; every call that transfers, changes or looks up a file by its path. Calls that only ask the kernel
# about an open descriptor (fstat, ioctl, close, lseek but to the end) are no I/O.
CALLS = {
    0: Kind("read", 0), 1: Kind("write", 0), 2: _path("open"), 4: _path("stat"), 6: _path("lstat"),
    8: Kind("lseek", 0), 17: Kind("pread64", 0), 18: Kind("pwrite64", 0), 19: Kind("readv", 0),
    20: Kind("writev", 0), 21: _path("access"), 40: Kind("sendfile", 0), 74: Kind("fsync", 0),
    75: Kind("fdatasync", 0), 76: _path("truncate"), 77: Kind("ftruncate", 0), 78: Kind("getdents", 0),
    82: _path("rename", 0, 1), 83: _path("mkdir"), 84: _path("rmdir"), 85: _path("creat"),
    86: _path("link", 0, 1), 87: _path("unlink"), 88: _path("symlink", 1), 89: _path("readlink"),
    90: _path("chmod"), 91: Kind("fchmod", 0), 92: _path("chown"), 93: Kind("fchown", 0), 94: _path("lchown"),
    217: Kind("getdents64", 0), 257: _at("openat"), 258: _at("mkdirat"), 260: _at("fchownat"),
    262: _at("newfstatat"), 263: _at("unlinkat"), 264: _at("renameat", (0, 1), (2, 3)),
    265: _at("linkat", (0, 1), (2, 3)), 266: _at("symlinkat", (1, 2)), 267: _at("readlinkat"),
    268: _at("fchmodat"), 269: _at("faccessat"), 280: _at("utimensat"), 285: Kind("fallocate", 0),
    295: Kind("preadv", 0), 296: Kind("pwritev", 0), 316: _at("renameat2", (0, 1), (2, 3)),
    326: Kind("copy_file_range", 2), 327: Kind("preadv2", 0), 328: Kind("pwritev2", 0), 332: _at("statx"),
    437: _at("openat2"), 439: _at("faccessat2"),
}  # fmt: skip

VECTOR_CALLS = frozenset({"readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2"})
READ_CALLS = frozenset({"read", "pread64", "readv", "preadv", "preadv2"})
WRITE_CALLS = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_OPEN_FLAGS = {"open": 1, "openat": 2}

_MACHINE_IS_KNOWN = platform.machine() == "x86_64"


class Call(NamedTuple):
    """One call on a watched path: ``size`` bytes asked for, ``flags`` of an open."""

    name: str
    place: str
    path: str
    size: int = 0
    flags: int = 0

    @property
    def is_write(self) -> bool:
        return self.name in WRITE_CALLS

    @property
    def is_read(self) -> bool:
        return self.name in READ_CALLS

    def __str__(self) -> str:
        return f"{self.name} {self.place}:{self.path}"


class Answer(NamedTuple):
    """What the caller gets without the call having happened: a number, or an errno."""

    value: int = 0
    error: int = 0


KILL = "kill"
Decision = Union[None, str, Answer]


class Run(NamedTuple):
    """A command that has ended, and every call on a watched path, in order."""

    command: Sequence[str]
    returncode: int
    stdout: str
    stderr: str
    calls: list[Call]


# -- the supervisor -------------------------------------------------------------------------------------

_NOTIFICATION = struct.Struct("=QII iIQ6Q")  # id, pid, flags; nr, arch, instruction pointer, arguments
_RESPONSE = struct.Struct("=QqiI")
_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_AT_FDCWD = -100
_PAGE = 4096

assert _NOTIFICATION.size == 80
assert _RESPONSE.size == 24


class Supervisor:
    """Answers the notifications of one command until its last process has ended."""

    def __init__(
        self, listener: int, places: Mapping[str, str], decide: Callable[[int, Call], Decision], pid: int
    ) -> None:
        self.calls: list[Call] = []
        self._listener, self._decide, self._pid = listener, decide, pid
        self._places = sorted(places.items(), key=lambda item: -len(item[1]))

    def serve(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                os.kill(self._pid, signal.SIGKILL)
                raise AssertionError(f"still running at its deadline; its last calls: {self.calls[-5:]}")
            if not events[0][1] & select.POLLIN:
                return  # nobody is left under the filter
            self._answer()

    def _answer(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # killed in between
            raise
        cookie, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        call = self._call(tid, CALLS[number], arguments)
        decision: Decision = None
        if call is not None:
            self.calls.append(call)
            decision = self._decide(len(self.calls), call)
        if decision == KILL:
            os.kill(self._pid, signal.SIGKILL)
            return
        if isinstance(decision, Answer):
            response = _RESPONSE.pack(cookie, decision.value, -decision.error, 0)
        else:
            response = _RESPONSE.pack(cookie, 0, 0, _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _SEND, bytearray(response))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _call(self, tid: int, kind: Kind, arguments: list[int]) -> Optional[Call]:
        """The call, if it is I/O on a watched path."""
        if kind.name == "lseek" and arguments[2] != os.SEEK_END:
            return None
        try:
            paths = self._paths(tid, kind, arguments)
        except (FileNotFoundError, ProcessLookupError):
            return None  # a closed descriptor, or a thread that was killed in between
        for path in paths:
            place = self._place(path)
            if place is not None:
                return Call(kind.name, place, path, _size(tid, kind.name, arguments), _flags(kind, arguments))
        return None

    def _paths(self, tid: int, kind: Kind, arguments: list[int]) -> list[str]:
        if kind.fd is not None:
            return [os.readlink(f"/proc/{tid}/fd/{_signed(arguments[kind.fd])}")]
        found = []
        for directory, index in kind.paths:
            path = _text(tid, arguments[index])
            if path and not path.startswith("/") and directory is not None:
                fd = _signed(arguments[directory])
                if fd != _AT_FDCWD:
                    path = os.path.join(os.readlink(f"/proc/{tid}/fd/{fd}"), path)
            found.append(path)
        return found

    def _place(self, path: str) -> Optional[str]:
        for place, root in self._places:
            if path == root or path.startswith(root + "/"):
                return place
        return None


def _signed(argument: int) -> int:
    return ctypes.c_int(argument & 0xFFFFFFFF).value


def _memory(tid: int, address: int, size: int) -> bytes:
    fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def _text(tid: int, address: int) -> str:
    data = b""
    while b"\0" not in data and len(data) < _PAGE:
        start = address + len(data)
        data += _memory(tid, start, _PAGE - start % _PAGE)
    return os.fsdecode(data.partition(b"\0")[0])


def _size(tid: int, name: str, arguments: list[int]) -> int:
    if name in VECTOR_CALLS:
        vectors = array.array("Q", _memory(tid, arguments[1], 16 * arguments[2]))
        return sum(vectors[1::2])
    return arguments[2] if name in READ_CALLS | WRITE_CALLS else 0


def _flags(kind: Kind, arguments: list[int]) -> int:
    index = _OPEN_FLAGS.get(kind.name)
    return 0 if index is None else arguments[index]


def run_supervised(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    places: Mapping[str, str],
    decide: Callable[[int, Call], Decision] = lambda _number, _call: None,
    timeout_seconds: float = 60,
) -> Run:
    """Run to the end. ``decide`` is asked, with the calls counted from 1, before each on a watched path.

    The command must leave no process behind: those would be under the filter too.
    """
    ours, theirs = socket.socketpair()
    # Files: nobody reads while the calls are watched, and a pipe holds 64 KiB.
    with ours, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__), str(theirs.fileno()), *command],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                env=dict(environment), start_new_session=True,
            )  # fmt: skip
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            process.wait(timeout=10)
            raise AssertionError(f"no seccomp listener: {_written(stderr)}")
        supervisor = Supervisor(descriptors[0], places, decide, process.pid)
        try:
            supervisor.serve(time.monotonic() + timeout_seconds)
        finally:
            os.close(descriptors[0])
            process.wait(timeout=10)
        return Run(command, process.returncode, _written(stdout), _written(stderr), supervisor.calls)


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="surrogateescape")


# -- the launcher ---------------------------------------------------------------------------------------

_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 1 << 3
_PR_SET_NO_NEW_PRIVS = 38


def _filter() -> bytes:
    """Classic BPF: notify of the calls in the table, allow every other."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    numbers = sorted(CALLS)
    program = [
        (load, 0, 0, 4),
        (jump_if_equal, 1, 0, _AUDIT_ARCH_X86_64),
        (give, 0, 0, _ALLOW),
        (load, 0, 0, 0),
    ]
    program += [
        (jump_if_equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)
    ]  # each to the last instruction
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _NOTIFY)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _become(supervisor: socket.socket, command: Sequence[str]) -> None:
    """Put this process under the filter and execute the command. No file is touched in between."""
    assert _MACHINE_IS_KNOWN, f"{platform.machine()}: only the system calls of x86_64 are known"
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(_filter())
    program = struct.pack("=HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.c_char_p(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(supervisor, [b"x"], [listener])
    os.execv(command[0], list(command))


if __name__ == "__main__":
    _become(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
