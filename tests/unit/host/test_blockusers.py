"""What the kernel stacks on a device, as /sys and the mount tables tell it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmlockctl.host.blockusers import BlockUse, block_users
from vmlockctl.host.openers import Identity

DISK, PARTITION, MAPPED = (8, 0), (8, 1), (253, 3)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def sys_tree(tmp_path: Path) -> Path:
    """A disk with a partition, on which a device mapper device stands."""
    sys = tmp_path / "sys"
    for number, name in ((DISK, "sda"), (PARTITION, "sda1"), (MAPPED, "dm-3")):
        put(sys / "class" / "block" / name / "dev", f"{number[0]}:{number[1]}\n")
        put(sys / "class" / "block" / name / "ro", "0\n")
        (sys / "dev" / "block" / f"{number[0]}:{number[1]}").mkdir(parents=True)
    put(sys / "class" / "block" / "dm-3" / "dm" / "name", "vg-data\n")
    put(sys / "dev" / "block" / "8:0" / "sda1" / "partition", "1\n")
    put(sys / "dev" / "block" / "8:0" / "sda1" / "dev", "8:1\n")
    put(sys / "dev" / "block" / "8:1" / "holders" / "dm-3", "")
    return sys


def proc_tree(tmp_path: Path, table: str) -> Path:
    proc = tmp_path / "proc"
    put(proc / "self" / "mountinfo", table)
    (proc / "self" / "ns").mkdir()
    (proc / "self" / "ns" / "mnt").symlink_to("mnt:[1]")
    return proc


def test_a_device_mapper_device_on_a_partition_and_its_mount(tmp_path: Path, sys_tree: Path) -> None:
    table = "30 1 253:3 / /mnt/a\\040b rw,relatime - ext4 /dev/mapper/vg-data rw\n"
    proc = proc_tree(tmp_path, table)
    found = block_users(Identity("block", os.makedev(*DISK), 0), sys=str(sys_tree), proc=str(proc))
    mapped = os.makedev(*MAPPED)
    assert found == [
        BlockUse("holder", "/dev/mapper/vg-data", mapped, writable=True),
        BlockUse("mount", "/mnt/a b", mapped, writable=True),
    ]


def test_a_device_that_nothing_stands_on(tmp_path: Path, sys_tree: Path) -> None:
    proc = proc_tree(tmp_path, "30 1 253:4 / /other rw - ext4 /dev/mapper/vg-other rw\n")
    identity = Identity("block", os.makedev(*MAPPED), 0)
    assert block_users(identity, sys=str(sys_tree), proc=str(proc)) == []
