"""Which disk an MD5 stands for, found by whoever names a disk with that digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmlockctl.host import libvirt
from vmlockctl.host.qemu import QemuDisk
from vmlockctl.host.qemus import RunningQemu
from vmlockctl.ops import disknames
from vmlockctl.ops.disknames import DiskName, DiskNames
from vmlockctl.specs import resource_name


@pytest.fixture(autouse=True)
def nobody_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disknames, "running_qemus", list)
    monkeypatch.setattr(disknames, "domains", list)


def domain(disk: str, base: str) -> libvirt.Domain:
    disks = (libvirt.DomainDisk(disk, "vda", readonly=False, shareable=False),)
    return libvirt.Domain("web", "", "defined", "", 0, disks, (base,), "/etc/libvirt/qemu/web.xml")


def test_nobody_knows() -> None:
    assert DiskNames().find(resource_name("/a.img")) is None


def test_the_disks_of_domains_and_what_they_stand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disknames, "domains", lambda: [domain("/images/a.img", "/images/base.img")])
    names = DiskNames()
    for path in ("/images/a.img", "/images/base.img"):
        assert names.find(resource_name(path)) == DiskName(path, "libvirt domain web")


def test_the_command_lines_of_qemus(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = RunningQemu(7, "web", [QemuDisk("/images/a.img", shared=False, source="-drive")])
    monkeypatch.setattr(disknames, "running_qemus", lambda: [qemu])
    assert DiskNames().find(resource_name("/images/a.img")) == DiskName("/images/a.img", "QEMU process 7")


def test_a_directory_of_images_by_both_names_of_a_file(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (images / "deep" / "a.img").touch()
    link = tmp_path / "link"
    link.symlink_to(images)
    names = DiskNames([str(link)])
    for given in (link / "deep" / "a.img", images / "deep" / "a.img"):
        assert names.find(resource_name(str(given))) == DiskName(str(given), f"a file in {link}")


def test_a_source_is_asked_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def all_domains() -> list[libvirt.Domain]:
        asked.append("libvirt")
        return [domain("/a.img", "/b.img")]

    monkeypatch.setattr(disknames, "domains", all_domains)
    monkeypatch.setattr(disknames, "running_qemus", lambda: asked.append("qemu") or [])
    names = DiskNames()
    assert asked == []
    names.find(resource_name("/a.img"))
    names.find(resource_name("/b.img"))
    assert asked == ["libvirt"]
    names.find("0" * 32)
    names.find("0" * 32)
    assert asked == ["libvirt", "qemu"]
