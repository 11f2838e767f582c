"""Control groups of a test's own: the freezer, and a limit on memory (cgroup v1, as root)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.waiting import wait_for

TOP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def _group(controller: str, name: str) -> Iterator[Path]:
    top = TOP / controller
    group = top / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup v1 {controller} to make a group in: {error.strerror}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (top / "cgroup.procs").write_text(pid)
        wait_for("an empty group", lambda: not (group / "cgroup.procs").read_text(), within=10)
        group.rmdir()


def _move(group: Path, pids: Sequence[int]) -> None:
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


class Freezer:
    """Processes that can be frozen and thawed together: not even SIGKILL reaches them meanwhile."""

    def __init__(self, group: Path) -> None:
        self._state = group / "freezer.state"

    def freeze(self) -> None:
        self._state.write_text("FROZEN")
        wait_for("the freeze", lambda: self._state.read_text() == "FROZEN\n", within=10)

    def thaw(self) -> None:
        self._state.write_text("THAWED")


@contextlib.contextmanager
def freezer(name: str, pids: Sequence[int]) -> Iterator[Freezer]:
    with _group("freezer", name) as group:
        _move(group, pids)
        frozen = Freezer(group)
        try:
            yield frozen
        finally:
            frozen.thaw()


@contextlib.contextmanager
def no_more_memory(name: str, pids: Sequence[int]) -> Iterator[None]:
    """The next page that one of them asks for is one too many: the kernel's OOM killer takes it.

    What they have already stays charged elsewhere.
    """
    with _group("memory", name) as group:
        (group / "memory.limit_in_bytes").write_text("0")
        _move(group, pids)
        yield
