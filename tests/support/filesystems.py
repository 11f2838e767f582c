"""Small real file systems, for what only a file system of one's own can show: full, read-only,
without O_DIRECT.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.programs import find_program


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@contextlib.contextmanager
def mounted(mountpoint: Path, *arguments: str) -> Iterator[Path]:
    """Mount for the length of a block; a mount that is still in use is detached, so nothing is left over."""
    need_root()
    mountpoint.mkdir(exist_ok=True)
    _run("mount", *arguments, str(mountpoint))
    try:
        yield mountpoint
    finally:
        _run("umount", "--lazy", str(mountpoint))


def make_ext4(image: Path, *, size_mib: int) -> Path:
    with image.open("wb") as file:
        file.truncate(size_mib * 1024 * 1024)
    _run(find_program("mkfs.ext4"), "-q", "-F", "-m", "0", str(image))
    return image


@contextlib.contextmanager
def ext4(directory: Path, *, size_mib: int = 32, options: Sequence[str] = ()) -> Iterator[Path]:
    """A loop-mounted ext4 of its own."""
    need_root()
    image = make_ext4(directory / "ext4.img", size_mib=size_mib)
    with mounted(directory / "ext4", "-o", ",".join(("loop", *options)), str(image)) as path:
        yield path


def fill(directory: Path) -> None:
    """Leave no free block: what is created here now fails with ENOSPC."""
    for chunk in (1 << 20, 1 << 12):
        with (directory / f"ballast{chunk}").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(chunk)):
                os.fsync(file.fileno())


@contextlib.contextmanager
def without_direct_io(directory: Path) -> Iterator[Path]:
    """A ramfs: its files cannot be opened with O_DIRECT (EINVAL)."""
    with mounted(directory / "ramfs", "-t", "ramfs", "ramfs") as path:
        yield path


@contextlib.contextmanager
def read_only(directory: Path, mountpoint: Path) -> Iterator[Path]:
    """The same directory, seen through a read-only bind mount."""
    with mounted(mountpoint, "--bind", str(directory)) as path:
        _run("mount", "-o", "remount,bind,ro", str(mountpoint))
        yield path


@contextlib.contextmanager
def ext4_of_large_sectors(directory: Path) -> Iterator[Path]:
    """An ext4 on a 4K disk: it takes direct I/O of 4096 bytes, and none of 512."""
    image = directory / "ext4.img"
    image.write_bytes(bytes(64 << 20))
    with loop_device(image, sector_size=4096) as device:
        _run(find_program("mkfs.ext4"), "-q", "-F", "-m", "0", str(device))
        with mounted(directory / "ext4", str(device)) as path:
            yield path


@contextlib.contextmanager
def loop_device(image: Path, *, sector_size: int) -> Iterator[Path]:
    """A block device over a file, with the sector size of a 512 or of a 4K disk."""
    need_root()
    losetup = find_program("losetup")
    device = _run(
        losetup, "--find", "--show", "--sector-size", str(sector_size), "--direct-io=on", str(image)
    )
    try:
        yield Path(device)
    finally:
        _run(losetup, "--detach", device)
