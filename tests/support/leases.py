"""How a contender holds the lease: through real sanlock, our operations, our command line, or not at all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.support.disk import LOCKSPACE_NAME, resource_name, resource_path
from tests.support.sanlocksocket import SanlockClient
from vmlockctl.errors import ContentionError, VmlockctlError
from vmlockctl.ops.acquire import DiskRequest, Options, acquire
from vmlockctl.ops.release import release, release_to_shared
from vmlockctl.ops.session import open_session

# sanlock's answers to an acquire that say "not now" (sanlock-format.md section 7).
_BUSY = frozenset([-11, -243, -244, -245, -246, -247])
_EXIT_BUSY = 75
# How often a sanlock client asks again, about as our --wait looks; random, so that nobody is always second.
_ASK_AGAIN_SECONDS = (0.005, 0.05)


class Setup(NamedTuple):
    """Which contender: ``kind`` is ours, sanlock, or none (no lease at all: for the oracle's own test)."""

    kind: str
    name: str
    run_dir: str
    lease_dir: str
    disk: str
    counter: str


class NotGranted(Exception):
    """Patience is over, or the answer is one that no contest explains."""


class Lease(Protocol):
    """How a contender holds the lease. Each raises ``NotGranted``; refused attempts are counted."""

    refusals: int

    def acquire(self, *, shared: bool, patience_seconds: float) -> None: ...
    def to_shared(self) -> None: ...
    def to_exclusive(self) -> bool: ...
    def release(self) -> None: ...


class NoLease:
    """Everything is granted: what the counter must find out."""

    refusals = 0

    def acquire(self, *, shared: bool, patience_seconds: float) -> None: ...
    def to_shared(self) -> None: ...
    def to_exclusive(self) -> bool:
        return True

    def release(self) -> None: ...


class SanlockLease:
    """Through the socket of a real daemon."""

    def __init__(self, setup: Setup) -> None:
        self.refusals = 0
        self._client = SanlockClient(
            Path(setup.run_dir),
            space=LOCKSPACE_NAME,
            resource=resource_name(setup.disk),
            path=resource_path(Path(setup.lease_dir), setup.disk),
        )

    def acquire(self, *, shared: bool, patience_seconds: float) -> None:
        deadline = time.monotonic() + patience_seconds
        while (answer := self._client.acquire(shared=shared)) != 0:
            self.refusals += 1
            if answer not in _BUSY or time.monotonic() > deadline:
                raise NotGranted(f"sanlock's acquire: {answer}")
            time.sleep(random.uniform(*_ASK_AGAIN_SECONDS))

    def to_shared(self) -> None:
        _require(self._client.convert(shared=True), "convert to shared")

    def to_exclusive(self) -> bool:
        answer = self._client.convert(shared=False)
        if answer in _BUSY:
            self.refusals += 1
            return False
        _require(answer, "convert to exclusive")
        return True

    def release(self) -> None:
        _require(self._client.release(), "release")


def _require(answer: int, what: str) -> None:
    if answer != 0:
        raise NotGranted(f"sanlock's {what}: {answer}")


class OurLease:
    """Through the operations that the commands call, with the real driver and records."""

    def __init__(self, setup: Setup) -> None:
        self.refusals = 0
        self._disk = setup.disk
        self._session = open_session(run_dir=setup.run_dir, lockspace=setup.lease_dir)

    def acquire(self, *, shared: bool, patience_seconds: float) -> None:
        def count(_why: str, _left: object) -> None:
            self.refusals += 1

        try:
            acquire(
                self._session,
                [DiskRequest(self._disk, shared)],
                pid=os.getpid(),
                options=Options(wait_seconds=patience_seconds),
                on_wait=count,
            )
        except VmlockctlError as error:
            raise NotGranted(f"our acquire: {error.code}: {error.message}") from error

    def to_shared(self) -> None:
        try:
            release_to_shared(self._session, [self._disk], pid=os.getpid())
        except VmlockctlError as error:
            raise NotGranted(f"our release --to-shared: {error.code}: {error.message}") from error

    def to_exclusive(self) -> bool:
        try:
            acquire(self._session, [DiskRequest(self._disk)], pid=os.getpid())
        except ContentionError:
            self.refusals += 1
            return False
        except VmlockctlError as error:
            raise NotGranted(f"our conversion: {error.code}: {error.message}") from error
        return True

    def release(self) -> None:
        try:
            release(self._session, [self._disk], pid=os.getpid())
        except VmlockctlError as error:
            raise NotGranted(f"our release: {error.code}: {error.message}") from error


class CommandLine:
    """The same through ``vmlockctl`` itself."""

    def __init__(self, setup: Setup) -> None:
        self.refusals = 0
        self._disk = setup.disk
        self._pid = ["--pid", str(os.getpid())]
        self._environment = {
            **os.environ, "VMLOCKCTL_RUN_DIR": setup.run_dir, "VMLOCKCTL_LOCKSPACE": setup.lease_dir
        }  # fmt: skip

    def acquire(self, *, shared: bool, patience_seconds: float) -> None:
        options = [f"--wait={patience_seconds:.0f}", *(["--shared"] if shared else [])]
        self._succeed("acquire", *options)

    def to_shared(self) -> None:
        self._succeed("release", "--to-shared")

    def to_exclusive(self) -> bool:
        result = self._call("acquire")
        if result.returncode == _EXIT_BUSY:
            self.refusals += 1
            return False
        _require_success(result)
        return True

    def release(self) -> None:
        self._succeed("release")

    def _succeed(self, *words: str) -> None:
        _require_success(self._call(*words))

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmlockctl", *words, *self._pid, self._disk]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _require_success(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode != 0:
        raise NotGranted(f"{' '.join(result.args[1:])}: exit {result.returncode}: {result.stderr}")


def lease_of(setup: Setup) -> Lease:
    if setup.kind == "none":
        return NoLease()
    return SanlockLease(setup) if setup.kind == "sanlock" else OurLease(setup)
