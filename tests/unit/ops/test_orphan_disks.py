"""Gone, or merely out of sight: what is around a disk decides, and doubt is "out of sight"."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vmlockctl.ops.orphans import disks
from vmlockctl.ops.orphans.disks import GONE, OUT_OF_SIGHT, THERE, look_for
from vmlockctl.storage import patience


def test_there(tmp_path: Path) -> None:
    (tmp_path / "a.img").touch()
    assert look_for(str(tmp_path / "a.img")).state == THERE


def test_gone_beside_others(tmp_path: Path) -> None:
    (tmp_path / "b.img").touch()
    sight = look_for(str(tmp_path / "a.img"))
    assert sight.state == GONE
    assert "with 1 other" in sight.evidence


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        ("{}/missing/a.img", "neither is"),
        ("{}/empty/a.img", "is empty"),
        ("{}/file/a.img", "neither is"),
        ("{}/link", "a link to"),
        ("/dev/mapper/vg-no-such-volume", "not active"),
        ("a.img", "no absolute path"),
    ],
)
def test_out_of_sight(tmp_path: Path, disk: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    sight = look_for(disk.format(tmp_path))
    assert sight.state == OUT_OF_SIGHT
    assert why in sight.evidence


def test_a_file_system_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mount point may hold files of its own."""
    (tmp_path / "b.img").touch()
    monkeypatch.setattr(disks, "unmounted_above", lambda _path: str(tmp_path))
    sight = look_for(str(tmp_path / "a.img"))
    assert sight.state == OUT_OF_SIGHT
    assert "is not mounted" in sight.evidence


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.img").touch()

    def refuse(_path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disks.os, "listdir", refuse)
    assert look_for(str(tmp_path / "a.img")).state == OUT_OF_SIGHT


def test_storage_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up soon, and for the next disk in that directory at once; other directories are looked at."""
    answered = threading.Event()
    asked: list[str] = []

    def hang(path: str) -> None:
        asked.append(path)
        if "dead" in path:
            assert answered.wait(20)
        raise FileNotFoundError(path)

    monkeypatch.setattr(disks.os, "stat", hang)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    try:
        for name in ("a.img", "b.img"):
            sight = look_for(f"{tmp_path}/dead/{name}")
            assert sight.state == OUT_OF_SIGHT
            assert "answer" in sight.evidence
        look_for(f"{tmp_path}/c.img")
        assert asked[:2] == [f"{tmp_path}/dead/a.img", f"{tmp_path}/c.img"]
    finally:
        answered.set()
