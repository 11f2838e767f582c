"""One host that runs vmlockctl: a run directory, its daemon and standby, and the commands given on it.

Two of them on one machine are two hosts (DESIGN.md 6). Only the contract of the command line is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from tests.support.disk import LOCKSPACE_NAME, read_delta, resource_name
from tests.support.programs import (
    Child,
    Result,
    is_running,
    kill_together,
    processes_of,
    run_command,
    send_signal,
)
from tests.support.waiting import wait_for

OUR_COMMAND = (sys.executable, "-m", "vmlockctl")
PathLike = Union[str, "os.PathLike[str]"]


def console_script() -> Path:
    """Find the installed ``vmlockctl`` of the interpreter that runs the tests."""
    path = Path(sysconfig.get_path("scripts")) / "vmlockctl"
    assert path.exists(), f"{path}: install the package first (pip install -e .)"
    return path


def error_object(result: Result) -> dict[str, Any]:
    """The error of a command that ran with --json, from the last line of stderr."""
    error = json.loads(result.stderr.strip().splitlines()[-1])["error"]
    assert isinstance(error, dict), result
    return error


class VmHost:
    """A host of ours. ``close`` ends every process that was ever started with this run directory."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir, self.name = run_dir, name
        self.host_id = 0
        self.lease_dir: Optional[Path] = None
        run_dir.mkdir(parents=True, exist_ok=True)

    # -- commands -------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """Only this host's settings: nothing of ours that the test run inherited."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VMLOCKCTL_")}
        environment["VMLOCKCTL_RUN_DIR"] = str(self.run_dir)
        if self.lease_dir is not None:
            environment["VMLOCKCTL_LOCKSPACE"] = str(self.lease_dir)
        return environment

    def call(
        self, *arguments: PathLike, within: float = 60, prefix: Sequence[str] = (), cwd: Optional[Path] = None
    ) -> Result:
        """Run one command to its end; a daemon that it starts must let go of its output."""
        return run_command(
            [*prefix, *OUR_COMMAND, *[os.fspath(argument) for argument in arguments]],
            environment=self.environment, timeout_seconds=within, cwd=cwd,
        )  # fmt: skip

    def succeed(self, *arguments: PathLike, within: float = 60) -> Result:
        result = self.call(*arguments, within=within)
        assert result.returncode == 0, result
        return result

    def json(self, *arguments: PathLike, within: float = 60) -> dict[str, Any]:
        """Stdout of a command with --json, whether it has findings or not."""
        result = self.call(*arguments, "--json", within=within)
        assert result.returncode in (0, 1), result
        decoded = json.loads(result.stdout)
        assert isinstance(decoded, dict), result
        assert decoded["schema"] == 1, result
        return decoded

    def start(self, *arguments: PathLike, command: Sequence[str] = OUR_COMMAND, log: str = "") -> Child:
        """Start a command that stays, with its output in ``RUN_DIR/LOG``."""
        with contextlib.ExitStack() as files:
            output: Any = subprocess.DEVNULL
            if log:
                output = files.enter_context((self.run_dir / log).open("ab"))
            return Child(
                [*command, *[os.fspath(argument) for argument in arguments]],
                environment=self.environment,
                stdout=output,
                stderr=output,
            )

    # -- host leases ----------------------------------------------------------------------------

    def join(self, lease_dir: Path, host_id: int, *, within: float = 60) -> Result:
        """Join with ``add-host``: a lockspace that others may already use."""
        self.lease_dir, self.host_id = lease_dir, host_id
        return self.succeed(
            "add-host", lease_dir, "--host-id", str(host_id), "--host-name", self.name, "--io-timeout", "1",
            within=within,
        )  # fmt: skip

    def create(self, lease_dir: Path, host_id: int = 1) -> Result:
        """Format a lockspace with this host already in it: wait-free."""
        self.lease_dir, self.host_id = lease_dir, host_id
        return self.succeed(
            "init-lockspace",
            lease_dir,
            "--io-timeout",
            "1",
            "--host-id",
            str(host_id),
            "--host-name",
            self.name,
        )

    @property
    def generation(self) -> int:
        """The generation of our delta lease, from the disk."""
        assert self.lease_dir is not None
        return read_delta(self.lease_dir, self.host_id).owner_generation

    # -- leases ---------------------------------------------------------------------------------

    def acquire(self, pid: int, *disks: PathLike, options: Sequence[str] = (), within: float = 60) -> Result:
        return self.call("acquire", "--pid", str(pid), *options, *disks, within=within)

    def release(self, pid: int, *disks: PathLike) -> Result:
        return self.call("release", "--pid", str(pid), *disks)

    def status(self, *disks: PathLike) -> dict[str, Any]:
        return self.json("status", *disks)

    def lease_status(self, disk: PathLike) -> dict[str, Any]:
        """The entry of one disk in ``status --json``."""
        leases = [lease for lease in self.status()["leases"] if lease["resource"] == resource_name(disk)]
        assert len(leases) == 1, leases
        lease = leases[0]
        assert isinstance(lease, dict)
        return lease

    def seen_state(self, host_id: int) -> str:
        """What this host says about another one: free, unknown, live, fail or dead."""
        states = [host["state"] for host in self.status()["hosts"] if host["host_id"] == host_id]
        return states[0] if states else "free"

    @property
    def claims_dir(self) -> Path:
        return self.run_dir / LOCKSPACE_NAME / "claims"

    # -- processes ------------------------------------------------------------------------------

    def _pid_from(self, name: str) -> int:
        try:
            pid = int((self.run_dir / name).read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if is_running(pid) else 0

    @property
    def daemon_pid(self) -> int:
        """The running daemon; 0 where there is none."""
        return self._pid_from("daemon.pid")

    @property
    def standby_pid(self) -> int:
        """The waiting standby; one that has become the daemon is no standby any more."""
        pid = self._pid_from("standby.pid")
        return 0 if pid == self.daemon_pid else pid

    def wait_for_pair(self, *, within: float = 10) -> tuple[int, int]:
        """Return the pids of daemon and standby once both run."""
        wait_for("a daemon and its standby", lambda: self.daemon_pid and self.standby_pid, within=within)
        return self.daemon_pid, self.standby_pid

    def kill_daemon(self) -> float:
        """Kill -9 the daemon alone; return the moment of the signal."""
        pid = self.daemon_pid
        assert pid, "no daemon runs"
        moment = time.monotonic()
        send_signal(pid, signal.SIGKILL)
        wait_for("the end of the daemon", lambda: not is_running(pid), within=5)
        return moment

    def crash(self) -> None:
        """Kill -9 the daemon and the standby; the VMs of this host stay."""
        kill_together(self.wait_for_pair())

    def processes(self) -> list[int]:
        return processes_of(f"VMLOCKCTL_RUN_DIR={self.run_dir}")

    def crash_everything(self) -> None:
        """What a power cut leaves: nothing."""
        while pids := self.processes():
            kill_together(pids)

    def close(self) -> None:
        daemons = [pid for pid in (self.daemon_pid, self.standby_pid) if pid]
        kill_together(daemons)
        self.crash_everything()
