"""A file system that fails on request: a passthrough over a directory, served by a process of its own.

The faults are set through a socket beside the mount, so that they can be lifted while the mount hangs:

    eio, enospc, edquot, erofs, estale, enotconn, ebadf, eintr
                  the operation fails with that error
    lose          a write is acknowledged and not done
    slow          it is done, and answered 1.4 s later
    torn:N        only the first N bytes of a write are done, and it is acknowledged
    shift         a write lands one sector of 512 bytes further
    short         half of what was asked for is read or written
    stale         a read returns what was there when the fault began
    hang          nothing is answered until the fault is lifted; then the operation happens, late

What the mount shows is the backing directory, where a second "host" can work undisturbed. The other
side is ``fuseserver.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from tests.support import programs, waiting

SERVER = Path(__file__).with_name("fuseserver.py")
DATA_OPERATIONS = (
    "read", "write", "fsync", "open", "create", "getattr", "readdir", "link", "unlink", "rename",
)  # fmt: skip


class FaultyMount:
    """The mount as a test sees it."""

    def __init__(self, backing: Path, mountpoint: Path, control: Path, *, kind: Sequence[str] = ()) -> None:
        self.backing, self.path, self._control, self._kind = backing, mountpoint, control, kind
        self.start()

    def start(self) -> None:
        """Mount and serve."""
        self._server = programs.Child(
            [sys.executable, str(SERVER), str(self.backing), str(self.path), str(self._control), *self._kind]
        )

        def mounted() -> bool:
            assert self._server.running, "the file system did not start"
            return os.path.ismount(self.path) and self._control.exists()

        waiting.wait_for("the FUSE mount", mounted, within=10)

    def die(self) -> None:
        """Kill the server: every operation on the mount fails with ENOTCONN."""
        self._server.kill()

    def restart(self, backing: Optional[Path] = None) -> None:
        """Mount anew at the same place, over the same backing directory or another."""
        self.close()
        self._control.unlink()
        self.backing = backing or self.backing
        self.start()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._control))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
        assert isinstance(answer, dict)
        return answer

    def fail(self, action: str, *, operations: tuple[str, ...] = DATA_OPERATIONS, names: str = "*") -> None:
        """Begin a fault; it replaces the one before it."""
        self._ask({"fault": {"action": action, "operations": operations, "names": names}})

    def heal(self) -> None:
        """End the fault; what hangs goes on."""
        self._ask({"fault": None})

    @property
    def hits(self) -> int:
        """How many operations the present fault has met."""
        return int(self._ask({})["hits"])

    @property
    def hung(self) -> int:
        """How many operations wait for an answer now."""
        return int(self._ask({})["hung"])

    def close(self) -> None:
        """Unmount, whoever is stuck in it: the end of the server fails every waiting request."""
        self._server.kill()
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, capture_output=True)
        assert not os.path.ismount(self.path), f"{self.path} is still mounted"


@contextlib.contextmanager
def faulty_mount(directory: Path, *, kind: Sequence[str] = ()) -> Iterator[FaultyMount]:
    """Mount ``directory/mnt`` over ``directory/backing``; of the kind "keeps-locks", no lock ends there."""
    backing, mountpoint = directory / "backing", directory / "mnt"
    backing.mkdir()
    mountpoint.mkdir()
    mount = FaultyMount(backing, mountpoint, directory / "control", kind=kind)
    try:
        yield mount
    finally:
        mount.close()
