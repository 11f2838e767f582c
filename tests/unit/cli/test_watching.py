"""A watch outlives its storage, tells a hang, and puts the screen away whatever happens."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.text import Text

from tests.support.terminal import ENTER_ALTERNATE, LEAVE_ALTERNATE, SHOW_CURSOR
from vmlockctl.cli.watching import Sight, watch_in_blocks, watch_on_screen
from vmlockctl.errors import StorageError, VmlockctlError


class Done(Exception):
    """Ends a watch from inside its drawing."""


def watched(look: Callable[[], int], until: Callable[[Sight[int]], bool]) -> tuple[list[Sight[int]], str]:
    """The sights of a watch until one of them is the last, and all that the terminal got."""
    sights: list[Sight[int]] = []
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=5)

    def draw(sight: Sight[int], _console: Console) -> Text:
        sights.append(sight)
        if until(sight):
            raise Done
        return Text(str(sight.seen))

    with pytest.raises(Done):
        watch_on_screen(0, look, draw, 0.01, console)
    assert isinstance(console.file, io.StringIO)
    return sights, console.file.getvalue()


def test_the_screen_is_put_away_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    _, output = watched(lambda: 1, lambda sight: sight.seen == 1)
    assert output.index(ENTER_ALTERNATE) < output.index(LEAVE_ALTERNATE)
    assert output.rindex(SHOW_CURSOR) > output.index(ENTER_ALTERNATE)
    assert signal.getsignal(signal.SIGTERM) == before


def test_our_own_bug_ends_it() -> None:
    def look() -> int:
        raise ValueError("ours")

    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="ours"):
        watch_on_screen(0, look, lambda _sight, _console: Text(), 0.01, console)


def test_a_storage_that_fails_and_comes_back() -> None:
    looks = iter([1, StorageError("gone"), StorageError("gone"), 2])
    seen_trouble = threading.Event()

    def look() -> int:
        result = next(looks, 2)
        if isinstance(result, StorageError):
            seen_trouble.wait(10)
            raise result
        return result

    def until(sight: Sight[int]) -> bool:
        if sight.seen == 1:
            seen_trouble.set()
        return sight.seen == 2

    sights, _ = watched(look, until)
    assert not sights[-1].trouble
    assert {sight.trouble for sight in sights} <= {"", "gone"}


def test_trouble_keeps_the_last_good_look_and_since_when() -> None:
    def look() -> int:
        raise StorageError("gone")

    sights, _ = watched(look, lambda sight: bool(sight.trouble) and sight.age > 0.8)
    troubled = [sight for sight in sights if sight.trouble]
    assert {sight.seen for sight in troubled} == {0}
    since = [sight.trouble_since for sight in troubled]
    assert max(since) - min(since) < 0.1


def test_a_look_that_hangs_is_told() -> None:
    hang = threading.Event()

    def look() -> int:
        hang.wait(30)
        return 1

    sights, _ = watched(look, lambda sight: bool(sight.trouble))
    hang.set()
    assert sights[-1].trouble == "no answer from the storage yet"
    assert sights[-1].age >= 1.0


def test_blocks_go_on_after_an_error() -> None:
    told: list[object] = []
    looks = iter([StorageError("gone"), 2])

    def look() -> int:
        result = next(looks, None)
        if result is None:
            raise Done
        if isinstance(result, VmlockctlError):
            raise result
        return int(str(result))

    with pytest.raises(Done):
        watch_in_blocks(1, look, told.append, lambda error: told.append(error.message), 0.0)
    assert told == [1, "gone", 2]
