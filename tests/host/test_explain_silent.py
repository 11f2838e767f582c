"""Storage that does not answer at all, neither data nor names, as a dead NFS server: every command that looks
still says what it knows, and soon.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.disk import resource_path
from tests.support.fusefs import FaultyMount
from tests.support.programs import Child
from tests.support.qemu import make_disk
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

pytestmark = pytest.mark.real("fusermount3")

BUSY, UNAVAILABLE, NO_SUCH = 75, 74, 66
SOON = 20.0


class Said(NamedTuple):
    status: int
    text: str


def said_while_it_hangs(mount: FaultyMount, host: VmHost, path: Path, *command: str) -> Said:
    """What a command prints before anything answers again; only then the kernel lets its last thread end."""
    with path.open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*OUR_COMMAND, *command],
            env=host.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"an answer to {command}", lambda: path.stat().st_size > 0, within=SOON)
        finally:
            mount.heal()
        return Said(process.wait(SOON), path.read_text(encoding="utf-8"))


@pytest.fixture
def silent_disk(faulty: FaultyMount) -> Path:
    return make_disk(faulty.path / "a.img")


def test_the_disk_of_a_lease_that_is_held(
    host: VmHost, holder: Child, faulty: FaultyMount, silent_disk: Path, tmp_path: Path
) -> None:
    assert host.acquire(holder.pid, silent_disk).returncode == 0
    faulty.fail("hang")
    said = said_while_it_hangs(faulty, host, tmp_path / "out", "explain", str(silent_disk))
    assert said.status == BUSY
    assert said.text.startswith(f"{silent_disk}: in use by process {holder.pid} (sleep)")
    assert "its storage does not answer" in said.text
    assert "it is not there" not in said.text


def test_a_disk_without_a_lease(host: VmHost, faulty: FaultyMount, silent_disk: Path, tmp_path: Path) -> None:
    faulty.fail("hang")
    said = said_while_it_hangs(faulty, host, tmp_path / "out", "explain", str(silent_disk))
    assert said.status == UNAVAILABLE
    assert f"vmlockctl: {silent_disk}: its storage does not answer within 5 s" in said.text


@pytest.mark.real("qemu-system-x86_64")
def test_another_disk_than_the_one_that_is_asked_for(
    host: VmHost, holder: Child, faulty: FaultyMount, silent_disk: Path, lease_dir: Path, tmp_path: Path
) -> None:
    """The lease of a disk whose name nobody knows makes explain ask for the disks of every QEMU."""
    asked, nameless = make_disk(tmp_path / "b.img"), make_disk(tmp_path / "c.img")
    assert host.acquire(holder.pid, nameless).returncode == 0
    assert host.release(holder.pid, nameless).returncode == 0
    lease = resource_path(lease_dir, nameless)
    lease.write_bytes(lease.read_bytes()[: (1 << 20) - 4096] + bytes(4096))
    with Child(
        ["qemu-system-x86_64", "-display", "none", "-S", "-drive", f"file={silent_disk},format=raw"]
    ) as vm:
        wait_for("QEMU to open its disk", lambda: str(silent_disk) in opened_by(vm.pid), within=SOON)
        faulty.fail("hang", operations=("getattr", "open"))
        said = said_while_it_hangs(faulty, host, tmp_path / "out", "explain", str(asked))
    assert said.status == NO_SUCH
    assert f"not seen: {faulty.path}: its storage does not answer" in said.text


def opened_by(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


LATER = [
    pytest.param(command, marks=pytest.mark.long)
    for command in ("check-orphans", "dump-leases", "explain", "acquire", "request")
]


@pytest.mark.parametrize("command", ["status", *LATER])
def test_the_storage_of_the_leases(
    host_alone: VmHost, holder: Child, faulty: FaultyMount, tmp_path: Path, command: str
) -> None:
    host, leases = host_alone, faulty.path / "leases"
    host.create(leases)
    disk = make_disk(tmp_path / "a.img")
    more = {
        "dump-leases": [str(leases)],
        "explain": [str(disk)],
        "acquire": ["--pid", str(holder.pid), str(disk)],
        "request": [str(disk)],
    }
    faulty.fail("hang")
    said = said_while_it_hangs(faulty, host, tmp_path / "out", command, *more.get(command, []))
    assert said.status == (NO_SUCH if command == "explain" else UNAVAILABLE), said
    assert "no answer from the storage within" in said.text
    if command in ("status", "check-orphans"):
        assert "this host" in said.text
