"""The mount of a path, and the server behind it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmlockctl.host.filesystems import Filesystem, filesystem_of, parse_mount

TABLE = (
    b"36 35 0:31 / /mnt/a\\040b rw,noatime shared:1 master:2 - nfs4 nas:/export/a\\040b rw,vers=4.2\n"
    b"37 35 0:32 / /mnt/c rw - fuse.sshfs user@host:/dir rw\n"
)


def test_a_line_of_the_mount_table() -> None:
    assert parse_mount(TABLE, b"36") == Filesystem("nfs4", "nas:/export/a b", "/mnt/a b")
    assert parse_mount(TABLE, b"37") == Filesystem("fuse.sshfs", "user@host:/dir", "/mnt/c")
    assert parse_mount(TABLE, b"38") is None


@pytest.mark.parametrize(
    ("source", "server"),
    [("nas:/export", "nas"), ("[fe80::1]:/export", "fe80::1"), ("//box/share", "box"), ("/dev/sda1", "")],
)
def test_the_server(source: str, server: str) -> None:
    assert Filesystem("any", source, "/mnt").server == server


def test_where_a_file_really_is(tmp_path: Path) -> None:
    found = filesystem_of(str(tmp_path))
    assert found is not None
    assert os.stat(found.point).st_dev == tmp_path.stat().st_dev
    assert filesystem_of(str(tmp_path / "missing")) is None
