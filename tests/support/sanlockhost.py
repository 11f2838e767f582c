"""One host that runs the real sanlock: a daemon of its own, and processes that hold leases through it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple, Optional

from tests.support.disk import LOCKSPACE_NAME, lockspace_path, resource_name, resource_path
from tests.support.programs import Child, Result, find_program, kill_together, processes_of, run_command
from tests.support.waiting import wait_for

_DONE = re.compile(r"^acquire done (-?\d+)$", re.MULTILINE)
_HOST = re.compile(r"^h (\d+) gen (\d+) timestamp (\d+) (\w+)", re.MULTILINE)


class SeenHost(NamedTuple):
    """One line of ``sanlock client gets -h 1``."""

    host_id: int
    generation: int
    timestamp: int
    state: str


def resource_spec(lease_dir: Path, disk: os.PathLike[str] | str, *, shared: bool = False) -> str:
    suffix = ":SH" if shared else ""
    return f"{LOCKSPACE_NAME}:{resource_name(disk)}:{resource_path(lease_dir, disk)}:0{suffix}"


def sanlock_direct(*arguments: str) -> Result:
    """Run ``sanlock direct``, which needs no daemon."""
    return run_command([find_program("sanlock"), "direct", *arguments])


def direct_init_lockspace(
    path: Path, *, name: str = LOCKSPACE_NAME, io_timeout: int = 10, sector_size: int = 512, align: str = "1M"
) -> None:
    result = sanlock_direct(
        "init", "-s", f"{name}:0:{path}:0", "-o", str(io_timeout), "-Z", str(sector_size), "-A", align
    )
    assert result.returncode == 0, result


def direct_init_resource(
    path: Path, *, resource: str, space: str = LOCKSPACE_NAME, sector_size: int = 512, align: str = "1M"
) -> None:
    result = sanlock_direct("init", "-r", f"{space}:{resource}:{path}:0", "-Z", str(sector_size), "-A", align)
    assert result.returncode == 0, result


def read_leader_fields(result: Result) -> dict[str, str]:
    """The fields of ``sanlock direct read_leader``, as it prints them."""
    assert result.returncode == 0, result
    fields = (line.split(None, 1) for line in result.stdout.splitlines() if " " in line)
    return {words[0]: words[1].strip() if len(words) > 1 else "" for words in fields}


class SanlockHolder:
    """``sanlock client command``: register, acquire, and become a process that holds the lease."""

    def __init__(self, host: SanlockHost, spec: str) -> None:
        self.spec = spec
        self._child = subprocess.Popen(
            [host.program, "client", "command", "-r", spec, "-c", "/bin/sh", "-c",
             "echo granted; exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=host.environment, text=True, start_new_session=True,
        )  # fmt: skip
        self.pid = self._child.pid
        self._output: list[str] = []
        self._answered = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout:
            for line in self._child.stdout:
                self._output.append(line)
                if line == "granted\n":
                    self._answered.set()
        self._answered.set()

    @property
    def answered(self) -> bool:
        return self._answered.is_set()

    def result(self, *, within: float) -> int:
        """0 once the lease is granted, else sanlock's number for the refusal."""
        wait_for("sanlock's answer", lambda: self.answered, within=within)
        text = "".join(self._output)
        if "granted\n" in text:
            return 0
        self._child.wait(10)
        done = _DONE.search(text)
        assert done is not None, f"sanlock client command said: {text!r}"
        return int(done.group(1))

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def returncode(self, *, within: float) -> int:
        """The exit status of a holder that somebody else ends; negative for a signal."""
        return self._child.wait(within)

    def end(self) -> None:
        self._child.kill()
        self._child.wait(10)
        self._reader.join(10)


class SanlockHost:
    """A real sanlock daemon in its own run directory and session, without a watchdog."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir, self.name, self.host_id = run_dir, name, 0
        self.program = find_program("sanlock")
        self._holders: list[SanlockHolder] = []
        self._daemon: Optional[Child] = None
        run_dir.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SANLOCK_PRIVILEGED": "0", "SANLOCK_RUN_DIR": str(self.run_dir)}

    def start(self) -> None:
        """Start the daemon; it is ready when its socket answers."""
        with (self.run_dir / "daemon.log").open("ab") as log:
            self._daemon = Child(
                [self.program, "daemon", "-D", "-w", "0", "-l", "0", "-h", "0", "-L", "-1", "-S", "-1",
                 "-e", self.name],
                environment=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for("sanlock's socket", self._socket_answers, within=10)

    def _socket_answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.running, (self.run_dir / "daemon.log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.run_dir / "sanlock.sock"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return self.client("status").returncode == 0

    def client(self, *arguments: str, within: float = 60) -> Result:
        return run_command(
            [self.program, "client", *arguments], environment=self.environment, timeout_seconds=within
        )

    def join(self, lease_dir: Path, host_id: int, *, within: float = 60) -> None:
        self.host_id = host_id
        spec = f"{LOCKSPACE_NAME}:{host_id}:{lockspace_path(lease_dir)}:0"
        result = self.client("add_lockspace", "-s", spec, "-o", "1", within=within)
        assert result.returncode == 0, result

    def hosts(self) -> dict[int, SeenHost]:
        """What the daemon has observed of every host id in use; empty before its first renewal."""
        lines = _HOST.findall(self.client("gets", "-h", "1").stdout)
        seen = [SeenHost(int(host), int(gen), int(stamp), state) for host, gen, stamp, state in lines]
        return {host.host_id: host for host in seen}

    def ask(self, lease_dir: Path, disk: os.PathLike[str] | str, *, shared: bool = False) -> SanlockHolder:
        """Start a process that asks for a lease, which may be waited for over a minute."""
        holder = SanlockHolder(self, resource_spec(lease_dir, disk, shared=shared))
        self._holders.append(holder)
        return holder

    def acquire(
        self, lease_dir: Path, disk: os.PathLike[str] | str, *, shared: bool = False, within: float = 10
    ) -> tuple[int, SanlockHolder]:
        """Ask for a lease: (0, its holder), or sanlock's number for the refusal."""
        holder = self.ask(lease_dir, disk, shared=shared)
        return holder.result(within=within), holder

    def release(self, holder: SanlockHolder) -> None:
        """End a holder and wait until the daemon has written the release."""
        holder.end()
        listed = f"r {holder.spec.removesuffix(':SH')}:"
        wait_for("sanlock's release", lambda: listed not in self.client("status").stdout, within=10)

    def crash_everything(self) -> None:
        """Kill -9 the daemon and every process that holds a lease through it."""
        while pids := processes_of(f"SANLOCK_RUN_DIR={self.run_dir}"):
            kill_together(pids)
        for holder in self._holders:
            holder.end()

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.crash_everything()
        if self._daemon is not None:
            self._daemon.kill()
