"""A file is taken out of its directory only if the path leads to the very file that was worked on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmlockctl.errors import HostLeaseLost, StorageError, StorageRefused
from vmlockctl.lease.steps import Area, read_sectors, write_sectors
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.storage.driver import Driver

SECONDS = 5.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lease"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def driver(path: Path) -> Iterator[Driver]:
    """A driver that has read the file, and so has it open."""
    with Driver() as driver:
        driver.run(read_sectors(Area(str(path), 0, DEFAULT_GEOMETRY), 0, 1, SECONDS))
        yield driver


def put_another(path: Path) -> Path:
    """A copy in its place, to the byte."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)
    return path


def test_the_file_is_gone_and_can_still_be_written(driver: Driver, path: Path) -> None:
    opened = path.open("rb")
    assert driver.is_current(str(path), SECONDS)
    driver.unlink(str(path), SECONDS)
    assert not path.exists()
    assert not driver.is_current(str(path), SECONDS)
    driver.run(write_sectors(Area(str(path), 0, DEFAULT_GEOMETRY), 0, b"x" * 512, SECONDS, what="test"))
    with opened:
        assert opened.read(512) == b"x" * 512


def test_another_file_is_left_alone(driver: Driver, path: Path) -> None:
    put_another(path)
    assert not driver.is_current(str(path), SECONDS)
    with pytest.raises(StorageRefused, match="another file"):
        driver.unlink(str(path), SECONDS)
    assert path.exists()


def test_a_link_is_left_alone(driver: Driver, path: Path) -> None:
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(moved)
    assert driver.is_current(str(path), SECONDS)
    with pytest.raises(StorageRefused):
        driver.unlink(str(path), SECONDS)
    assert path.is_symlink()
    assert moved.exists()


def test_a_guard_that_refuses(path: Path) -> None:
    def refuse() -> None:
        raise HostLeaseLost("expired")

    with Driver(guard=refuse) as driver:
        driver.run(read_sectors(Area(str(path), 0, DEFAULT_GEOMETRY), 0, 1, SECONDS))
        with pytest.raises(HostLeaseLost):
            driver.unlink(str(path), SECONDS)
        assert driver.write_count == 0
    assert path.exists()


def test_a_directory_that_refuses_tells_why(
    driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(StorageError, match="cannot remove"):
        driver.unlink(str(path), SECONDS)
