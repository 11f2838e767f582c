"""``explain`` beside real programs of this machine, each of which has the disk in turn.

``test_explain_leases.py`` has the leases, ``test_explain_libvirt.py`` libvirt, and ``tests/situations.rst``
lists them all.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.disk import resource_path
from tests.support.explaining import explain, explain_error
from tests.support.fusefs import faulty_mount
from tests.support.programs import Child, Result, find_program, run_command
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")

NOBODY = 65534

# Holds open-file-description locks of single bytes, as QEMU does, until it is told to end.
LOCKER = """
import fcntl, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in map(int, sys.argv[3:]):
    fcntl.fcntl(fd, 37, struct.pack("hhxxxxqqixxxx", fcntl.F_RDLCK, 0, byte, 1, 0))
open(sys.argv[2], "w").close()
time.sleep(60)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


@contextmanager
def locked(disk: Path, ready: Path, *bytes_held: int) -> Iterator[Child]:
    command = [sys.executable, "-c", LOCKER, str(disk), str(ready), *map(str, bytes_held)]
    with Child(command) as child:
        wait_for("the locks", ready.exists, within=10)
        yield child


@contextmanager
def opened(disk: Path, how: str, *prefix: str) -> Iterator[Child]:
    """A program with the disk open: ``<`` for reading, ``>>`` for writing."""
    with Child([*prefix, "sh", "-c", f'exec sleep 60 {how} "$1"', "sh", str(disk)]) as child:
        fd = "0" if how == "<" else "1"
        wait_for(
            "the open disk", lambda: os.path.realpath(f"/proc/{child.pid}/fd/{fd}") == str(disk), within=5
        )
        yield child


def make_overlay(base: Path, overlay: Path) -> Path:
    command = [find_program("qemu-img"), "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw"]
    subprocess.run([*command, str(overlay)], check=True)
    return overlay


def test_a_disk_that_nobody_has(host: VmHost, disk: Path) -> None:
    answer = explain(host, disk)
    assert (answer.verdict, answer.holders, answer.json["free_in"]) == ("free", [], 0.0)
    assert answer.commands == [f"vmlockctl run --disk {disk} -- COMMAND"]


def test_a_vm_under_its_lease(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    """By every name that a person may have: image, lease file, VM, process."""
    guest = f"web{os.getpid()}"
    vm = qemu("-name", guest, *machine(), *drive(disk), host=host).wait_ready()
    for name in (disk, resource_path(lease_dir, disk), guest, vm.pid):
        answer = explain(host, name)
        assert (answer.verdict, answer.json["disk"]) == ("busy", str(disk)), name
        assert answer.layers == [("lease", "exclusive", True), ("qemu", "write", True)]
        assert {(holder["pid"], holder["vm"]) for holder in answer.holders} == {(vm.pid, guest)}
        assert answer.holder("qemu")["bytes"] == "100-101,201"
        assert answer.holder("qemu")["command"].endswith(f"-qmp unix:{vm.qmp_path},server=on,wait=off")
        assert all(holder["since_utc"].endswith("Z") for holder in answer.holders)
        assert answer.commands == [f"kill {vm.pid}"]
    first = answer.text.splitlines()[0]
    assert first == f"{disk}: in use by VM {guest!r}, process {vm.pid} (qemu-system-x86)"
    assert vm.quit() == 0


@pytest.mark.long
def test_a_paused_vm_keeps_its_lease(host: VmHost, qemu: QemuStarter, disk: Path) -> None:
    """Ours is not let go with a pause, as libvirt's is."""
    vm = qemu(*machine(stopped=False), *drive(disk), host=host).wait_ready()
    vm.qmp("stop")
    assert explain(host, disk).layers == [("lease", "exclusive", True), ("qemu", "write", True)]


# -- QEMU without a lease --------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "bytes_held", "mode"),
    [
        (["-drive", "file={},format=raw,if=virtio"], "100-101,201", "write"),
        (["-drive", "file={},format=raw,if=virtio,readonly=on"], "100,201", "read"),
        (["-drive", "file={},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d,share-rw=on"],
         "100-101", "write"),
        (["-cdrom", "{}"], "100,201,203", "read"),
        (["-drive", "file={},format=raw,if=virtio,file.locking=off"], "", "write"),
        (["-blockdev", "driver=file,node-name=f,filename={}", "-blockdev", "driver=raw,node-name=n,file=f",
          "-device", "virtio-blk-pci,drive=n"], "100-101,201", "write"),
        (["-drive", "file={},format=raw,if=virtio", "-incoming", "defer"], "", "write"),
    ],
    ids=["writes", "reads", "share-rw", "cdrom", "no locks", "blockdev", "incoming"],
)  # fmt: skip
def test_qemu_without_a_lease(
    host: VmHost, qemu: QemuStarter, disk: Path, options: list[str], bytes_held: str, mode: str
) -> None:
    guest = f"bare{os.getpid()}"  # another test run may have a VM too
    vm = qemu("-name", guest, *machine(), *(option.format(disk) for option in options)).wait_ready()
    for name in (disk, guest, vm.pid):
        answer = explain(host, name)
        assert answer.verdict == "busy"
        holder = answer.holder("qemu" if bytes_held else "open")
        assert (holder["mode"], holder["bytes"], holder["pid"]) == (mode, bytes_held, vm.pid)
        assert (holder["vm"], answer.commands) == (guest, [f"kill {vm.pid}"])
        assert "below one of its disks" not in holder["text"]


