"""Direct I/O keeps its word on every device: aligned, exact, on the storage, and never a byte longer."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from tests.contract.conftest import SIZE, Device, pattern
from tests.support import filesystems
from tests.support.disk import read_direct
from vmlockctl.errors import (
    EXIT_DATA,
    EXIT_NO_SUCH,
    EXIT_PERMISSION,
    EXIT_STORAGE,
    CannotCreate,
    NoDirectIo,
    NoSuchArea,
    OnDiskError,
    StorageError,
    StorageRefused,
    TruncatedArea,
)
from vmlockctl.lease.steps import Area, read_sectors, write_sectors
from vmlockctl.storage.device import Buffer, open_direct, read_exact, storage_error, write_exact
from vmlockctl.storage.driver import Driver
from vmlockctl.storage.reader import read_pieces

OFFSET = 1 << 20


def open_and_read(path: str, offset: int, size: int) -> bytes:
    fd = open_direct(path, writable=False)
    try:
        return read_exact(fd, path, offset, size, Buffer(max(size, 4096)))
    finally:
        os.close(fd)


def open_and_write(path: str, offset: int, data: bytes) -> None:
    fd = open_direct(path, writable=True)
    try:
        write_exact(fd, path, offset, data, Buffer(max(len(data), 4096)))
    finally:
        os.close(fd)


# -- the suite of every device ------------------------------------------------------------------------


def test_reads_are_exact(device: Device) -> None:
    whole = pattern(SIZE)
    for offset, size in [(0, device.unit), (device.unit, 4096), (OFFSET, 1 << 20), (SIZE - 4096, 4096)]:
        assert open_and_read(device.path, offset, size) == whole[offset : offset + size]


def test_writes_are_exact_and_there_for_everybody(device: Device) -> None:
    data = b"\xee" * device.unit
    open_and_write(device.path, OFFSET, data)
    whole = pattern(SIZE)
    expected = whole[:OFFSET] + data + whole[OFFSET + len(data) :]
    assert read_direct(Path(device.path), 0, SIZE) == expected
    assert open_and_read(device.path, OFFSET - 4096, 8192) == expected[OFFSET - 4096 : OFFSET + 4096]


def test_a_whole_area_in_one_write(device: Device) -> None:
    data = pattern(device.geometry.align_size, first=7_000_000)
    open_and_write(device.path, 0, data)
    assert open_and_read(device.path, 0, len(data)) == data


def test_an_area_that_is_too_short(device: Device) -> None:
    last = SIZE - device.unit
    with pytest.raises(TruncatedArea) as caught:
        open_and_read(device.path, last, 4096 + device.unit)
    assert caught.value.exit_code == EXIT_DATA
    assert f"found {device.unit} bytes, expected {4096 + device.unit} bytes" in caught.value.message
    with pytest.raises(TruncatedArea, match="found 0 bytes"):
        open_and_read(device.path, SIZE, device.unit)
    for offset in (last, SIZE, SIZE + (1 << 20)):
        with pytest.raises(TruncatedArea, match="too short to write to"):
            open_and_write(device.path, offset, bytes(device.unit * 2))
    assert device.backing.stat().st_size == SIZE, "a write never makes an area longer"
    assert open_and_read(device.path, last, device.unit) == pattern(SIZE)[last:]


def test_a_descriptor_for_reading_cannot_write(device: Device) -> None:
    fd = open_direct(device.path, writable=False)
    try:
        with pytest.raises(StorageError, match="cannot write"):
            write_exact(fd, device.path, 0, bytes(device.unit), Buffer(4096))
    finally:
        os.close(fd)


def test_descriptors_are_direct_synchronous_and_not_inherited(device: Device) -> None:
    for writable in (False, True):
        fd = open_direct(device.path, writable=writable)
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            assert flags & os.O_DIRECT
            assert bool(flags & os.O_SYNC == os.O_SYNC) == writable
            assert (flags & os.O_ACCMODE == os.O_RDWR) == writable
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        finally:
            os.close(fd)


@pytest.mark.parametrize("size", [511, 513, 256])
def test_an_io_that_is_not_aligned_is_refused(device: Device, size: int) -> None:
    with pytest.raises(NoDirectIo, match=f"direct read of {size} bytes refused"):
        open_and_read(device.path, 0, size)
    with pytest.raises(NoDirectIo):
        open_and_read(device.path, 1, device.unit)


def test_sectors_that_are_too_small_for_the_device(device: Device) -> None:
    if device.unit == 512:
        assert len(open_and_read(device.path, 512, 512)) == 512
        return
    with pytest.raises(NoDirectIo) as caught:
        open_and_read(device.path, 512, 512)
    assert caught.value.exit_code == EXIT_STORAGE
    with pytest.raises(StorageError, match="cannot write"):
        open_and_write(device.path, 512, bytes(512))


def test_a_procedure_on_a_device(device: Device) -> None:
    area = Area(device.path, device.geometry.align_size, device.geometry)
    size = device.unit
    with Driver() as driver:
        driver.run(write_sectors(area, 3, b"\x77" * size, 5, what="a test"))
        assert driver.run(read_sectors(area, 2, 3, 5)) == (
            pattern(SIZE)[area.byte_offset(2) :][:size]
            + b"\x77" * size
            + pattern(SIZE)[area.byte_offset(4) :][:size]
        )
        image = driver.run(read_sectors(area, 0, device.geometry.sectors, 5))
        assert len(image) == device.geometry.align_size
        with pytest.raises(TruncatedArea):
            driver.run(read_sectors(Area(device.path, SIZE - size, device.geometry), 0, 2, 5))


def test_pieces_may_be_short(device: Device) -> None:
    found = read_pieces(device.path, [(0, 4096), (SIZE - 4096, 8192), (SIZE, 4096)], timeout_seconds=5)
    whole = pattern(SIZE)
    assert found.size == SIZE
    assert found.pieces == [whole[:4096], whole[-4096:], b""]
    assert read_pieces(device.path, [], timeout_seconds=5).pieces == []


# -- what is no device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("writable", [True, False])
def test_a_missing_path(tmp_path: Path, writable: bool) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        with pytest.raises(NoSuchArea) as caught:
            open_direct(str(path), writable=writable)
        assert caught.value.exit_code == EXIT_NO_SUCH
        assert caught.value.message.startswith(f"{path}: cannot open: ")
    with pytest.raises(NoSuchArea):
        read_pieces(str(tmp_path / "none"), [(0, 4096)], timeout_seconds=5)


@pytest.mark.parametrize("writable", [True, False])
def test_a_directory(tmp_path: Path, writable: bool) -> None:
    with pytest.raises(OnDiskError, match="directory"):
        open_direct(str(tmp_path), writable=writable)


@pytest.mark.parametrize("writable", [True, False])
def test_a_fifo_is_refused_at_once(tmp_path: Path, writable: bool) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OnDiskError, match="neither a regular file nor a block device"):
        open_direct(str(path), writable=writable)


@pytest.mark.parametrize("writable", [True, False])
def test_a_character_device_and_a_socket(tmp_path: Path, writable: bool) -> None:
    with pytest.raises((OnDiskError, StorageError)):
        open_direct("/dev/null", writable=writable)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises((OnDiskError, NoSuchArea)):
            open_direct(str(tmp_path / "socket"), writable=writable)


def test_refusals_leave_no_descriptor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = set(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null"), tmp_path / "none"):
        with pytest.raises((OnDiskError, StorageError, NoSuchArea)):
            open_direct(str(path), writable=False)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_read_only_mount(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "area").write_bytes(pattern(8192))
    with filesystems.read_only(source, tmp_path / "mount") as mount:
        path = str(mount / "area")
        with pytest.raises(StorageRefused) as caught:
            open_direct(path, writable=True)
        assert caught.value.exit_code == EXIT_PERMISSION
        assert "read-only" in str(caught.value.hint)
        assert open_and_read(path, 4096, 4096) == pattern(8192)[4096:]


def test_storage_without_direct_io(tmp_path: Path) -> None:
    """No fallback to cached reads: they may be a minute old (faults.md finding 7)."""
    with filesystems.without_direct_io(tmp_path) as mount:
        path = mount / "area"
        path.write_bytes(pattern(8192))
        for writable in (True, False):
            with pytest.raises(NoDirectIo) as caught:
                open_direct(str(path), writable=writable)
            assert caught.value.exit_code == EXIT_STORAGE


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("ENOENT", NoSuchArea),
        ("ENOTDIR", NoSuchArea),
        ("ENXIO", NoSuchArea),
        ("ENODEV", NoSuchArea),
        ("EACCES", StorageRefused),
        ("EPERM", StorageRefused),
        ("EROFS", StorageRefused),
        ("ENOSPC", CannotCreate),
        ("EDQUOT", CannotCreate),
        ("EFBIG", CannotCreate),
        ("EIO", StorageError),
        ("ESTALE", StorageError),
        ("ENOTCONN", StorageError),
        ("EBADF", StorageError),
        ("ETIMEDOUT", StorageError),
        ("EMFILE", StorageError),
    ],
)
def test_what_an_error_of_the_storage_means(name: str, condition: type[Exception]) -> None:
    import errno

    number = getattr(errno, name)
    error = storage_error(OSError(number, os.strerror(number)), "/leases/x:512", "cannot read")
    assert type(error) is condition
    assert error.message == f"/leases/x:512: cannot read: {os.strerror(number)}"
    assert type(storage_error(OSError("odd"), "/x", "cannot read")) is StorageError
