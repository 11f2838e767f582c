"""Locks of nobody: those of the table that was read first, if they are still there."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from tests.support.qemu import make_disk
from vmlockctl.ops.explain_disk import look_at
from vmlockctl.ops.explain_locks import locks_of_nobody

F_OFD_SETLK = 37
BYTE = 7  # none of QEMU's, so that only the table tells


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def table_with(disk: Path) -> bytes:
    found = disk.stat()
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return f"1: POSIX  ADVISORY  WRITE 7 {place} {BYTE} {BYTE}\n".encode()


def holders(disk: Path, table: bytes | None) -> list[str]:
    return [holder.text for holder in locks_of_nobody(look_at(str(disk)), [], [], hidden=False, table=table)]


def test_a_lock_that_was_let_go_meanwhile_is_nobodys(disk: Path) -> None:
    assert holders(disk, table_with(disk)) == []
    with disk.open("r+b") as file:
        # Not a POSIX lock: it would end when this process closes the file that it looks at.
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, BYTE, 1, 0))
        assert len(holders(disk, table_with(disk))) == 1
        assert len(holders(disk, None)) == 1
        assert holders(disk, b"") == []
