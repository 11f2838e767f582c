"""Disks on QEMU command lines: what we find is what the real program opens, and how."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import find_program, run_command
from tests.support.qemu import PROGRAM, QemuStarter, machine
from tests.support.waiting import wait_for
from vmlockctl.errors import UsageError
from vmlockctl.host import qemu_options
from vmlockctl.host.qemu import QemuDisk, find_disks, is_qemu, vm_name, vm_uuid

QEMU = "/usr/bin/qemu-system-x86_64"


def found(*arguments: str) -> dict[str, str]:
    """Every disk of a command line, and "rw" or "ro"."""
    return {disk.path: "ro" if disk.shared else "rw" for disk in find_disks([QEMU, *arguments])}


def blockdev(**options: Any) -> list[str]:
    return ["-blockdev", json.dumps({key.replace("_", "-"): value for key, value in options.items()})]


def drive(options: str) -> list[str]:
    """A drive that the virtio device of ``DEVICE`` uses."""
    return ["-drive", f"if=none,id=d,{options}", *DEVICE]


TRUE, FALSE = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
DEVICE = ["-device", "virtio-blk,drive=d"]
A, B = {"driver": "file", "filename": "a.img"}, {"driver": "file", "filename": "b.img"}
OVERLAY, BASE = (
    {"driver": "file", "filename": "overlay.qcow2"},
    {"driver": "file", "filename": "base.qcow2"},
)
QUORUM_CHILDREN = ",".join(
    f"children.{number}.driver=file,children.{number}.filename={name}"
    for number, name in enumerate(("a.img", "b.img"))
)
RAW_A = json.dumps({"driver": "raw", "file": A})

# Command line -> disks. Every one of these was opened so by QEMU, see test_qemu_opens_them_so.
OPENED: list[tuple[list[str], dict[str, str]]] = [
    # -drive
    (drive("file=a.img,format=raw"), {"a.img": "rw"}),
    (["-" + "-drive", "if=none,id=d,format=raw,file=a.img", *DEVICE], {"a.img": "rw"}),
    (drive("format=raw,file=with,,comma"), {"with,comma": "rw"}),
    (drive("format=raw,file=with,,,cache=none"), {"with,": "rw"}),
    (drive("format=raw,file=a.img,file=b.img"), {"b.img": "rw"}),
    (drive("format=raw,file=a=b"), {"a=b": "rw"}),
    (drive("format=raw,file=a.img,readonly"), {"a.img": "ro"}),
    *((drive(f"format=raw,file=a.img,readonly={yes}"), {"a.img": "ro"}) for yes in TRUE),
    *((drive(f"format=raw,file=a.img,readonly={no}"), {"a.img": "rw"}) for no in FALSE),
    (drive("format=raw,file=a.img,noreadonly"), {"a.img": "rw"}),
    (drive("format=raw,file=a.img,read-only=on"), {"a.img": "ro"}),
    (drive("format=raw,file=a.img,readonly=off,readonly=on"), {"a.img": "rw"}),
    (drive("format=raw,file=a.img,read-only=on,read-only=off"), {"a.img": "rw"}),
    (drive("format=raw,file=a.img,auto-read-only=on"), {"a.img": "rw"}),
    (["-drive", "format=raw,file=a.img,media=cdrom"], {"a.img": "ro"}),
    (["-drive", "format=raw,file=a.img,media=cdrom,readonly=off"], {"a.img": "ro"}),
    (["-drive", "format=raw,file=a.img,media=disk"], {"a.img": "rw"}),
    (["-drive", "format=raw,file=flash.img,if=pflash,readonly=on"], {"flash.img": "ro"}),
    (["-drive", "format=raw,file=flash.img,if=pflash"], {"flash.img": "rw"}),
    (drive("format=raw,file=a.img,file.locking=on"), {"a.img": "rw"}),
    (drive("format=raw,file.filename=a.img"), {"a.img": "rw"}),
    (drive("driver=raw,file.driver=file,file.filename=a.img"), {"a.img": "rw"}),
    (drive("driver=file,filename=a.img"), {"a.img": "rw"}),
    (drive("driver=file,file=a.img"), {"a.img": "rw"}),
    # snapshots: the image is only read
    (drive("format=raw,file=a.img,snapshot=on"), {"a.img": "ro"}),
    (drive("format=raw,file=a.img,snapshot=off,snapshot=on"), {"a.img": "ro"}),
    (drive("format=raw,file=a.img,snapshot=on,snapshot=off"), {"a.img": "rw"}),
    (["-snapshot", *drive("format=raw,file=a.img")], {"a.img": "ro"}),
    ([*drive("format=raw,file=a.img"), "-snapshot"], {"a.img": "ro"}),
    ([*drive("format=raw,file=a.img,snapshot=off"), "-snapshot"], {"a.img": "rw"}),
    (["-snapshot", "-hda", "a.img"], {"a.img": "ro"}),
    (["-snapshot", "a.img"], {"a.img": "ro"}),
    (["-snapshot", *blockdev(driver="raw", node_name="d", file=A), *DEVICE], {"a.img": "rw"}),
    # the short ways
    *(([f"-{option}", "a.img"], {"a.img": "rw"}) for option in ("hda", "hdb", "hdc", "hdd", "fda", "fdb")),
    (["-pflash", "flash.img"], {"flash.img": "rw"}),
    (["-cdrom", "a.img"], {"a.img": "ro"}),
    (["-hda", "a.img", "-hdb", "b.img", "-cdrom", "with,comma"],
     {"a.img": "rw", "b.img": "rw", "with,comma": "ro"}),
    (["-hda", "with,comma"], {"with,comma": "rw"}),
    (["a.img"], {"a.img": "rw"}),
    (["-name", "-hda", "-hdb", "a.img"], {"a.img": "rw"}),
    (["-no-reboot", "a.img"], {"a.img": "rw"}),
    # file names that are more than a path
    (["-hda", "file:with:colon"], {"with:colon": "rw"}),
    (["-hda", "./with:colon"], {"./with:colon": "rw"}),
    (["-hda", f"json:{RAW_A}"], {"a.img": "rw"}),
    ([f"json:{RAW_A}"], {"a.img": "rw"}),
    (drive("file=json:" + RAW_A.replace(",", ",,")), {"a.img": "rw"}),
    (drive("readonly=on,file=json:" + RAW_A.replace(",", ",,")), {"a.img": "ro"}),
    (drive('file=json:{"driver":"raw",,"file.driver":"file",,"file.filename":"a.img"}'), {"a.img": "rw"}),
    (drive("file=json:{'driver':'raw',,'file':{'driver':'file',,'filename':'a.img'}}"), {"a.img": "rw"}),
    (drive('file=json:{"driver":"raw",,"read-only":true,,"file.filename":"a.img"}'), {"a.img": "rw"}),
    (["-cdrom", 'json:{"driver":"raw","read-only":false,"file.filename":"a.img"}'], {"a.img": "ro"}),
    (["-hda", 'json:{"driver":"raw","file":"p"}', *blockdev(node_name="p", **A)], {"a.img": "rw"}),
    (drive("format=raw,file=blkdebug::a.img"), {"a.img": "rw"}),
    (drive("format=raw,file=blkverify:a.img:b.img"), {"a.img": "rw", "b.img": "rw"}),
    # -blockdev, the node and its file in one
    (["-blockdev", "driver=raw,node-name=d,file.driver=file,file.filename=a.img", *DEVICE], {"a.img": "rw"}),
    (["-blockdev", "raw,node-name=d,file.driver=file,file.filename=with,,comma", *DEVICE],
     {"with,comma": "rw"}),
    *((["-blockdev", f"raw,node-name=d,read-only={yes},file.driver=file,file.filename=a.img", *DEVICE],
       {"a.img": "ro"}) for yes in TRUE),
    (["-blockdev", "raw,node-name=d,read-only=on,read-only=off,file.driver=file,file.filename=a.img",
      *DEVICE], {"a.img": "rw"}),
    (["-blockdev", "raw,node-name=d,auto-read-only=on,file.driver=file,file.filename=a.img", *DEVICE],
     {"a.img": "rw"}),
    (["-blockdev", "raw,node-name=d,auto-read-only=on,read-only=on,file.driver=file,file.filename=a.img",
      *DEVICE], {"a.img": "ro"}),
    ([*blockdev(node_name="d", **A), *DEVICE], {"a.img": "rw"}),
    ([*blockdev(driver="raw", node_name="d", file=A), *DEVICE], {"a.img": "rw"}),
    ([*blockdev(driver="raw", node_name="d", read_only=True, file=A), *DEVICE], {"a.img": "ro"}),
    ([*blockdev(driver="raw", node_name="d", read_only=True, file={**A, "read-only": False}), *DEVICE],
     {"a.img": "ro"}),
    (["-blockdev", "{'driver': 'raw', 'node-name': 'd', 'file': {'driver': 'file', 'filename': 'a.img'}}",
      *DEVICE], {"a.img": "rw"}),
    # -blockdev, node by node
    ([*blockdev(node_name="p", **A), *blockdev(driver="raw", node_name="d", file="p"), *DEVICE],
     {"a.img": "rw"}),
    ([*blockdev(node_name="p", **A), *blockdev(driver="raw", node_name="d", file="p", read_only=True),
      *DEVICE], {"a.img": "ro"}),
    ([*blockdev(node_name="p", auto_read_only=True, **A), *blockdev(driver="raw", node_name="d", file="p"),
      *DEVICE], {"a.img": "rw"}),
    (["-blockdev", "file,node-name=p,filename=a.img", "-blockdev", "raw,node-name=d,file=p,read-only=on",
      *DEVICE], {"a.img": "ro"}),
    # a node that serves a device beside the node above it
    ([*blockdev(node_name="d", **A), *blockdev(driver="raw", node_name="r", file="d", read_only=True),
      *DEVICE], {"a.img": "rw"}),
    ([*blockdev(node_name="d", **A), *blockdev(driver="raw", node_name="r", file="d", read_only=True),
      "-device", '{"driver": "virtio-blk", "drive": "d"}'], {"a.img": "rw"}),
    ([*blockdev(node_name="pf", driver="file", filename="flash.img"), "-machine", "pflash0=pf"],
     {"flash.img": "rw"}),
    # backing files
    (drive("format=qcow2,file=overlay.qcow2,backing.driver=raw,backing.file.filename=a.img"),
     {"overlay.qcow2": "rw", "a.img": "ro"}),
    ([*blockdev(driver="qcow2", node_name="d", file=OVERLAY, backing={"driver": "qcow2", "file": BASE}),
      *DEVICE], {"overlay.qcow2": "rw", "base.qcow2": "ro"}),
    ([*blockdev(driver="qcow2", node_name="d", file=OVERLAY,
                backing={"driver": "qcow2", "file": BASE, "read-only": False}), *DEVICE],
     {"overlay.qcow2": "rw", "base.qcow2": "rw"}),
    ([*blockdev(driver="qcow2", node_name="d", file=OVERLAY, backing=None), *DEVICE],
     {"overlay.qcow2": "rw"}),
    ([*blockdev(node_name="p", **BASE), *blockdev(driver="qcow2", node_name="b", file="p", read_only=True),
      *blockdev(driver="qcow2", node_name="d", file=OVERLAY, backing="b"), *DEVICE],
     {"overlay.qcow2": "rw", "base.qcow2": "ro"}),
    ([*blockdev(node_name="p", **BASE), *blockdev(driver="qcow2", node_name="b", file="p"),
      *blockdev(driver="qcow2", node_name="d", file=OVERLAY, backing="b"), *DEVICE],
     {"overlay.qcow2": "rw", "base.qcow2": "rw"}),
    ([*blockdev(driver="qcow2", node_name="b", file=BASE),
      *blockdev(driver="qcow2", node_name="d", file=OVERLAY, backing="b", read_only=True), *DEVICE],
     {"overlay.qcow2": "ro", "base.qcow2": "rw"}),
    # filters, and nodes with several children
    ([*blockdev(driver="qcow2", node_name="d", file={"driver": "file", "filename": "meta.qcow2"},
                data_file={"driver": "file", "filename": "data.img"}), *DEVICE],
     {"meta.qcow2": "rw", "data.img": "rw"}),
    ([*blockdev(driver="quorum", node_name="d", vote_threshold=1, children=[A, B]), *DEVICE],
     {"a.img": "rw", "b.img": "rw"}),
    (["-blockdev", f"quorum,node-name=d,vote-threshold=1,{QUORUM_CHILDREN}", *DEVICE],
     {"a.img": "rw", "b.img": "rw"}),
    ([*blockdev(driver="blkdebug", node_name="d", image=A), *DEVICE], {"a.img": "rw"}),
    ([*blockdev(driver="blkverify", node_name="d", raw=A, test=B), *DEVICE], {"a.img": "rw", "b.img": "rw"}),
    ([*blockdev(driver="blklogwrites", node_name="d", file=A, log=B), *DEVICE],
     {"a.img": "rw", "b.img": "rw"}),
    ([*blockdev(driver="copy-on-read", node_name="d", file=A), *DEVICE], {"a.img": "rw"}),
    (["-object", "throttle-group,id=t",
      *blockdev(driver="throttle", node_name="d", throttle_group="t", file={"driver": "raw", "file": A}),
      *DEVICE], {"a.img": "rw"}),
    ([*blockdev(driver="null-co", node_name="d"), *DEVICE], {}),
    ([], {}),
    # twice: once writable is writable
    (["-drive", "if=none,format=raw,file=a.img,readonly=on", *drive("format=raw,file=a.img,readonly=on")],
     {"a.img": "ro"}),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "disks"), OPENED, ids=" ".join)
def test_disks(arguments: list[str], disks: dict[str, str]) -> None:
    assert found(*arguments) == disks


# -- what no QEMU opens at all, or not here ---------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-drive", "file=nbd:localhost:10809,if=none"],
        ["-drive", "file=nbd://localhost/disk,if=none"],
        ["-drive", "file=rbd:pool/image:id=admin,if=none"],
        ["-drive", "file=https://example.org/disk.iso,if=none"],
        ["-drive", "file=ssh://host/disk,if=none"],
        ["-drive", "file=iscsi://host/iqn.2001-01:disk/0,if=none"],
        ["-drive", "file=nvme://0000:44:00.0/1,if=none"],
        ["-drive", "file=gluster://host/volume/disk,if=none"],
        ["-drive", "file=fat:rw:/some/directory,if=none"],
        ["-drive", "driver=nbd,host=localhost,port=10809,if=none"],
        ["-drive", "format=raw,file.driver=nbd,file.server.type=unix,file.server.path=/sock,if=none"],
        ["-drive", "format=raw,file.driver=iscsi,file.filename=iscsi://x/y/0,if=none"],
        ["-drive", "if=none,id=empty"],
        ["-drive", "if=none,file=,id=empty"],
        ["-drive", "a.img"],
        ["-blockdev", "nbd,node-name=d,server.type=unix,server.path=/sock"],
        ["-blockdev", '{"driver":"rbd","node-name":"d","pool":"p","image":"i"}'],
        ["-blockdev", '{"driver":"vvfat","node-name":"d","dir":"/some/directory"}'],
        ["-blockdev", '{"driver":"raw","node-name":"d","file":{"driver":"nvme","device":"0000:01:00.0"}}'],
        ["-blockdev", '{"driver":"raw","node-name":"d","file":"no such node"}'],
        ["-hda", "nbd:unix:/sock"],
        ["-hda", ""],
        [""],
        ["-hda"],
        ["-drive"],
        ["-device", "virtio-blk,drive=/a.img"],
        ["-kernel", "/vmlinuz", "-initrd", "/initrd", "-append", "-hda", "-bios", "/bios.bin"],
        ["-append", "-drive file=a.img"],
        ["-fsdev", "local,path=/srv", "-virtfs", "local,path=/srv", "-mem-path", "/dev/hugepages"],
        ["-chardev", "file,id=c,path=/log", "-serial", "file:/log", "-D", "/log", "-pidfile", "/pid"],
    ],
    ids=" ".join,
)
def test_no_disks(arguments: list[str]) -> None:
    assert found(*arguments) == {}


@pytest.mark.parametrize(
    ("arguments", "disks"),
    [
        (["-drive", "file=host_device:/dev/sdb,if=none"], {"/dev/sdb": "rw"}),
        (["-drive", "file=/dev/disk/by-path/pci-0000:00:1f.2,if=none"],
         {"/dev/disk/by-path/pci-0000:00:1f.2": "rw"}),
        (["-blockdev", "host_device,node-name=d,filename=/dev/sdb"], {"/dev/sdb": "rw"}),
        (["-blockdev", "host_cdrom,node-name=d,filename=/dev/sr0"], {"/dev/sr0": "ro"}),
        (["-drive", "file=host_cdrom:/dev/sr0,if=none"], {"/dev/sr0": "ro"}),
        (["-sd", "/card"], {"/card": "rw"}),
        (["-mtdblock", "/flash"], {"/flash": "rw"}),
        (["/a", "/b"], {"/a": "rw", "/b": "rw"}),
        (["-cdrom", "/a", "-hda", "/a"], {"/a": "rw"}),
        (["-hda", "/a", "-cdrom", "/a"], {"/a": "rw"}),
        # the remote half of a node does not hide the local one
        (["-drive", "if=none,driver=qcow2,file.driver=nbd,file.path=/sock,backing.file.filename=/base"],
         {"/base": "ro"}),
        # an option of a QEMU that we do not know, with and without an argument
        (["-flux-capacitor", "-cdrom", "/a"], {"/a": "ro"}),
        (["-flux-capacitor", "1.21GW", "-hda", "/a"], {"/a": "rw"}),
        # nodes in a ring: QEMU refuses them, and we come to an end
        ([*blockdev(driver="raw", node_name="x", file="y"),
          *blockdev(driver="raw", node_name="y", file="x"), "-device", "virtio-blk,drive=x"], {}),
        ([*blockdev(driver="raw", node_name="x", file="x"), "-device", "virtio-blk,drive=x"], {}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_disks_that_cannot_be_opened_here(arguments: list[str], disks: dict[str, str]) -> None:
    assert found(*arguments) == disks


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["-blockdev", '{"driver": "raw",'], '-blockdev {"driver": "raw",'),
        (["--blockdev", "{'driver': 'raw"], "--blockdev {'driver': 'raw"),
        (["-drive", "file=json:{nonsense,if=none"], "-drive file=json:{nonsense,if=none"),
        (["-drive", "file=json:[]"], "-drive file=json:[]"),
        (["-hda", "json:"], "-hda json:"),
        (["-blockdev", r'{"driver":"file","filename":"\ud800"}'], "-blockdev {"),
        (["json:{"], "json:{"),
        (["-blockdev", "{" + '"file":{' * 100_000], "-blockdev {"),
    ],
)
def test_damaged_json_names_the_option(arguments: list[str], source: str) -> None:
    with pytest.raises(UsageError) as raised:
        found(*arguments)
    assert str(raised.value).startswith(source)


def test_damage_in_what_names_no_disk_is_left_to_qemu() -> None:
    assert found("-device", "{nonsense", "-device", "{" * 100_000, "-hda", "/a") == {"/a": "rw"}


def test_the_source_is_the_option_that_makes_it_writable() -> None:
    argv = [QEMU, "--cdrom", "/a", "-drive", "file=/a,format=raw", "/b", "-hdc", "/b"]
    assert find_disks(argv) == [
        QemuDisk("/a", False, "-drive file=/a,format=raw"),
        QemuDisk("/b", False, "/b"),
    ]


# -- where QEMU begins ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["qemu-system-x86_64", "qemu-system-aarch64", "/usr/libexec/qemu-kvm", "/usr/bin/kvm", "qemu-kvm",
     "/nix/store/x/bin/.qemu-system-x86_64-wrapped", "./qemu-system-x86_64"],
)  # fmt: skip
def test_is_qemu(name: str) -> None:
    assert is_qemu(name)


@pytest.mark.parametrize(
    "name", ["qemu-img", "qemu-nbd", "qemu-ga", "sh", "", "/usr/bin/qemu-system-x86_64/", "qemu-x86_64"]
)
def test_is_not_qemu(name: str) -> None:
    assert not is_qemu(name)


@pytest.mark.parametrize(
    ("argv", "disks"),
    [
        (["numactl", "--membind", "0", QEMU, "-hda", "/a", "/b"], ["/a", "/b"]),
        (["nice", "-n", "5", "/usr/libexec/qemu-kvm", "/a"], ["/a"]),
        (["env", "LANG=C", "sudo", "-u", "qemu", "-g", "kvm", QEMU, "/a"], ["/a"]),
        (["kvm", "/a"], ["/a"]),
        # a wrapper under a name of its own: its bare words are its own
        (["./start-vm", "web", "-hda", "/a", "-drive", "file=/b,if=virtio", "now"], ["/a", "/b"]),
        (["./start-vm", "-drive", "file=/a", "-name", "qemu-kvm", "-hda", "/b"], ["/a", "/b"]),
        (["sleep", "infinity"], []),
        ([], []),
    ],
)
def test_qemu_behind_another_program(argv: list[str], disks: list[str]) -> None:
    assert [disk.path for disk in find_disks(argv)] == disks


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-name", "web"], "web"),
        (["-name", "guest=web,debug-threads=on"], "web"),
        (["-name", "web,process=qemu:web"], "web"),
        (["-name", "debug-threads=on,guest=a,,b"], "a,b"),
        (["-name", "first", "-name", "second", "-name", "process=x"], "second"),
        (["-append", "-name", "-hda", "/a"], None),
        (["-name", "process=x"], None),
        ([], None),
    ],
)
def test_vm_name(arguments: list[str], name: str | None) -> None:
    assert vm_name([QEMU, *arguments]) == name


def test_vm_uuid() -> None:
    uuid = "d4d18f4d-1cd9-4d2f-9d5c-1d2f6f2c6b6a"
    assert vm_uuid([QEMU, "-uuid", uuid, "-name", "web"]) == uuid
    assert vm_uuid([QEMU, "-append", "-uuid", uuid]) is None
    assert vm_uuid([QEMU]) is None
    assert vm_uuid([]) is None


# -- the real one -----------------------------------------------------------------------------------

WRITE_USED = 101  # the byte by which QEMU tells others that it may write
IMAGES = ("a.img", "b.img", "with,comma", "with,", "a=b", "with:colon", "data.img")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    for name in IMAGES:
        (directory / name).write_bytes(bytes(2**20))
    (directory / "flash.img").write_bytes(bytes(2**18))
    create = [find_program("qemu-img"), "create", "-q", "-f", "qcow2"]
    for more in (
        ["base.qcow2", "1M"],
        ["overlay.qcow2", "-b", "base.qcow2", "-F", "qcow2"],
        ["meta.qcow2", "1M", "-o", "data_file=data.img,data_file_raw=on"],
    ):
        assert run_command([*create, *more], cwd=directory).returncode == 0
    return directory


def locked_by(pid: int, directory: Path) -> dict[str, str]:
    """Every image that a process has open: "rw" if it tells so with its lock."""
    opened: dict[str, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = Path(os.readlink(f"/proc/{pid}/fd/{name}"))
            info = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
        except FileNotFoundError:
            continue  # closed meanwhile
        if path.parent != directory:
            continue
        ranges = [line.split()[-2:] for line in info.splitlines() if line.startswith("lock:")]
        writes = any(int(first) <= WRITE_USED <= int(last) for first, last in ranges)
        opened[path.name] = "rw" if writes or opened.get(path.name) == "rw" else "ro"
    return opened


@pytest.mark.real("qemu-system-x86_64", "qemu-img")
@pytest.mark.parametrize(("arguments", "disks"), OPENED, ids=" ".join)
def test_qemu_opens_them_so(
    qemu: QemuStarter,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    disks: dict[str, str],
) -> None:
    monkeypatch.chdir(images)
    started = qemu(*machine(), *arguments).wait_ready()
    expected = {os.path.normpath(path): how for path, how in disks.items()}
    if arguments and "overlay.qcow2" in str(arguments) and "backing" not in str(arguments):
        expected["base.qcow2"] = "ro"
    # QEMU opens an image more than once on its way: what counts is how it settles.
    try:
        wait_for("the locks", lambda: locked_by(started.pid, images) == expected, within=10)
    except AssertionError:
        assert locked_by(started.pid, images) == expected


def takes_argument(option: str) -> bool | None:
    """Ask QEMU; None if it does not know the option."""
    done = subprocess.run(
        [find_program(PROGRAM), "-machine", "help", f"-{option}"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    if "invalid option" in done.stderr:
        return None
    return "requires an argument" in done.stderr


def listed_options() -> set[str]:
    """Every option in the help of the installed program: ``-fda/-fdb file``, ``-h or -help``."""
    help_text = run_command([find_program(PROGRAM), "-help"]).stdout
    names = set()
    for line in help_text.splitlines():
        if line.startswith("-"):
            words = line.replace("/-", " -").split()
            end = 3 if words[1:2] == ["or"] else 2
            names |= {word.lstrip("-") for word in words[:end] if word.startswith("-")}
    return names


@pytest.mark.real("qemu-system-x86_64")
def test_the_option_tables_are_those_of_the_installed_qemu() -> None:
    listed = listed_options()
    assert len(listed) > 100
    tables = dict.fromkeys(qemu_options.WITH_ARGUMENT, True)
    tables.update(dict.fromkeys(qemu_options.WITHOUT_ARGUMENT, False))
    assert not qemu_options.WITH_ARGUMENT & qemu_options.WITHOUT_ARGUMENT
    with ThreadPoolExecutor(4) as pool:
        names = sorted(listed | set(tables))
        answers = dict(zip(names, pool.map(takes_argument, names)))
    assert {name for name in listed if answers[name] is None} == set()
    wrong = {name: answer for name, answer in answers.items() if answer not in (None, tables.get(name))}
    assert wrong == {}