@pytest.mark.long
def test_the_base_of_an_overlay(host: VmHost, qemu: QemuStarter, disk: Path, tmp_path: Path) -> None:
    overlay = make_overlay(disk, tmp_path / "o.qcow2")
    qemu(*machine(), "-drive", f"file={overlay},if=virtio").wait_ready()
    answer = explain(host, disk)
    assert answer.layers == [("qemu", "read", True)]
    assert "as an image below one of its disks" in answer.holder("qemu")["text"]
    assert ("stands on", str(disk)) in explain(host, overlay).facts


@pytest.mark.long
def test_an_overlay_whose_base_is_started(
    host: VmHost, qemu: QemuStarter, disk: Path, tmp_path: Path
) -> None:
    """The overlay is refused, and its base is what is in use; the error says the base's name."""
    overlay = make_overlay(disk, tmp_path / "o.qcow2")
    vm = qemu("-name", "base", *machine(), *drive(disk)).wait_ready()
    second = qemu(*machine(), "-drive", f"file={overlay},if=virtio")
    assert second.wait(within=20) == 1
    told = explain_error(host, second.log)
    assert f"vmlockctl explain {disk}" in told
    assert "it is the backing file of what is started here" in told
    answer = explain(host, disk)
    assert (answer.holder("qemu")["pid"], answer.verdict) == (vm.pid, "busy")
    assert ("is below", str(overlay)) in answer.facts


@pytest.mark.long
def test_a_base_that_nobody_uses_now(host: VmHost, disk: Path, tmp_path: Path) -> None:
    """It is free, and to write it would destroy what stands on it."""
    overlay = make_overlay(disk, tmp_path / "o.qcow2")
    answer = explain(host, disk)
    assert (answer.verdict, answer.commands) == ("free", [f"vmlockctl run --disk {overlay} -- COMMAND"])
    assert f"do not write it: {overlay} would be destroyed" in answer.text


@pytest.mark.long
def test_qemu_nbd(host: VmHost, disk: Path, tmp_path: Path) -> None:
    with Child([find_program("qemu-nbd"), "-t", "-f", "raw", "-k", str(tmp_path / "s"), str(disk)]) as export:
        wait_for("the export", (tmp_path / "s").exists, within=10)
        answer = explain(host, disk)
        holder = answer.holder("qemu")
        assert (holder["process"], holder["pid"], holder["blocks"]) == ("qemu-nbd", export.pid, True)
        assert f"{find_program('qemu-nbd')} -t -f raw" in holder["text"]
        assert answer.commands == [f"kill {export.pid}"]


