"""Who has a disk open: under every name, without a name, and without asking a file system that hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fusefs import FaultyMount
from tests.unit.host.test_process import as_nobody, headless_process, root_only
from vmlockctl.host import openers
from vmlockctl.host.openers import Identity, Opener, OpenersFound, Search, find_openers
from vmlockctl.host.process import identify

# Opens its arguments, FLAGS:PATH each, and holds them open until its stdin ends.
HOLD = """
import os, sys
for argument in sys.argv[1:]:
    flags, _, path = argument.partition(":")
    os.open(path, int(flags))
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_open(*opened: tuple[int, Path]) -> Iterator[int]:
    """Another process that has these files open; its pid."""
    arguments = [f"{flags}:{path}" for flags, path in opened]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            yield child.pid
        finally:
            child.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


def searched(disk: Path) -> OpenersFound:
    search = Search(str(disk))
    try:
        assert search.answers(10)
        assert search.is_for(Identity.of_path(str(disk)))
        return search.result()
    finally:
        search.close()


@pytest.mark.parametrize("path", ["/nonexistent", "/", "a\0b", "x" * 5000])
def test_a_search_for_what_is_no_disk(path: str) -> None:
    search = Search(path)
    assert search.answers(10)
    assert not search.is_for(Identity.of_path("/"))
    search.close()


def test_a_search_in_another_process_finds_the_same(disk: Path) -> None:
    """Neither itself nor who asked."""
    identity = Identity.of_path(str(disk))
    with held_open((os.O_RDWR, disk)) as first, held_open((os.O_RDONLY, disk)) as second, disk.open():
        found = searched(disk)
        assert found.openers == find_openers([identity], skip={os.getpid()}).openers
        assert {opener.pid for opener in found.openers[identity]} == {first, second}


def test_a_search_that_fails_is_made_again(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = openers.dumps
    monkeypatch.setattr(openers, "dumps", lambda told: dumps(told) if isinstance(told, Identity) else None)
    identity = Identity.of_path(str(disk))
    with held_open((os.O_RDWR, disk)) as pid:
        found = searched(disk)
        assert [opener.pid for opener in found.openers[identity]] == [pid]


def openers_of(path: Path) -> list[Opener]:
    identity = Identity.of_path(str(path))
    return find_openers([identity]).openers.get(identity, [])


def pids_of(path: Path) -> list[int]:
    return [opener.pid for opener in openers_of(path)]


# -- identities ---------------------------------------------------------------------------------


def block_device() -> Path:
    for name in sorted(os.listdir("/sys/block")):
        if stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode):
            return Path("/dev", name)
    raise AssertionError("a machine without any block device")


def test_a_file_is_its_inode(disk: Path) -> None:
    alias, link = disk.with_name("hard link"), disk.with_name("symbolic link")
    os.link(disk, alias)
    link.symlink_to(disk)
    found = os.stat(disk)
    assert Identity.of_path(str(disk)) == Identity("file", found.st_dev, found.st_ino)
    assert Identity.of_path(str(alias)) == Identity.of_path(str(link)) == Identity.of_path(str(disk))
    assert Identity.of_path(str(disk.parent)) != Identity.of_path(str(disk))


@root_only
def test_a_block_device_is_its_number_under_every_node(tmp_path: Path) -> None:
    device = block_device()
    number = os.stat(device).st_rdev
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, number)
    assert Identity.of_path(str(device)) == Identity.of_path(str(node)) == Identity("block", number, 0)


# -- finding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "writable"), [(os.O_RDONLY, False), (os.O_WRONLY, True), (os.O_RDWR | os.O_APPEND, True)]
)
def test_an_opener(disk: Path, flags: int, writable: bool) -> None:
    assert openers_of(disk) == []
    with held_open((flags, disk)) as pid:
        process = identify(pid)
        assert process is not None
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        assert openers_of(disk) == [Opener(pid, process.start_time, comm, writable)]
    assert openers_of(disk) == []


def test_one_descriptor_that_may_write_is_enough(disk: Path) -> None:
    for order in ((os.O_RDWR, os.O_RDONLY), (os.O_RDONLY, os.O_RDWR), (os.O_RDONLY, os.O_WRONLY)):
        with held_open(*((flags, disk) for flags in order)) as pid:
            assert [(opener.pid, opener.writable) for opener in openers_of(disk)] == [(pid, True)]


def test_a_mere_name_is_no_opener(disk: Path) -> None:
    with held_open((os.O_PATH, disk)):
        assert openers_of(disk) == []


