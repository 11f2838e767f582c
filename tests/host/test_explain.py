"""``explain`` beside real programs, each of which has the disk in turn."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.disk import resource_path
from tests.support.programs import Child, find_program, standing_process
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def explain(host: VmHost, *what: Any) -> tuple[int, dict[str, Any]]:
    """The exit status, and the answer as JSON."""
    import json

    result = host.call("explain", "--json", *map(str, what))
    assert result.returncode in (0, 65, 66, 75), result
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    assert {"schema", "disk", "resource", "verdict", "holders", "free_in", "advice"} <= set(answer)
    return result.returncode, answer


def layers(answer: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(holder["layer"], holder["mode"], holder["blocks"]) for holder in answer["holders"]]


def test_a_disk_that_nobody_has(host: VmHost, disk: Path) -> None:
    status, answer = explain(host, disk)
    assert (status, answer["verdict"], answer["holders"], answer["free_in"]) == (0, "free", [], 0.0)
    assert answer["advice"][0]["command"].startswith("vmlockctl run")


def test_a_vm_under_its_lease(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    """By every name that a person may have: image, lease file, VM, process."""
    vm = qemu("-name", "web1", *machine(), *drive(disk), host=host).wait_ready()
    for name in (disk, resource_path(lease_dir, disk), "web1", vm.pid):
        status, answer = explain(host, name)
        assert (status, answer["verdict"], answer["disk"]) == (75, "busy", str(disk)), name
        assert layers(answer) == [("lease", "exclusive", True), ("qemu", "write", True)]
        assert {holder["pid"] for holder in answer["holders"]} == {vm.pid}
        assert answer["holders"][1]["bytes"] == "100-101,201"
        assert answer["holders"][0]["vm"] == answer["holders"][1]["vm"] == "web1"
        assert [step["command"] for step in answer["advice"]] == [f"kill {vm.pid}"]
    text = host.call("explain", str(disk))
    assert text.stdout.splitlines()[0] == f"{disk}: in use by VM 'web1', process {vm.pid} (qemu-system-x86)"
    assert vm.quit() == 0


@pytest.mark.long
def test_a_lease_of_another_host(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    assert there.acquire(holder.pid, disk, options=["--vm", "db"]).returncode == 0
    wait_for("B to be seen", lambda: here.seen_state(2) == "live", within=15)
    status, answer = explain(here, disk)
    assert (status, answer["verdict"], answer["free_in"]) == (75, "busy", None)
    [lease] = answer["holders"]
    assert (lease["host"]["host_name"], lease["host"]["state"], lease["vm"]) == (there.name, "live", "db")
    assert "request" in " ".join(step["command"] for step in answer["advice"])
    there.crash_everything()
    wait_for("B to fall silent", lambda: here.seen_state(2) == "fail", within=20)
    status, answer = explain(here, disk)
    assert status == 75
    assert 0 < answer["free_in"] <= 60


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "bytes_held", "mode", "status"),
    [
        (["-drive", "file={},format=raw,if=virtio"], "100-101,201", "write", 75),
        (["-drive", "file={},format=raw,if=virtio,readonly=on"], "100,201", "read", 75),
        (["-drive", "file={},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d,share-rw=on"],
         "100-101", "write", 75),
        (["-cdrom", "{}"], "100,201,203", "read", 75),
        (["-drive", "file={},format=raw,if=virtio,file.locking=off"], "", "write", 75),
    ],
    ids=["writes", "reads", "share-rw", "cdrom", "no locks"],
)  # fmt: skip
def test_qemu_without_a_lease(
    host: VmHost, qemu: QemuStarter, disk: Path, options: list[str], bytes_held: str, mode: str, status: int
) -> None:
    vm = qemu(*machine(), *(option.format(disk) for option in options)).wait_ready()
    found, answer = explain(host, disk)
    assert found == status
    [holder] = answer["holders"]
    assert (holder["layer"], holder["mode"]) == ("qemu" if bytes_held else "open", mode)
    assert (holder["bytes"], holder["pid"]) == (bytes_held, vm.pid)


@pytest.mark.long
def test_the_base_of_an_overlay(host: VmHost, qemu: QemuStarter, disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "o.qcow2"
    command = [
        find_program("qemu-img"),
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        str(disk),
        "-F",
        "raw",
        str(overlay),
    ]
    subprocess.run(command, check=True)
    qemu(*machine(), "-drive", f"file={overlay},if=virtio").wait_ready()
    status, answer = explain(host, disk)
    assert status == 75
    assert "as an image below one of its disks" in answer["holders"][0]["text"]
    _, above = explain(host, overlay)
    assert {"name": "stands on", "value": str(disk)} in above["facts"]


@pytest.mark.long
def test_qemu_nbd(host: VmHost, disk: Path, tmp_path: Path) -> None:
    with Child([find_program("qemu-nbd"), "-t", "-f", "raw", "-k", str(tmp_path / "s"), str(disk)]) as export:
        wait_for("the export", (tmp_path / "s").exists, within=10)
        status, answer = explain(host, disk)
        assert status == 75
        assert (answer["holders"][0]["process"], answer["holders"][0]["pid"]) == ("qemu-nbd", export.pid)


@contextmanager
def opened(disk: Path, how: str) -> Iterator[Child]:
    with Child(["sh", "-c", f'exec sleep 60 {how} "$1"', "sh", str(disk)]) as child:
        fd = "0" if how == "<" else "1"
        wait_for(
            "the open disk", lambda: os.path.realpath(f"/proc/{child.pid}/fd/{fd}") == str(disk), within=5
        )
        yield child


@pytest.mark.long
@pytest.mark.parametrize(("how", "status", "verdict"), [(">>", 75, "busy"), ("<", 0, "free")])
def test_a_plain_program(host: VmHost, disk: Path, how: str, status: int, verdict: str) -> None:
    """A backup that reads is named, and keeps no VM from starting."""
    with opened(disk, how) as child:
        found, answer = explain(host, disk)
        assert (found, answer["verdict"]) == (status, verdict)
        assert [holder["pid"] for holder in answer["holders"]] == [child.pid]
        assert "without a lock" in answer["holders"][0]["text"]


@pytest.mark.long
def test_a_loop_device_and_its_mount(host: VmHost, tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path, size_mib=8) as mount:
        [image] = [path for path in tmp_path.iterdir() if path.is_file()]
        status, answer = explain(host, image)
        assert status == 75
        texts = " ".join(holder["text"] for holder in answer["holders"])
        assert "the loop device /dev/loop" in texts
        assert f"it is mounted for writing at {mount}" in texts


@pytest.mark.long
def test_another_name(host: VmHost, holder: Child, disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(disk)
    assert host.acquire(holder.pid, disk).returncode == 0
    status, answer = explain(host, link)
    assert status == 75
    assert answer["holders"][0]["layer"] == "lease"
    assert {"name": "also named", "value": str(disk)} in answer["facts"]


@pytest.mark.long
def test_a_damaged_lease(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    with resource_path(lease_dir, disk).open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")
    status, answer = explain(host, disk)
    assert (status, answer["verdict"]) == (65, "unknown")
    assert answer["dont"]


@pytest.mark.long
def test_names_from_elsewhere_print_harmlessly(host: VmHost, disk: Path) -> None:
    with standing_process() as process:
        name = "vm\x1b]0;pwn\x07\u202e[red]x"
        assert host.acquire(process.pid, disk, options=["--vm", name]).returncode == 0
        shown = host.call("explain", str(disk)).stdout
        assert "\\x1b" in shown
        assert "[red]" in shown
        assert not any(character in shown for character in "\x1b\x07\u202e")


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_an_unprivileged_caller_is_never_told_free(tmp_path: Path) -> None:
    """It says what it could not see."""
    disk = make_disk(tmp_path / "a.img")
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(path.stat().st_mode | 0o055)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    os.chown(run_dir, 65534, 65534)
    prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command = [*prefix, *OUR_COMMAND, "--run-dir", str(run_dir), "explain", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 66, done
    assert "not seen:" in done.stdout
    assert ": free" not in done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [("-243", "another host holds the lease"), ("SANLK_HOSTID_BUSY", "in use by another host")],
)
def test_an_error(host_alone: VmHost, text: str, told: str) -> None:
    done = host_alone.call("explain", text)
    assert done.returncode == 0
    assert told in done.stdout.splitlines()[0]


def test_neither_disk_nor_error(host_alone: VmHost) -> None:
    done = host_alone.call("explain", "rubbish")
    assert done.returncode == 66
    assert "no error that is known" in done.stderr