# -- plain programs, and what the kernel holds -----------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("how", "verdict"), [(">>", "busy"), ("<", "free")])
def test_a_plain_program(host: VmHost, disk: Path, how: str, verdict: str) -> None:
    """A backup that reads is named, and keeps no VM from starting."""
    with opened(disk, how) as child:
        answer = explain(host, disk)
        assert answer.verdict == verdict
        holder = answer.holder("open")
        assert (holder["pid"], holder["command"]) == (child.pid, "sleep 60")
        assert "without a lock" in holder["text"]


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a mount namespace")
def test_a_program_in_another_mount_namespace(host: VmHost, disk: Path) -> None:
    """Its path there may be another, or none here: the file is the same."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    with opened(disk, ">>", *unshare) as child:
        assert os.readlink(f"/proc/{child.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert explain(host, disk).holder("open")["pid"] == child.pid


@pytest.mark.long
def test_a_loop_device_and_its_mount(host: VmHost, tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path, size_mib=8) as mount:
        [image] = [path for path in tmp_path.iterdir() if path.is_file()]
        answer = explain(host, image)
        assert {holder["kind"] for holder in answer.holders} == {"loop", "mount"}
        texts = " ".join(holder["text"] for holder in answer.holders)
        assert "the loop device /dev/loop" in texts
        assert f"it is mounted for writing at {mount}" in texts
        assert f"umount {mount}" in answer.commands


@pytest.mark.long
def test_a_mount_in_another_mount_namespace(host: VmHost, tmp_path: Path) -> None:
    """Nobody sees it in the mount table here."""
    image, point = filesystems.make_ext4(tmp_path / "ext4.img", size_mib=8), tmp_path / "point"
    point.mkdir()
    with filesystems.loop_device(image, sector_size=512) as device:
        script = f"mount {device} {point} && touch {tmp_path}/ready && exec sleep 60"
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with Child(unshare) as child:
            wait_for("the mount", (tmp_path / "ready").exists, within=10)
            assert not os.path.ismount(point)
            texts = [holder["text"] for holder in explain(host, image).holders]
            wanted = f"mounted for writing at {point} in the mount namespace of process {child.pid} (sleep)"
            assert f"it is {wanted}" in texts


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_another_name(host: VmHost, holder: Child, disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(disk)
    assert host.acquire(holder.pid, disk).returncode == 0
    answer = explain(host, link)
    assert answer.layers == [("lease", "exclusive", True)]
    assert ("also named", str(disk)) in answer.facts


@pytest.mark.long
def test_a_hard_link(host: VmHost, holder: Child, disk: Path, tmp_path: Path) -> None:
    """A lease under the other name is found too."""
    link = tmp_path / "hard"
    assert host.acquire(holder.pid, disk).returncode == 0
    os.link(disk, link)
    answer = explain(host, link)
    assert answer.layers == [("lease", "exclusive", True)]
    assert ("also named", str(disk)) in answer.facts
    assert ("hard links", "2: names that no lease covers") in answer.facts


@pytest.mark.long
def test_two_names_of_a_block_device(host: VmHost, qemu: QemuStarter, tmp_path: Path) -> None:
    with filesystems.loop_device(make_disk(tmp_path / "d.img"), sector_size=512) as device:
        alias = tmp_path / "alias"
        os.mknod(alias, stat.S_IFBLK | 0o600, device.stat().st_rdev)
        vm = qemu(*machine(), *drive(device)).wait_ready()
        for name in (alias, device):
            assert [holder["pid"] for holder in explain(host, name).holders] == [vm.pid]


# -- what is not to be seen ------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.real("fusermount3")
def test_a_lock_that_its_file_system_keeps(host: VmHost, tmp_path: Path) -> None:
    """The process is gone, and the lock is not: no process is blamed, and the remedy is the server's."""
    pytest.importorskip("mfusepy")
    (tmp_path / "fuse").mkdir()
    with faulty_mount(tmp_path / "fuse", kind=["keeps-locks"]) as mount:
        disk = make_disk(mount.path / "a.img")
        with locked(disk, tmp_path / "ready", 100, 101, 201):
            pass
        answer = explain(host, disk)
        holder = answer.holder("qemu")
        assert (holder["pid"], holder["mode"], holder["filesystem"]) == (None, "write", "fuse")
        assert holder["bytes"] == "100,101,201"
        assert "no process of this machine" in holder["text"]
        assert "unmount it and mount it again" in answer.text
        assert answer.commands == []


