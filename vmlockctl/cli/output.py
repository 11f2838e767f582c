"""stdout is data, stderr is talk: tables on a terminal, aligned plain text when piped, JSON when asked."""

from __future__ import annotations

import os
import sys

from vmlockctl import clock
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional

SCHEMA = 1


def print_json(content: dict[str, Any]) -> None:
    """One object, keys in the order given, only ASCII: no name can reach a terminal raw."""
    import json

    print(json.dumps({"schema": SCHEMA, **content}, default=str))


def say(text: str, *, quiet: bool = False) -> None:
    """Talk, on stderr."""
    if not quiet:
        print(safe(text), file=sys.stderr)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A rich table on a terminal; aligned text that is never cut otherwise."""
    rows = [[safe(cell) for cell in row] for row in rows]
    if is_terminal():
        _print_rich_table(headings, rows, title)
        return
    if title:
        print(title)
    widths = [max(len(row[i]) for row in [list(headings), *rows]) for i in range(len(headings))]
    for row in [list(headings), *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _print_rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    Console(no_color=bool(os.environ.get("NO_COLOR"))).print(table)


_STYLES = {
    "live": "green",
    "dead": "red",
    "fail": "yellow",
    "unknown": "yellow",
    "lost": "bold red",
    "PASS": "green",
    "FAIL": "bold red",
    "running": "cyan",
    "critical": "bold red",
    "warning": "yellow",
}


class Progress:
    """Shows a wait: a bar with an ETA on a terminal, one line on stderr otherwise.

    ``wait`` sleeps; give it to an operation as its ``on_wait``.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._told = ""
        self._total = 0.0
        self._bar: Any = None
        self._task: Any = None

    def wait(self, seconds: float, why: str, left_seconds: float) -> None:
        """Sleep for ``seconds`` of a wait that takes ``left_seconds`` in all, showing why."""
        if left_seconds > 1 or self._bar is not None:
            self._show(why, left_seconds)
        end = clock.monotonic() + seconds
        while True:
            left = end - clock.monotonic()
            if left <= 0:
                return
            clock.sleep(min(0.1 if self._bar is not None else left, left))
            if self._bar is not None:
                over = self._total - left_seconds + seconds - max(0.0, left)
                self._bar.update(self._task, completed=over)

    def _show(self, why: str, left_seconds: float) -> None:
        if self._quiet:
            return
        is_new, self._told = why != self._told, why
        if not sys.stderr.isatty():
            if is_new:
                say(f"{why} ({format_seconds(left_seconds)})")
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        if self._bar is None:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(safe(why), total=left_seconds)
        if is_new:
            self._total = left_seconds
            self._bar.reset(self._task, total=left_seconds, description=safe(why))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class HolderNotice:
    """For ``acquire --wait``: says who is waited for, once per holder."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._told = ""

    def __call__(self, why: str, seconds_left: Optional[float]) -> None:
        if why == self._told:
            return
        self._told = why
        limit = "" if seconds_left is None else f" (at most {format_seconds(seconds_left)})"
        say(f"waiting{limit}: {why}", quiet=self._quiet)


def columns(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """``name  value`` lines with the values aligned."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        yield f"{name.ljust(width)}  {safe(value)}"
