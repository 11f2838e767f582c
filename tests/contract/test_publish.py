"""A lease area appears whole or not at all, once, with the mode and the owner that were asked for."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import SIZE, Device, pattern
from tests.support import filesystems
from vmlockctl.errors import (
    EXIT_EXISTS,
    CannotCreate,
    NoDirectIo,
    NoSuchArea,
    OnDiskError,
    StorageRefused,
    TruncatedArea,
    WrongMagic,
)
from vmlockctl.ondisk.area import lockspace_area, unpublished_lockspace_area
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import verify_delta
from vmlockctl.storage import publish
from vmlockctl.storage.publish import format_in_place, publish_file, replace_file
from vmlockctl.units import MIB

AREA = lockspace_area(DEFAULT_GEOMETRY, space_name="ls", io_timeout=10)


def publishing(path: Path, *, mode: int = 0o600, area: bytes = AREA) -> bool:
    return publish_file(str(path), area, sector_size=512, owner=None, mode=mode, timeout_seconds=30)


@pytest.fixture(params=[0o000, 0o077, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "area"
    assert publishing(path)
    assert path.read_bytes() == AREA
    assert os.listdir(tmp_path) == ["area"]
    assert path.stat().st_nlink == 1
    assert path.stat().st_blocks * 512 >= len(AREA), "a renewal never has to find room"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_the_mode_is_what_was_asked_for(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "area"
    assert publishing(path, mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_owner(tmp_path: Path) -> None:
    filesystems.need_root()
    path = tmp_path / "area"
    assert publish_file(
        str(path), AREA, sector_size=512, owner=(65534, 65534), mode=0o660, timeout_seconds=30
    )
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    ours = (os.getuid(), os.getgid())
    assert publish_file(
        str(tmp_path / "ours"), AREA, sector_size=512, owner=ours, mode=0o600, timeout_seconds=30
    )


def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "area"
    path.write_bytes(b"somebody else's")
    path.chmod(0o604)
    before = path.stat()
    assert not publishing(path)
    after = path.stat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert path.read_bytes() == b"somebody else's"
    assert os.listdir(tmp_path) == ["area"]


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "area"
    path.symlink_to(tmp_path / "elsewhere")
    assert not publishing(path)
    assert sorted(os.listdir(tmp_path)) == ["area"]


def test_it_is_whole_when_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists is initialised: so libvirt takes it."""
    path = tmp_path / "area"
    real, seen = os.link, []

    def link(source: str, target: str) -> None:
        assert not path.exists()
        assert os.path.basename(source).startswith(".area.")
        assert Path(source).read_bytes() == AREA
        seen.append(source)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert publishing(path)
    assert len(seen) == 1


def test_of_many_at_once_one_creates_it(tmp_path: Path) -> None:
    path = tmp_path / "area"
    results: list[bool] = []
    start = threading.Barrier(8)

    def publisher() -> None:
        start.wait()
        results.append(publishing(path))

    publishers = [threading.Thread(target=publisher) for _ in range(8)]
    for thread in publishers:
        thread.start()
    for thread in publishers:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert os.listdir(tmp_path) == ["area"]
    assert path.read_bytes() == AREA


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(NoSuchArea, match="area: cannot create: No such file or directory"):
        publishing(tmp_path / "none" / "area")


@pytest.mark.real("mkfs.ext4")
def test_a_full_file_system(tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path, size_mib=8) as mount:
        filesystems.fill(mount)
        before = sorted(os.listdir(mount))
        with pytest.raises(CannotCreate, match="No space left on device") as caught:
            publishing(mount / "area")
        assert caught.value.exit_code == EXIT_EXISTS
        assert sorted(os.listdir(mount)) == before, "no half-made file is left"


def test_a_read_only_file_system(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with filesystems.read_only(source, tmp_path / "mount") as mount, pytest.raises(StorageRefused):
        publishing(mount / "area")
    assert os.listdir(source) == []


def test_a_file_system_without_direct_io(tmp_path: Path) -> None:
    with filesystems.without_direct_io(tmp_path) as mount:
        with pytest.raises((NoDirectIo, CannotCreate)):
            publishing(mount / "area")
        assert os.listdir(mount) == []


@pytest.mark.parametrize("step", ["fchmod", "posix_fallocate", "fsync", "link"])
def test_a_failure_at_every_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.os, step, fail)
    with pytest.raises(CannotCreate):
        publishing(tmp_path / "area")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["posix_fallocate", "link"])
def test_a_file_system_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(publish.os, step, refuse)
    with pytest.raises(CannotCreate, match="cannot allocate or link files"):
        publishing(tmp_path / "area")
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(22, "Invalid argument")
        real(fd)

    monkeypatch.setattr(publish.os, "fsync", fsync)
    assert publishing(tmp_path / "area")


# -- in place ----------------------------------------------------------------------------------------------


def test_formatting_in_two_writes(device: Device) -> None:
    geometry = device.geometry
    area = lockspace_area(geometry, space_name="ls", io_timeout=10)
    size = geometry.sector_size
    format_in_place(
        device.path, geometry.align_size, (unpublished_lockspace_area(area), area[:size]), timeout_seconds=30
    )
    content = device.backing.read_bytes()
    assert content[geometry.align_size : 2 * geometry.align_size] == area
    before = content[: geometry.align_size]
    assert before == pattern(SIZE)[: geometry.align_size], "nothing beside it was touched"


def test_a_crash_between_the_two_writes_leaves_what_everybody_refuses(tmp_path: Path) -> None:
    path = tmp_path / "area"
    path.write_bytes(bytes(1 << 20))
    format_in_place(str(path), 0, (unpublished_lockspace_area(AREA),), timeout_seconds=30)
    with pytest.raises(WrongMagic):
        verify_delta(path.read_bytes()[:512], space_name="ls")


def test_formatting_what_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "area"
    path.write_bytes(bytes(4096))
    with pytest.raises(TruncatedArea):
        format_in_place(str(path), 0, (AREA,), timeout_seconds=30)
    assert path.read_bytes() == bytes(4096)


def test_formatting_a_directory(tmp_path: Path) -> None:
    with pytest.raises(OnDiskError):
        format_in_place(str(tmp_path), 0, (AREA,), timeout_seconds=30)


def test_areas_of_every_geometry(tmp_path: Path) -> None:
    for number, geometry in enumerate([DEFAULT_GEOMETRY, Geometry(4096, 8 * MIB)]):
        area = lockspace_area(geometry, space_name="ls", io_timeout=10)
        assert publishing(tmp_path / str(number), area=area)
        assert (tmp_path / str(number)).read_bytes() == area


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """With its owner and mode; whoever has the old one open sees that its records are gone."""
    path, link = tmp_path / "area", tmp_path / "link"
    path.write_bytes(b"\xa5" * len(AREA))
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    link.symlink_to(path)
    with path.open("rb") as old:
        replace_file(str(link), AREA, timeout_seconds=30)
        assert old.read() == bytes(len(AREA))
    after = path.stat()
    assert path.read_bytes() == AREA
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(os.listdir(tmp_path)) == ["area", "link"]
    assert link.is_symlink()


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path, size_mib=8) as mount:
        path = mount / "area"
        path.write_bytes(b"the old one")
        filesystems.fill(mount)
        names = sorted(os.listdir(mount))
        with pytest.raises(CannotCreate, match="No space left on device"):
            replace_file(str(path), AREA, timeout_seconds=30)
        assert path.read_bytes() == b"the old one"
        assert sorted(os.listdir(mount)) == names
