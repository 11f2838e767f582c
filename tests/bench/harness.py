"""Timing of whole processes, and a host of our own to time them on.

Two programs are compared in turns, A B A B, so that a machine that grows slow half way slows both.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.programs import Child, find_program
from tests.support.vmhost import VmHost, console_script

LOCKSPACE_NAME = "BENCH"

# Nothing that is measured takes this long, unless a daemon has kept the command's output open.
COMMAND_LIMIT_SECONDS = 120

Command = Sequence[str]


class CannotMeasure(Exception):
    """A program is missing, or a command that is measured failed."""


class Figure(NamedTuple):
    """One measured value beside its target; without a target it is told, not judged."""

    what: str
    value: str
    target: str = ""
    met: bool | None = None


def seconds_of(command: Command, environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        timeout=COMMAND_LIMIT_SECONDS,
    )
    took = time.perf_counter() - began
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise CannotMeasure(f"status {done.returncode} from {' '.join(command)[:200]}: {text}")
    return took


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


class BenchHost(VmHost):
    """A host with a lease directory at the default io_timeout, and disks and processes to lease for."""

    def __init__(self, directory: Path) -> None:
        # The run directory is on a tmpfs, as /run and XDG_RUNTIME_DIR are.
        memory = "/dev/shm" if os.path.ismount("/dev/shm") else directory
        self.run_dir_home = tempfile.TemporaryDirectory(prefix="vmlockctl-bench-", dir=memory)
        super().__init__(Path(self.run_dir_home.name), "bench")
        self.program = str(console_script())
        self.lease_dir = directory / "leases"
        self.disks = directory / "disks"
        self.disks.mkdir()
        self.sleepers: list[Child] = []

    def __enter__(self) -> BenchHost:
        try:
            self.time("init-lockspace", str(self.lease_dir), "--host-id", "1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for sleeper in self.sleepers:
            sleeper.kill()
        self.run_dir_home.cleanup()

    def time(self, *arguments: str) -> float:
        """Run one vmlockctl command to its end and return the seconds it took."""
        return seconds_of([self.program, *arguments], self.environment)

    def disk(self, number: int = 0) -> str:
        path = self.disks / f"disk{number}.img"
        if not path.exists():
            path.write_bytes(bytes(4096))
        return str(path)

    def sleeper(self) -> str:
        """Start a process that does nothing, to hold leases; return its pid."""
        self.sleepers.append(Child(["sleep", "3600"]))
        return str(self.sleepers[-1].pid)


class Sanlock:
    """`sanlock direct` as host 1 of a lockspace in a file, without a daemon."""

    def __init__(self, directory: Path) -> None:
        try:
            self.program = find_program("sanlock")
        except AssertionError:
            raise CannotMeasure("sanlock is not installed") from None
        self.lockspace = f"{LOCKSPACE_NAME}:1:{directory / 'lockspace'}:0"
        self.path = directory / "resources"

    def prepare(self, *, lease_count: int) -> None:
        """Write the lockspace, join it, and write the leases one after the other into one file."""
        Path(self.lockspace.split(":")[2]).touch()
        self.path.touch()
        os.truncate(self.path, lease_count << 20)
        self.direct("init", "-a", "0", "-s", self.lockspace.replace(":1:", ":0:", 1), "-o", "1")
        self.direct("acquire_id", "-s", self.lockspace)
        for number in range(lease_count):
            self.direct("init", "-a", "0", "-r", self.resource(number))

    def resource(self, number: int) -> str:
        return f"{LOCKSPACE_NAME}:R{number}:{self.path}:{number << 20}"

    def direct(self, action: str, *arguments: str) -> float:
        return seconds_of([self.program, "direct", action, *arguments])

    def acquire(self) -> float:
        return self.direct("acquire", "-r", self.resource(0), "-s", self.lockspace, "-i", "1", "-g", "1")

    def release(self) -> float:
        return self.direct("release", "-r", self.resource(0), "-i", "1", "-g", "1")
