"""Child processes of our own: started, watched by pidfd, and seen to be gone."""

from __future__ import annotations

import subprocess
import tempfile

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


class Child:
    """A process in the background; what it says goes to a file, so that it never blocks on us."""

    def __init__(self, command: Sequence[str]) -> None:
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by finish
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        self.pid = self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        self._process.terminate()

    def finish(self, *, kill: bool = False) -> Finished:
        """Wait for its end, after a SIGKILL if asked for, and return what it said."""
        if kill:
            self._process.kill()
        status = self._process.wait()
        self._output.seek(0)
        text = self._output.read()
        self._output.close()
        return Finished(status, "", text)


def run_to_end(command: Sequence[str], *, timeout_seconds: Optional[float] = None) -> Finished:
    """Run a command; one that takes too long is killed, with the status of ``timeout``."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finished(124, "", f"vmlockctl: no answer within {timeout_seconds:g} s")
    return Finished(done.returncode, done.stdout, done.stderr)
