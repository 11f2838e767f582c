"""A command on a terminal of its own: what stands on the screen, which keys it gets, what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.support.programs import find_program
from tests.support.waiting import wait_for

ENTER_ALTERNATE, LEAVE_ALTERNATE = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_HOME = "\x1b[H"
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PATIENCE_SECONDS = 0.1


class Terminal:
    """The controlling terminal of the session that the command runs in: Ctrl-C reaches it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], columns: int, lines: int
    ) -> None:
        self._master, self._slave = os.openpty()
        self.resize(columns, lines)
        self.modes_before = termios.tcgetattr(self._slave)
        self._output = ""
        self._ended = threading.Event()
        self._process = subprocess.Popen(
            [find_program("setsid"), "--ctty", *command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=_of_terminal(environment),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything that was ever written."""
        return self._output

    @property
    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self._slave))

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def screen(self) -> str:
        """The last whole frame of a screen that is redrawn from its upper left corner, as plain text."""
        frames = self._output.split(_HOME)
        return as_text(frames[-2]) if len(frames) > 2 else ""

    def wait_for_screen(self, what: str, condition: Callable[[str], object], *, within: float) -> str:
        """The first frame of which ``condition`` holds."""

        def seen() -> str:
            frame = self.screen()
            return frame if frame and condition(frame) else ""

        try:
            return wait_for(what, seen, within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}; on the screen:\n{self.screen()}") from None

    def wait(self, *, within: float) -> int:
        status = self._process.wait(timeout=within)
        self._stop_reading()
        return status

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._stop_reading()
        os.close(self._master)
        os.close(self._slave)

    def _stop_reading(self) -> None:
        self._ended.set()
        self._reader.join(10)

    def _read(self) -> None:
        """Until the command has ended and nothing more is there."""
        while True:
            has_ended = self._ended.is_set()
            readable, _, _ = select.select([self._master], [], [], _PATIENCE_SECONDS)
            if readable:
                self._output += os.read(self._master, 65536).decode("utf-8", "replace")
            elif has_ended:
                return


def _of_terminal(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what the test run says of its own terminal."""
    own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**own, "TERM": "xterm-256color"}


def as_text(output: str) -> str:
    """What a person reads of it."""
    return _SEQUENCE.sub("", output).replace("\r\n", "\n")


@contextlib.contextmanager
def on_terminal(
    command: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, lines: int = 40
) -> Iterator[Terminal]:
    terminal = Terminal(command, environment, columns, lines)
    try:
        yield terminal
    finally:
        terminal.close()
