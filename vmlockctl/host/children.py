"""Processes that the self-test starts, and certainly ends, whatever interrupts it.

Its children (commands of ours, and the VMs that they become) have a session of their own: the
terminal's Ctrl-C reaches us alone, and we end them. The daemons that its commands leave behind are
nobody's children; they are found again by their whole command line, which names a run directory that
nobody else uses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from vmlockctl import clock
from vmlockctl.host.openers import Identity, find_openers
from vmlockctl.host.process import Process, cmdline, has_ended, identify, open_pidfd, send
from vmlockctl.host.spawn import daemon_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType
    from typing import Optional

_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KILL_SECONDS = 10.0
_VERSION_SECONDS = 5.0


def command_line(run_dir: str, *arguments: str) -> list[str]:
    """A command of ours, isolated as the daemon is, on the host that ``run_dir`` stands for."""
    return [*daemon_command(run_dir, detached=False)[:-1], *arguments]  # its last word is the verb


def version_of(program: str) -> Optional[str]:
    """The first line that ``program --version`` prints; None if it does not run."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_VERSION_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.decode(errors="replace").splitlines()), program)


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP raise ``KeyboardInterrupt``, but never inside a ``held`` block.

    What is started there is also noted there, so nothing is forgotten; what is cleared away there is
    cleared away whole. A signal that was ignored when we started stays ignored.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        for number in _INTERRUPTIONS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, _number: int, _frame: Optional[FrameType]) -> None:
        if self._depth:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put an interruption off until the end of the block."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._pending and not self._depth:
            self._pending = False
            raise KeyboardInterrupt


class Child:
    """A child process in a session of its own, known by pidfd; its stderr goes to a file."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], stderr_path: str) -> None:
        self._stderr_path = stderr_path
        with open(stderr_path, "wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._process.pid
        # Nobody reaps it before us, so the pid is its own until then.
        self._pidfd = os.pidfd_open(self.pid)

    def wait(self, seconds: float = 0) -> Optional[int]:
        """The exit status (negative: a signal), waited for at most so long; None while it runs."""
        if self._process.returncode is None and has_ended(self._pidfd, timeout_seconds=seconds):
            self._process.wait()
        return self._process.returncode

    def send(self, signal_number: int) -> None:
        if self.wait() is None:
            send(self._pidfd, signal_number)

    def end(self, *, softly_seconds: float = 0) -> bool:
        """Stop it softly, then hard, and see it gone; False if it survives."""
        if softly_seconds:
            self.send(signal.SIGTERM)
            self.wait(softly_seconds)
        self.send(signal.SIGKILL)
        return self.wait(_KILL_SECONDS) is not None

    def may_write(self, disk: Identity) -> bool:
        """Whether it has the disk open for writing."""
        openers = find_openers([disk]).openers.get(disk, [])
        return any(opener.pid == self.pid and opener.writable for opener in openers)

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        with open(self._stderr_path, encoding="utf-8", errors="replace") as stderr:
            return next((line.strip() for line in reversed(stderr.readlines()) if line.strip()), "")

    def close(self) -> None:
        """Let go of a child that has ended."""
        os.close(self._pidfd)


def processes_of(run_dir: str) -> list[Process]:
    """Every process of ours, on its way or running, that was started for this run directory."""
    wanted = command_line(run_dir)[1:]  # not the interpreter: a shell may stand before it for an instant
    found = []
    for name in os.listdir("/proc"):
        try:
            process = identify(int(name)) if name.isdecimal() else None
        except PermissionError:
            continue  # somebody else's
        if process is not None and _contains(cmdline(process.pid), wanted):
            found.append(process)
    return found


def _contains(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))


def stop(process: Process, *, within_seconds: float) -> bool:
    """SIGTERM to exactly this process; True once it is seen to be gone."""
    return _signal_and_wait(process, signal.SIGTERM, within_seconds)


def kill_all_of(run_dir: str) -> list[int]:
    """SIGKILL what ``processes_of`` finds until it finds nothing; return the pids that survive.

    Two empty looks in a row: the first may miss a child that a process started just before it ended.
    """
    deadline = clock.monotonic() + _KILL_SECONDS
    empty_looks = 0
    while empty_looks < 2:
        found = processes_of(run_dir)
        empty_looks = 0 if found else empty_looks + 1
        gone = [_signal_and_wait(process, signal.SIGKILL, deadline - clock.monotonic()) for process in found]
        if not all(gone) and clock.monotonic() >= deadline:
            return [process.pid for process in found]
    return []


def _signal_and_wait(process: Process, signal_number: int, seconds: float) -> bool:
    fd = open_pidfd(process)
    if fd is None:
        return True
    try:
        send(fd, signal_number)
        return has_ended(fd, timeout_seconds=max(0.0, seconds))
    finally:
        os.close(fd)
