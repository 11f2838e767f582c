"""File systems that fstab has, and that are not mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmlockctl.host.mounts import unmounted_above


@pytest.fixture
def fstab(tmp_path: Path) -> str:
    path = tmp_path / "fstab"
    path.write_text(
        "# a comment\n"
        "\n"
        "UUID=1 / ext4 defaults 0 1\n"
        "proc /proc proc defaults 0 0\n"
        "UUID=2 none swap sw 0 0\n"
        f"nas:/vm {tmp_path}/images nfs4 noauto 0 0\n"
        f"nas:/iso {tmp_path}/two\\040words nfs4 defaults 0 0\n"
        f"#nas:/old {tmp_path}/old nfs4 defaults 0 0\n"
    )
    return str(path)


@pytest.mark.parametrize("below", ["images", "images/a.img", "images/deep/a.img", "two words/a.img"])
def test_below_a_mount_point_where_nothing_is_mounted(tmp_path: Path, fstab: str, below: str) -> None:
    point = str(tmp_path / Path(below).parts[0])
    assert unmounted_above(str(tmp_path / below), fstab=fstab) == point


def test_by_the_real_name_of_the_path(tmp_path: Path, fstab: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert unmounted_above(str(tmp_path / "link" / "a.img"), fstab=fstab) == str(tmp_path / "images")


@pytest.mark.parametrize("path", ["/proc/1", "{}/images2/a.img", "{}/old/a.img", "{}/a.img"])
def test_elsewhere(tmp_path: Path, fstab: str, path: str) -> None:
    assert unmounted_above(path.format(tmp_path), fstab=fstab) is None


def test_without_an_fstab(tmp_path: Path) -> None:
    assert unmounted_above("/a.img", fstab=str(tmp_path / "none")) is None