def as_nobody(tmp_path: Path, *arguments: str) -> Result:
    """Run our command as a user who may see nothing of others."""
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(path.stat().st_mode | 0o055)
    run_dir = tmp_path / "nobody"
    run_dir.mkdir()
    os.chown(run_dir, NOBODY, NOBODY)
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return run_command([*prefix, *OUR_COMMAND, "--run-dir", str(run_dir), *arguments])


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_an_unprivileged_caller_is_never_told_free(tmp_path: Path, disk: Path) -> None:
    """It says what it could not see."""
    done = as_nobody(tmp_path, "explain", str(disk))
    assert done.returncode == 66, done
    assert "not seen:" in done.stdout
    assert f"sudo vmlockctl explain {disk}" in done.stdout
    assert ": free" not in done.stdout


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_an_unprivileged_caller_sees_that_there_is_a_lock(tmp_path: Path, disk: Path) -> None:
    """Not whose it is."""
    with locked(disk, tmp_path / "ready", 100, 101, 201):
        done = as_nobody(tmp_path, "explain", "--json", str(disk))
    assert done.returncode == 75, done
    answer = json.loads(done.stdout)
    [holder] = answer["holders"]
    assert (holder["layer"], holder["pid"], holder["mode"]) == ("qemu", None, "write")
    assert "a process that this user may not look into" in holder["text"]
    assert f"sudo vmlockctl explain {disk}" in [step["command"] for step in answer["advice"]]


# -- names that would do harm ----------------------------------------------------------------------

EVIL = "x\x1b]0;pwn\x07\u202e[red]\x9b2J"


def assert_harmless(text: str) -> None:
    assert "[red]" in text
    assert not any(character in text for character in "\x1b\x07\u202e\x9b")
    assert text.replace("\n", "").isprintable()


@pytest.mark.long
def test_every_name_prints_harmlessly(host: VmHost, qemu: QemuStarter, tmp_path: Path) -> None:
    """Of a disk, its links and directory, a VM, a program, an image above it, and a lease's VM."""
    directory = tmp_path / EVIL
    directory.mkdir()
    disk = make_disk(directory / f"{EVIL}.img")
    make_overlay(disk, directory / f"{EVIL}.qcow2")
    (directory / f"{EVIL}.link").symlink_to(disk)
    vm = qemu("-name", f"vm{EVIL}", *machine(), *drive(disk), host=host).wait_ready()
    program = directory / f"p{EVIL}"
    program.symlink_to(find_program("sleep"))
    with disk.open("rb") as file, Child([str(program), "60"], stdin=file):
        for name in (disk, directory / f"{EVIL}.link", vm.pid):
            answer = explain(host, name)
            assert {holder["vm"] for holder in answer.holders} == {f"vm{EVIL}", ""}
            assert_harmless(answer.text)
            raw = host.call("explain", "--json", str(name)).stdout
            assert raw.isascii() and raw.strip().isprintable()
    assert_harmless(host.call("explain", str(directory / f"no{EVIL}")).stderr)
    assert_harmless(host.call("explain", f"no{EVIL}").stderr)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [("-243", "another host holds the lease"), ("SANLK_HOSTID_BUSY", "in use by another host")],
)
def test_an_error(host_alone: VmHost, text: str, told: str) -> None:
    assert told in explain_error(host_alone, text).splitlines()[0]


def test_a_pasted_error_with_a_path_in_it(host_alone: VmHost, disk: Path) -> None:
    text = f'qemu-kvm: Failed to get "write" lock\nIs another process using the image [{disk}]?\n'
    told = explain_error(host_alone, text)
    assert "somebody forbids writers" in told.splitlines()[0]
    assert f"vmlockctl explain {disk}" in told


def test_neither_disk_nor_error(host_alone: VmHost) -> None:
    done = host_alone.call("explain", "rubbish")
    assert done.returncode == 66
    assert "no error that is known" in done.stderr
