"""libvirt's records: the machine's, a user's own, and those that are not to be believed or not to be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.programs import standing_process
from tests.unit.host.test_process import root_only
from vmlockctl.host import libvirt
from vmlockctl.host.libvirt import domains, read_domain, unreadable_records

DEFINED = """<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><devices>
<disk type='file' device='disk'><source file='{disk}'/><backingStore><source file='/base'/></backingStore>
<target dev='vda'/></disk></devices></domain>"""
RUNNING = "<domstatus state='paused' reason='user' pid='{pid}'>{domain}</domstatus>"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No records of the machine that runs the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(libvirt, "_USERS_RUNTIME_DIR", str(tmp_path / "users"))


def write(directory: Path, name: str, *, pid: int = 0, uuid: str = "u1") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    text = DEFINED.format(name=name, uuid=uuid, disk=f"/{name}.img")
    path = directory / f"{name}.xml"
    path.write_text(RUNNING.format(pid=pid, domain=text) if pid else text)
    return path


def all_domains(tmp_path: Path) -> list[libvirt.Domain]:
    return domains(defined_dir=str(tmp_path / "etc"), running_dir=str(tmp_path / "run"))


def test_a_running_domain_hides_its_definition(tmp_path: Path) -> None:
    write(tmp_path / "etc", "web")
    write(tmp_path / "etc", "db", uuid="u2")
    write(tmp_path / "run", "web", pid=77)
    running, defined = all_domains(tmp_path)
    assert (running.name, running.state, running.reason, running.pid) == ("web", "paused", "user", 77)
    assert (running.disks[0].path, running.disks[0].target, running.backing) == (
        "/web.img",
        "vda",
        ("/base",),
    )
    assert running.is_paused
    assert (defined.name, defined.state, defined.is_running) == ("db", "defined", False)


def test_domains_of_a_user(tmp_path: Path) -> None:
    write(tmp_path / "config" / "libvirt" / "qemu", "mine")
    write(tmp_path / "runtime" / "libvirt" / "qemu" / "run", "live", pid=os.getpid(), uuid="u2")
    write(tmp_path / "users" / "7" / "libvirt" / "qemu" / "run", "theirs", pid=os.getpid(), uuid="u3")
    found = all_domains(tmp_path)
    assert [domain.name for domain in found] == ["live", "theirs", "mine"]
    assert all(domain.is_of_a_user for domain in found)


@root_only
def test_a_user_cannot_speak_for_the_process_of_another(tmp_path: Path) -> None:
    with standing_process() as process:
        path = write(tmp_path / "users" / "7" / "libvirt" / "qemu" / "run", "lie", pid=process.pid)
        assert [domain.name for domain in all_domains(tmp_path)] == ["lie"]
        os.chown(path, 65534, 65534)
        assert all_domains(tmp_path) == []


def test_what_is_no_domain(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.xml")
    (tmp_path / "torn.xml").write_text("<domain><name>x")
    (tmp_path / "net.xml").write_text("<network/>")
    for name in ("fifo.xml", "torn.xml", "net.xml", "missing.xml"):
        assert read_domain(str(tmp_path / name)) is None


def test_records_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    found = unreadable_records([str(tmp_path), str(tmp_path / "missing"), str(loop)])
    assert found == [f"{loop}: Too many levels of symbolic links"]
