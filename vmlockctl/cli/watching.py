"""Looking again and again: on a screen that redraws in place, or as one block after the other.

The looks happen in a thread of their own, so that ages count on, and a storage that hangs shows, while one is
on its way. What ends a watch is the person, never the storage; the caller has looked once before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Generic, Optional, TypeVar

from vmlockctl import clock
from vmlockctl.errors import VmlockctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

T = TypeVar("T")

_REDRAW_SECONDS = 0.5  # ages are shown to the second, and to a tenth below ten
_QUIT_KEYS = b"qQ"


class Sight(Generic[T]):
    """The last good look, and what is wrong since."""

    def __init__(self, seen: T, age: float, trouble: str = "", trouble_since: float = 0.0) -> None:
        self.seen = seen
        self.age = age  # seconds since the look
        self.trouble = trouble  # why there is no newer one; "" where all is well
        self.trouble_since = trouble_since  # seconds since the epoch


class _Looker(Generic[T]):
    """Looks every ``interval`` seconds, in a thread."""

    def __init__(self, first: T, look: Callable[[], T], interval: float) -> None:
        self._look = look
        self._interval = interval
        self._good = (first, clock.monotonic())
        self._began_at = 0.0
        self._is_looking = False
        self._trouble = ""
        self._failed_at = 0.0
        self._bug: Optional[Exception] = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="looks", daemon=True).start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._began_at, self._is_looking = clock.monotonic(), True
            try:
                seen = self._look()
            except VmlockctlError as error:
                self._failed_at = self._failed_at or self._began_at
                self._trouble = error.message
            except Exception as error:  # noqa: BLE001 - raised where the screen is put away first
                self._bug = error
                return
            else:
                self._good = (seen, clock.monotonic())
                self._trouble, self._failed_at = "", 0.0
            self._is_looking = False

    def sight(self) -> Sight[T]:
        if self._bug is not None:
            raise self._bug
        (seen, seen_at), now = self._good, clock.monotonic()
        trouble, since = self._trouble, self._failed_at
        if not trouble and self._is_looking and now - self._began_at > max(1.0, self._interval):
            trouble, since = "no answer from the storage yet", self._began_at
        return Sight(seen, now - seen_at, trouble, clock.wall() - (now - since))

    def stop(self) -> None:
        self._stop.set()


def watch_on_screen(
    first: T,
    look: Callable[[], T],
    draw: Callable[[Sight[T], Console], RenderableType],
    interval: float,
    console: Console,
) -> None:
    """Redraw until ``q``; Ctrl-C and SIGTERM raise ``KeyboardInterrupt``. The terminal is left as it was."""
    from rich.live import Live

    looker = _Looker(first, look, interval)
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(draw(looker.sight(), console), refresh=True)
                if pressed(_REDRAW_SECONDS) in _QUIT_KEYS:
                    return
    finally:
        looker.stop()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """Keys without Enter and without echo, one a call, or none within its seconds."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _unechoed() as fd:

            def pressed(seconds: float) -> bytes:
                readable, _, _ = select.select([] if fd is None else [fd], [], [], seconds)
                return (os.read(fd, 1) or _QUIT_KEYS[:1]) if fd is not None and readable else b" "

            yield pressed
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextlib.contextmanager
def _unechoed() -> Iterator[Optional[int]]:
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    modes = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, modes)


def watch_in_blocks(
    first: T,
    look: Callable[[], T],
    show: Callable[[T], None],
    complain: Callable[[VmlockctlError], None],
    interval: float,
) -> None:
    """One block after the other, for ever; a look that fails is told and the next is made."""
    show(first)
    while True:
        sys.stdout.flush()
        clock.sleep(interval)
        try:
            seen = look()
        except VmlockctlError as error:
            complain(error)
        else:
            show(seen)
