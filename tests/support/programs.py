"""Finding the real programs, running them, and ending whatever a test started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, Optional, Union

from tests.support.waiting import wait_for

SBIN = "/usr/sbin:/sbin"


def find_program(name: str) -> str:
    """The path of an installed program; the marker ``real`` has skipped the test where it is absent."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + os.pathsep + SBIN)
    assert path is not None, f"{name} is not installed: is the test marked real({name!r})?"
    return path


class Result(NamedTuple):
    """A finished command."""

    command: Sequence[str]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def __repr__(self) -> str:
        return (
            f"$ {' '.join(self.command)}\nexit {self.returncode} after {self.seconds:.1f} s\n"
            f"--- stdout\n{self.stdout}--- stderr\n{self.stderr}---"
        )


def run_command(
    command: Sequence[str],
    *,
    environment: Optional[Mapping[str, str]] = None,
    timeout_seconds: float = 60,
    cwd: Optional[Path] = None,
) -> Result:
    """Run to the end. A command that leaves its stdout open in a daemon never ends here: on purpose."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        cwd=cwd, text=True, errors="surrogateescape", start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            stdout, stderr = process.communicate(timeout=5)
            raise AssertionError(
                f"{' '.join(command)}: still running after {timeout_seconds:g} s\n{stdout}\n{stderr}"
            ) from None
        close_pipes(process)
        raise AssertionError(f"{' '.join(command)}: its output stayed open after it ended") from None
    return Result(command, process.returncode, stdout, stderr, time.monotonic() - started)


def close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def process_state(pid: int) -> str:
    """The state letter of /proc/PID/stat; "" for a process that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(b")")[2].split()[0].decode()


def is_running(pid: int) -> bool:
    """True while the process can still do something: a zombie cannot."""
    return process_state(pid) not in ("", "Z", "X")


def is_gone(pid: int) -> bool:
    return not is_running(pid)


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_together(pids: Sequence[int]) -> None:
    """SIGKILL all of them, stopped first so that none can start another in between."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            send_signal(pid, number)
    for pid in pids:
        wait_for(f"the end of process {pid}", partial(is_gone, pid), within=10)


def processes_of(environment_entry: str) -> list[int]:
    """Every process that was started with this VARIABLE=value in its environment."""
    wanted = os.fsencode(environment_entry)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and is_running(int(entry)):
                found.append(int(entry))
    return found


class Child:
    """A process of ours that a thread reaps at once, so that "gone" has a time and leaves no zombie."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Optional[Mapping[str, str]] = None,
        stdin: Union[int, IO[bytes]] = subprocess.DEVNULL,
        stdout: Union[int, IO[bytes]] = subprocess.DEVNULL,
        stderr: Union[int, IO[bytes]] = subprocess.DEVNULL,
        cwd: Optional[Path] = None,
    ) -> None:
        self.ended_at: Optional[float] = None
        self._process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
        self._reaper = threading.Thread(target=self._reap, daemon=True)
        self._reaper.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def _reap(self) -> None:
        self._process.wait()
        self.ended_at = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self.ended_at is None

    def wait(self, *, within: float) -> int:
        """The exit status; negative for a signal, as ``subprocess`` has it."""
        wait_for(f"the end of process {self.pid}", lambda: not self.running, within=within)
        assert self._process.returncode is not None
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; nothing when it already is."""
        if self.running:
            send_signal(self.pid, signal.SIGCONT)
            send_signal(self.pid, signal.SIGKILL)
        self._reaper.join(10)


@contextlib.contextmanager
def standing_process() -> Iterator[Child]:
    """A process that holds no disk open: what a lease is acquired for where QEMU is not the subject."""
    with Child(["sleep", "infinity"]) as child:
        yield child