def test_neither_a_new_name_nor_none_hides_it(disk: Path) -> None:
    identity = Identity.of_path(str(disk))
    alias = disk.with_name("alias")
    os.link(disk, alias)
    with held_open((os.O_RDWR, disk)) as pid:
        assert pids_of(alias) == [pid]
        renamed = disk.rename(disk.with_name("renamed"))
        assert pids_of(renamed) == [pid]
        alias.unlink()
        renamed.unlink()
        disk.write_bytes(bytes(4096))  # another file under the old name
        assert [opener.pid for opener in find_openers([identity]).openers[identity]] == [pid]
        assert Identity.of_path(str(disk)) != identity
        assert openers_of(disk) == []


def test_many_disks_in_one_scan(disk: Path) -> None:
    other, untouched = disk.with_name("other"), disk.with_name("untouched")
    other.touch()
    untouched.touch()
    wanted = [Identity.of_path(str(path)) for path in (disk, other, untouched)]
    with held_open((os.O_RDWR, disk), (os.O_RDONLY, other)) as first, held_open((os.O_RDWR, other)) as second:
        found = find_openers(wanted).openers
    assert {
        identity: [(opener.pid, opener.writable) for opener in sorted(who)] for identity, who in found.items()
    } == {
        wanted[0]: [(first, True)],
        wanted[1]: sorted([(first, False), (second, True)]),
    }


def test_skipped_processes(disk: Path) -> None:
    identity = Identity.of_path(str(disk))
    with held_open((os.O_RDWR, disk)) as first, held_open((os.O_RDWR, disk)) as second:
        found = find_openers([identity], skip={first, os.getpid()}).openers
        assert [opener.pid for opener in found[identity]] == [second]
        assert find_openers([identity], skip={first, second}).openers == {}


def test_nothing_is_asked_for() -> None:
    assert find_openers([]).openers == {}


