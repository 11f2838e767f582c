"""Real QEMU, bare and through ``vmlockctl run``.

The CPUs stay stopped (-S) unless a test wants the guest: what counts is that QEMU has opened the disk, and
that its QMP socket answers says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from tests.support.programs import Child, find_program, is_running, process_state, run_command, send_signal
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

PROGRAM = "qemu-system-x86_64"

# A boot sector that writes 0x10 to the isa-debug-exit port: QEMU ends with status (0x10 << 1) | 1.
EXIT_33_BOOT_SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
EXIT_33_DEVICE = ("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")


def make_disk(path: Path, *, boot_sector: bytes = b"") -> Path:
    """Create a raw image of 1 MiB."""
    path.write_bytes(boot_sector.ljust(1024 * 1024, b"\0"))
    return path


def make_qcow2(path: Path) -> Path:
    result = run_command([find_program("qemu-img"), "create", "-q", "-f", "qcow2", str(path), "8M"])
    assert result.returncode == 0, result
    return path


def drive(disk: os.PathLike[str] | str, options: str = "") -> list[str]:
    """A virtio disk; ``options`` such as ``readonly=on`` follow."""
    return ["-drive", f"file={disk},format=raw,if=virtio{',' + options if options else ''}"]


def machine(*, stopped: bool = True) -> list[str]:
    """Everything but the disks; small, and without a console."""
    arguments = ["-machine", "pc,accel=tcg", "-m", "32", "-nodefaults", "-display", "none"]
    return [*arguments, "-S"] if stopped else arguments


class Qemu:
    """A QEMU that a test started; ``pid`` is the process that was started, which must become QEMU."""

    def __init__(self, child: Child, qmp_path: Path, log_path: Path) -> None:
        self._child, self.qmp_path, self._log_path = child, qmp_path, log_path

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def ended_at(self) -> Optional[float]:
        """When it was reaped, as ``time.monotonic`` has it."""
        return self._child.ended_at

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def wait_ready(self, *, within: float = 20) -> Qemu:
        """Return once QMP answers: every disk is open then."""

        def answers() -> bool:
            assert self._child.running, f"it ended with {self._child.wait(within=1)}: {self.log}"
            return self.answers()

        wait_for("QEMU's answer", answers, within=within, every_seconds=0.02)
        return self

    def answers(self) -> bool:
        try:
            return "running" in self.qmp("query-status")
        except OSError:
            return False

    def qmp(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run one QMP command on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.qmp_path))
            with connection.makefile("rw") as stream:
                stream.readline()  # the greeting
                for execute, given in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": execute, "arguments": given}) + "\n")
                    stream.flush()
                    answer = self._answer(stream)
                return answer

    @staticmethod
    def _answer(stream: Any) -> dict[str, Any]:
        for line in stream:
            message = json.loads(line)
            if "return" in message:
                returned = message["return"]
                assert isinstance(returned, dict)
                return returned
            assert "error" not in message, message
        raise ConnectionResetError("QMP ended")

    def quit(self) -> int:
        """End it as an operator does; return the exit status."""
        with contextlib.suppress(OSError):
            self.qmp("quit")
        return self._child.wait(within=10)

    def wait(self, *, within: float) -> int:
        return self._child.wait(within=within)

    def kill(self) -> None:
        self._child.kill()


class QemuStarter:
    """Starts QEMUs for one test and ends those that are left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Qemu] = []
        self._pid_files: list[Path] = []

    def __call__(
        self,
        *arguments: str,
        host: Optional[VmHost] = None,
        run_options: Sequence[str] = (),
        command: Optional[Sequence[str]] = None,
    ) -> Qemu:
        """Start QEMU with these arguments: bare, through ``run`` on a host, or through a script."""
        number = len(self._started)
        qmp, log = self._directory / f"qmp{number}", self._directory / f"qemu{number}.log"
        whole = [find_program(PROGRAM), *arguments, "-qmp", f"unix:{qmp},server=on,wait=off"]
        environment = None
        if command is not None:
            whole = [*command, *whole[1:]]
        elif host is not None:
            whole = [*OUR_COMMAND, "run", *run_options, "--", *whole]
        if host is not None:
            environment = host.environment
        with log.open("wb") as output:
            child = Child(whole, environment=environment, stdout=output, stderr=subprocess.STDOUT)
        qemu = Qemu(child, qmp, log)
        self._started.append(qemu)
        return qemu

    def pid_file(self) -> Path:
        """A path for -pidfile; the process it comes to name is ended with the test."""
        path = self._directory / f"pid{len(self._pid_files)}"
        self._pid_files.append(path)
        return path

    def close(self) -> None:
        for qemu in self._started:
            qemu.kill()
        for path in self._pid_files:
            with contextlib.suppress(FileNotFoundError, ValueError):
                end_daemonized(int(path.read_text()))


def end_daemonized(pid: int) -> None:
    """Kill a QEMU that is nobody's child of ours, after a look at what the number is today."""
    with contextlib.suppress(OSError):
        if PROGRAM not in os.readlink(f"/proc/{pid}/exe"):
            return
    if process_state(pid):
        send_signal(pid, 9)
        wait_for("the end of the daemonized QEMU", lambda: not is_running(pid), within=10)
