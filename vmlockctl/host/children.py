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
from vmlockctl.host.spawn import own_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType
    from typing import Any, Optional

_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KILL_SECONDS = 10.0
_VERSION_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.02


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP raise ``KeyboardInterrupt``, once, and never inside a ``held`` block.

    What is started in one is also noted in it, so nothing is forgotten; what is cleared away in one is
    cleared away whole, however often Ctrl-C is pressed. A signal that was ignored stays ignored.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False
        self._raised = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _INTERRUPTIONS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: Optional[FrameType]) -> None:
        self._pending = True
        self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending and not self._depth and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put an interruption off until the end of the block."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self._raise_pending()


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
        # Only we reap it, so until then no other process has its pid.
        self._pidfd = os.pidfd_open(self.pid)

    def wait(self, seconds: float = 0) -> Optional[int]:
        """The exit status (negative: a signal), waited for at most so long; None while it runs."""
        if self._process.returncode is None and has_ended(self._pidfd, timeout_seconds=seconds):
            self._process.wait()
            os.close(self._pidfd)
        return self._process.returncode

    def send(self, signal_number: int) -> None:
        if self._process.returncode is None:
            send(self._pidfd, signal_number)

    def end(self, *, grace_seconds: float = 0) -> bool:
        """Stop it softly, then hard, and see it gone; False if it survives."""
        if grace_seconds > 0:
            self.send(signal.SIGTERM)
            self.wait(grace_seconds)
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


def processes_of(run_dir: str) -> list[Process]:
    """Every process of this program, running or about to be, that was started for this run directory."""
    wanted = own_command(run_dir)[1:]  # the interpreter may not be the first word: a shell starts daemons
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


def terminate(process: Process, *, within_seconds: float) -> bool:
    """SIGTERM to exactly this process; True once it is seen to be gone."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return True
    try:
        send(pidfd, signal.SIGTERM)
        return has_ended(pidfd, timeout_seconds=within_seconds)
    finally:
        os.close(pidfd)


def kill_all_of(run_dirs: Sequence[str]) -> list[int]:
    """SIGKILL what ``processes_of`` finds until it finds nothing; return the pids that survive.

    Nothing twice in a row: one look may miss a child that a process started just before it ended.
    """
    deadline = clock.monotonic() + _KILL_SECONDS
    empty_looks = 0
    while empty_looks < 2:
        found = [process for run_dir in run_dirs for process in processes_of(run_dir)]
        empty_looks = 0 if found else empty_looks + 1
        for process in found:
            _kill(process)
        if found and clock.monotonic() >= deadline:
            return [process.pid for process in found]
        if found:
            clock.sleep(_LOOK_AGAIN_SECONDS)
    return []


def _kill(process: Process) -> None:
    pidfd = open_pidfd(process)
    if pidfd is not None:
        send(pidfd, signal.SIGKILL)
        os.close(pidfd)