@root_only
@pytest.mark.parametrize("node_name", ["dev/node", ""])
def test_a_block_device_under_another_node(tmp_path: Path, node_name: str) -> None:
    device = block_device()
    path = device
    if node_name:
        path = tmp_path / node_name
        path.parent.mkdir()
        os.mknod(path, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
    before = pids_of(device)
    with held_open((os.O_RDONLY, path)) as pid:
        found = [opener for opener in openers_of(device) if opener.pid not in before]
        assert [(opener.pid, opener.writable) for opener in found] == [(pid, False)]


def test_the_files_of_a_process_whose_main_thread_has_ended(disk: Path) -> None:
    with headless_process(disk) as pid:
        assert os.listdir(f"/proc/{pid}/fd") == []
        assert [(opener.pid, opener.writable) for opener in openers_of(disk)] == [(pid, True)]


def test_a_zombie_has_nothing_open(disk: Path) -> None:
    with disk.open("r+b") as output:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
    with child:
        assert pids_of(disk) == [child.pid]
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert openers_of(disk) == []


def test_processes_that_vanish_meanwhile(disk: Path) -> None:
    """Scan while a crowd starts and ends, each with the disk open for a moment."""
    identity = Identity.of_path(str(disk))
    script = 'for i in $(seq 300); do (exec 9<"$1"; :) & done; wait'
    with held_open((os.O_RDWR, disk)) as pid, subprocess.Popen(["sh", "-c", script, "sh", disk]) as crowd:
        while crowd.poll() is None:
            assert pid in [opener.pid for opener in find_openers([identity]).openers[identity]]


# -- what we may not look into --------------------------------------------------------------------


@root_only
def test_unreadable_processes_are_counted(disk: Path) -> None:
    identity = Identity.of_path(str(disk))
    with held_open((os.O_RDWR, disk)):
        answer = as_nobody(lambda: "{0.openers} {0.unreadable}".format(find_openers([identity])))
        openers_found, _, unreadable = answer.rpartition(" ")
        assert openers_found == "{}"
        # Kernel threads and zombies have no arguments, and cannot be openers.
        arguments = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                arguments.append(Path("/proc", name, "cmdline").read_bytes())
        without = arguments.count(b"")
        # Others start and end beside us, but not half as many as there are kernel threads.
        assert 2 <= int(unreadable) <= len(arguments) - without + max(30, without // 2)


# -- a machine on paper: mounts, kernels and file systems that this one does not have ---------------

WANTED_MOUNT, OTHER_MOUNT = "25 1 {device} / /disks rw - ext4 /dev/sda rw", "26 1 0:99 / /nfs rw - nfs s:/ rw"
BTRFS = "27 1 0:77 / /btrfs rw - btrfs /dev/sdb rw"
DETACHED = 28


class PaperProc:
    """A /proc with one process, whose descriptor 7 is a link to the disk."""

    def __init__(self, root: Path, disk: Path) -> None:
        self.root, self.disk = root, disk
        self.identity = Identity.of_path(str(disk))
        process = root / "4242"
        (process / "fd").mkdir(parents=True)
        (process / "fdinfo").mkdir()
        (process / "task" / "4242").mkdir(parents=True)
        (process / "fd" / "7").symlink_to(disk)
        (process / "stat").write_text("4242 (qemu (x)) S 1 " + "0 " * 17 + "777 0 0\n")
        (root / "self").symlink_to(process)
        device = f"{os.major(self.identity.dev)}:{os.minor(self.identity.dev)}"
        mounts = [WANTED_MOUNT.format(device=device), OTHER_MOUNT, BTRFS]
        (process / "mountinfo").write_text("\n".join(mounts) + "\n")

    def found(self, *, mount_id: int, ino: object = None, flags: str = "0100002") -> bool:
        lines = ["pos:\t0", f"flags:\t{flags}", f"mnt_id:\t{mount_id}"]
        if ino is not None:
            lines.append(f"ino:\t{ino}")
        lines.append("lock:\t1: OFDLCK  ADVISORY  READ -1 00:14:99 100 101")
        (self.root / "4242" / "fdinfo" / "7").write_text("\n".join(lines) + "\n")
        found = find_openers([self.identity], proc=str(self.root))
        assert found.unreadable == 0
        if found.openers:
            assert found.openers == {self.identity: [Opener(4242, 777, "qemu (x)", flags.endswith("2"))]}
        return bool(found.openers)


@pytest.fixture
def paper(tmp_path: Path, disk: Path) -> PaperProc:
    return PaperProc(tmp_path / "proc", disk)


def test_inode_and_mount_tell(paper: PaperProc) -> None:
    assert paper.found(mount_id=25, ino=paper.identity.ino)
    assert paper.found(mount_id=25, ino=paper.identity.ino, flags="0100000")
    assert not paper.found(mount_id=25, ino=paper.identity.ino + 1)


def test_the_same_inode_elsewhere_is_not_followed(paper: PaperProc) -> None:
    """Followed, the link would lead to the disk: that it is not found shows that nobody followed it."""
    assert not paper.found(mount_id=26, ino=paper.identity.ino)


@pytest.mark.parametrize("mount_id", [27, DETACHED])
def test_where_the_mount_table_does_not_tell_the_link_is_followed(paper: PaperProc, mount_id: int) -> None:
    assert paper.found(mount_id=mount_id, ino=paper.identity.ino)
    assert not paper.found(mount_id=mount_id, ino=paper.identity.ino + 1)
    paper.disk.rename(paper.disk.with_name("old"))
    paper.disk.touch()
    assert not paper.found(mount_id=mount_id, ino=paper.identity.ino)


def test_kernels_that_tell_no_inode(paper: PaperProc) -> None:
    assert paper.found(mount_id=25)
    assert paper.found(mount_id=DETACHED)
    assert not paper.found(mount_id=26)
    paper.disk.rename(paper.disk.with_name("old"))
    paper.disk.touch()
    assert not paper.found(mount_id=25)


def test_a_file_that_can_no_longer_be_told_is_counted(
    paper: PaperProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_stat = os.stat

    def stale(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/fd/7"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real_stat(path, **options)

    assert paper.found(mount_id=DETACHED)
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stale)
        found = find_openers([paper.identity], proc=str(paper.root))
    assert found.openers == {}
    assert found.unreadable == 1


# -- a file system that does not answer -------------------------------------------------------------


def test_a_hung_file_system_is_not_asked(faulty: FaultyMount) -> None:
    hung = faulty.path / "disk.img"
    hung.write_bytes(bytes(4096))
    identity = Identity.of_path(str(hung))
    results: list[OpenersFound] = []
    scan = threading.Thread(target=lambda: results.append(find_openers([identity])), daemon=True)
    with held_open((os.O_RDWR, hung)) as pid:
        faulty.fail("hang")
        try:
            scan.start()
            scan.join(10)
            assert faulty.hits == 0
            assert [opener.pid for opener in results[0].openers[identity]] == [pid]
        finally:
            faulty.heal()
            scan.join(10)
