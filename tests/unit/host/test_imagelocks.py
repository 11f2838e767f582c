"""Byte locks: QEMU's permissions decoded, and found with their holders."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from pathlib import Path

import pytest

from tests.support.programs import Child
from tests.support.waiting import wait_for
from vmlockctl.host.imagelocks import (
    ByteLock,
    ImageUse,
    byte_ranges,
    describe_use,
    foreign_bytes,
    image_use,
    interesting_bytes,
    kernel_locks,
    locks_of_process,
    parse_fdinfo,
    parse_proc_locks,
)
from vmlockctl.host.openers import Identity, has_writer

LOCKER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in map(int, sys.argv[2:]):
    fcntl.fcntl(fd, 37, struct.pack("hhxxxxqqixxxx", fcntl.F_RDLCK, 0, byte, 1, 0))
sys.stdout.write("locked"); sys.stdout.flush()
import time; time.sleep(60)
"""


def ofd(start: int, end: int) -> ByteLock:
    return ByteLock("OFDLCK", "READ", start, end)


@pytest.mark.parametrize(
    ("locks", "use", "told"),
    [
        ([ofd(100, 101), ofd(201, 201)], ImageUse((0, 1), (1,)), "writes the image, and forbids others to"),
        ([ofd(100, 101)], ImageUse((0, 1), ()), "writes the image, and lets others write it"),
        ([ofd(100, 100), ofd(201, 201), ofd(203, 203)], ImageUse((0,), (1, 3)), "reads the image, and for"),
        ([ofd(100, 100)], ImageUse((0,), ()), "reads the image, and lets others write it"),
        ([ofd(203, 203)], ImageUse((), (3,)), "has the image, and forbids others: resize"),
        ([ByteLock("FLOCK", "WRITE", 0, None)], ImageUse((), ()), ""),
    ],
)  # fmt: skip
def test_decoding(locks: list[ByteLock], use: ImageUse, told: str) -> None:
    """The table of measured usages (libvirt-and-qemu.md 4.2)."""
    assert image_use(locks) == use
    assert bool(use) == bool(told)
    if told:
        assert describe_use(use).startswith(told)


def test_lines_of_the_kernel() -> None:
    fdinfo = b"pos:\t0\nflags:\t0100002\nlock:\t1: OFDLCK ADVISORY  READ -1 fe:00:12 100 101\nlock:\tx\n"
    assert list(parse_fdinfo(fdinfo)) == [ofd(100, 101)]
    table = (
        b"1: POSIX  ADVISORY  WRITE 77 fe:00:12 0 0\n2: -> POSIX ADVISORY WRITE 8 fe:00:12 0 0\n"
        b"3: FLOCK  ADVISORY  WRITE 9 fe:00:13 0 EOF\n4: LEASE  ACTIVE    READ 9 fe:00:13 0 EOF\n"
    )
    assert list(parse_proc_locks(table)) == [
        (ByteLock("POSIX", "WRITE", 0, 0), 77, "fe:00:12"),
        (ByteLock("FLOCK", "WRITE", 0, None), 9, "fe:00:13"),
    ]
    assert byte_ranges([ofd(201, 201), ofd(100, 101)]) == "100-101,201"


def test_a_holder_and_what_others_see(tmp_path: Path) -> None:
    path, log = tmp_path / "a.img", tmp_path / "log"
    path.write_bytes(bytes(4096))
    identity = Identity.of_path(str(path))
    assert locks_of_process(os.getpid(), identity) == []
    assert foreign_bytes(str(path), interesting_bytes()) == []
    assert has_writer(str(path)) is False
    with log.open("wb") as output:
        holder = Child([sys.executable, "-c", LOCKER, str(path), "100", "101", "201"], stdout=output)
        with holder:
            wait_for("the locks", lambda: log.read_text() == "locked", within=10)
            assert image_use(locks_of_process(holder.pid, identity)) == ImageUse((0, 1), (1,))
            assert foreign_bytes(str(path), interesting_bytes()) == [100, 101, 201]
            assert sorted(lock.start for lock, _pid in kernel_locks(str(path))) == [100, 201]
            assert has_writer(str(path)) is True
    assert kernel_locks(str(path)) == []
    assert locks_of_process(holder.pid, identity) == []


def test_the_layout_of_struct_flock(tmp_path: Path) -> None:
    """Our own lock is no conflict with ourselves, and is there for others."""
    path = tmp_path / "a.img"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        fcntl.fcntl(file, 37, struct.pack("hhxxxxqqixxxx", fcntl.F_RDLCK, 0, 200, 1, 0))
        assert foreign_bytes(str(path), [200, 201]) == [200]
