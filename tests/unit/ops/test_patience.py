"""Looks at storage that may not answer: given up soon, not asked for a while, and then again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vmlockctl.errors import IoTimeout, NoSuchDisk
from vmlockctl.storage import patience
from vmlockctl.storage.patience import answers, is_there, patiently, real_path, silent_directories


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until this is set, a look at /dead hangs."""
    event = threading.Event()
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(patience, "_silent", {})
    yield event
    event.set()


def test_one_who_watches_asks_again(answered: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> str:
        assert answered.wait(20)
        return "there"

    with pytest.raises(IoTimeout, match=r"/dead/a: no answer .* within 0\.1 s"):
        patiently("/dead/a", look)
    assert silent_directories() == ["/dead"]
    answered.set()
    with pytest.raises(IoTimeout, match="did not answer the look before"):
        patiently("/dead/b", look)
    assert (is_there("/dead/a"), answers("/dead/a"), real_path("/dead/a")) == (True, False, "/dead/a")
    monkeypatch.setattr(patience, "_SILENT_SECONDS", 0.0)
    assert patiently("/dead/b", look) == "there"
    assert silent_directories() == []


def test_what_a_look_raises_is_raised(answered: threading.Event) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (FileNotFoundError(2, "gone"), NoSuchDisk("no disk"), ValueError("null byte")):
        with pytest.raises(type(error)):
            patiently("/a/b", lambda error=error: fail(error))
    threads = threading.active_count()
    assert [patiently("/a/b", lambda: 7) for _ in range(5)] == [7] * 5
    assert threading.active_count() == threads
    assert not answered.is_set()
