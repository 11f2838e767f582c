"""``explain`` beside the real libvirt, with its sanlock plugin and with virtlockd.

Each situation is asked about by every name that an operator has: the disk's path, the domain's name, the
process, the lease file; and the error that virsh gave is pasted as it was printed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk import LOCKSPACE_NAME, resource_name
from tests.support.explaining import explain, explain_error
from tests.support.fixtures import MakeHost
from tests.support.libvirthost import LEASE_DIR, NAME, PROGRAMS, LibvirtHost, disk_element, libvirt_host
from tests.support.programs import Child, find_program
from tests.support.qemu import make_disk
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.real(*PROGRAMS), pytest.mark.long]


# A lock of byte 0, as virtlockd's is, of another program.
LOCKER = """
import fcntl, sys, time
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def lv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtHost]:
    """A host with libvirt and sanlock."""
    with libvirt_host(tmp_path_factory.mktemp("libvirt") / "host", lock_manager="sanlock") as host:
        yield host


@pytest.fixture(scope="module")
def lockd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtHost]:
    """A host with libvirt and virtlockd."""
    with libvirt_host(tmp_path_factory.mktemp("lockd") / "host", lock_manager="lockd") as host:
        yield host


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def release_command(disk: Path, pid: int) -> str:
    resource = resource_name(disk)
    return f"sanlock client release -r {LOCKSPACE_NAME}:{resource}:{LEASE_DIR}/{resource}:0 -p {pid}"


# -- sanlock ---------------------------------------------------------------------------------------


def test_a_running_guest(lv: LibvirtHost, disk: Path) -> None:
    pid = lv.run("web", disk)
    for name in (disk, "web", pid, f"{LEASE_DIR}/{resource_name(disk)}"):
        answer = explain(lv, name)
        assert (answer.verdict, answer.json["disk"]) == ("busy", str(disk)), name
        assert answer.layers == [("lease", "exclusive", True), ("qemu", "write", True)]
        assert {(holder["pid"], holder["vm"]) for holder in answer.holders} == {(pid, "web")}
        host = answer.holder("lease")["host"]
        assert (host["host_name"], host["this_host"], host["state"]) == (NAME, True, "live")
        assert answer.commands == ["virsh shutdown web"]
        assert (
            "libvirt",
            f"domain 'web' has it as its disk: running (booted), process {pid}",
        ) in answer.facts
        assert f"in use by VM 'web', process {pid}" in answer.text.splitlines()[0]


def test_a_second_domain_is_refused(lv: LibvirtHost, disk: Path) -> None:
    lv.run("first", disk)
    lv.define("second", disk_element(disk))
    refused = lv.virsh("start", "second")
    assert refused.returncode == 1, refused
    told = explain_error(lv, refused.stderr)
    assert "somebody forbids writers" in told
    assert f"vmlockctl explain {disk}" in told
    assert explain(lv, "second").holder("qemu")["vm"] == "first"


def test_a_paused_guest(lv: LibvirtHost, disk: Path) -> None:
    """The lease is free on the disk, and QEMU's locks are held."""
    pid = lv.run("paused", disk)
    lv.succeed("suspend", "paused")
    for name in (disk, "paused"):
        answer = explain(lv, name)
        assert answer.layers == [("qemu", "write", True)]
        assert answer.holder("qemu")["pid"] == pid
        assert (
            "libvirt",
            f"domain 'paused' has it as its disk: paused (user), process {pid}",
        ) in answer.facts
        assert answer.commands[0] == "virsh resume paused"
        assert "on another host" in " ".join(answer.json["dont"])


def test_a_disk_attached_while_the_guest_was_paused(lv: LibvirtHost, disk: Path, tmp_path: Path) -> None:
    """The advice is followed, and the guest runs again."""
    pid, second = lv.run("plug", disk), make_disk(tmp_path / "b.img")
    lv.succeed("suspend", "plug")
    lv.succeed("attach-device", "plug", str(lv.xml(disk_element(second, target="vdb"))))
    answer = explain(lv, second)
    assert answer.layers == [("lease", "exclusive", True), ("qemu", "write", True)]
    assert answer.commands == [release_command(second, pid), "virsh resume plug"]
    failed = lv.virsh("resume", "plug")
    assert "attach while paused" in explain_error(lv, failed.stderr)
    for command in answer.commands:
        done = lv.command(*command.split())
        assert done.returncode == 0, done
    assert "running" in lv.succeed("domstate", "plug").stdout


def test_a_guest_that_libvirt_has_forgotten(lv: LibvirtHost, disk: Path) -> None:
    pid = lv.run("lost", disk)
    lv.forget("lost")
    assert "shut off" in lv.succeed("domstate", "lost").stdout
    for name in (disk, "lost"):
        answer = explain(lv, name)
        assert answer.layers == [("lease", "exclusive", True), ("qemu", "write", True)]
        assert answer.holder("qemu")["forgotten"]
        assert {(holder["pid"], holder["vm"]) for holder in answer.holders} == {(pid, "lost")}
        assert answer.commands == [f"kill {pid}"]
        assert "listed as shut off, but its process" in answer.text


def test_a_plain_process_under_a_lease_of_sanlock(lv: LibvirtHost, disk: Path) -> None:
    """And the misleading error that a domain gets then."""
    lv.define("shut", disk_element(disk))
    lv.succeed("start", "--paused", "shut")  # libvirt makes the lease file
    lv.succeed("destroy", "shut")
    resource = f"{LOCKSPACE_NAME}:{resource_name(disk)}:{LEASE_DIR}/{resource_name(disk)}:0"
    command = [find_program("sanlock"), "client", "command", "-r", resource, "-c", "/bin/sleep", "infinity"]
    with Child([*lv.prefix, *command], environment=lv.environment) as holder:
        wait_for("the lease", lambda: f"p {holder.pid}" in lv.command("sanlock", "client", "status").stdout,
                 within=20)  # fmt: skip
        wait_for("its holder", lambda: explain(lv, disk).verdict == "busy", within=20)
        answer = explain(lv, disk)
        assert answer.layers == [("lease", "exclusive", True)]
        lease = answer.holder("lease")
        assert (lease["pid"], lease["process"], lease["host"]["this_host"]) == (holder.pid, "sleep", True)
        assert answer.commands == [f"kill {holder.pid}"]
        refused = lv.virsh("start", "shut")
        assert "this same host holds the lease" in explain_error(lv, refused.stderr)


def test_a_lease_of_another_host(lv: LibvirtHost, make_host: MakeHost, holder: Child, disk: Path) -> None:
    there = make_host("elsewhere")
    there.join(lv.lease_dir, 7)
    assert there.acquire(holder.pid, disk, options=["--vm", "db"]).returncode == 0
    lv.define("here", disk_element(disk))
    refused = lv.virsh("start", "here")
    assert "another host holds the lease" in explain_error(lv, refused.stderr)
    answer = explain(lv, "here")
    lease = answer.holder("lease")
    assert (lease["host"]["host_name"], lease["host"]["this_host"], lease["vm"]) == ("elsewhere", False, "db")
    assert f"vmlockctl release --evidence {disk}" in answer.commands  # nobody here has observed it
    assert there.release(holder.pid, disk).returncode == 0


def test_guests_that_share_a_disk(lv: LibvirtHost, disk: Path) -> None:
    pids = {lv.run(name, disk, more="<shareable/>") for name in ("share1", "share2")}
    answer = explain(lv, disk)
    assert answer.layers == [("lease", "shared", True)] * 2 + [("qemu", "write", True)] * 2
    assert {holder["pid"] for holder in answer.holders} == pids
    assert set(answer.commands) == {"virsh shutdown share1", "virsh shutdown share2"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_guest_of_a_user(lv: LibvirtHost, disk: Path) -> None:
    """In libvirt's session mode its records are the user's own."""
    uid = 65534
    runtime = f"/run/user/{uid}"  # and home: a short path, which the name of QEMU's socket begins with
    os.chown(disk, uid, uid)
    for path in (*list(disk.parents)[:-2], lv.directory, lv.directory.parent):
        path.chmod(path.stat().st_mode | 0o055)
    lv.command("install", "-d", "-o", str(uid), "-m", "700", runtime)
    as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", f"HOME={runtime}",
               f"XDG_RUNTIME_DIR={runtime}", "virsh", "-c", "qemu:///session"]  # fmt: skip
    file = lv.domain_xml("mine", disk_element(disk))
    started = lv.command(*as_user, "create", str(file))
    assert started.returncode == 0, started
    answer = explain(lv, disk)
    holder = answer.holder("qemu")
    assert holder["vm"] == "mine"
    [command] = answer.commands
    assert command == f"sudo -u '#{uid}' XDG_RUNTIME_DIR={runtime} virsh -c qemu:///session shutdown mine"
    assert lv.command(*as_user, "destroy", "mine").returncode == 0


@pytest.mark.parametrize("name", ["vm\u202e[red]x", "vm'; kill 1 #"], ids=["bidi", "shell"])
def test_names_of_domains_print_harmlessly(lv: LibvirtHost, disk: Path, name: str) -> None:
    lv.run(name, disk)
    answer = explain(lv, disk)
    assert answer.holder("qemu")["vm"] == name
    assert "\u202e" not in answer.text
    assert ("[red]" in answer.text) == ("[red]" in name)
    assert [command.split(maxsplit=2)[2][0] for command in answer.commands] == ["'"]


# -- virtlockd -------------------------------------------------------------------------------------


def test_virtlockd_holds_byte_0(lockd: LibvirtHost, disk: Path) -> None:
    pid = lockd.run("vm0", disk)
    for name in (disk, "vm0", pid):
        answer = explain(lockd, name)
        assert sorted(answer.layers) == [("lockd", "exclusive", True), ("qemu", "write", True)]
        lock = answer.holder("lockd")
        assert (lock["pid"], lock["process"], lock["bytes"]) == (lockd.lock_daemon_pid, "virtlockd", "0")
        assert (lock["vm"], answer.holder("qemu")["pid"]) == ("vm0", pid)
        assert answer.commands == ["virsh shutdown vm0"]
    lockd.succeed("suspend", "vm0")
    answer = explain(lockd, disk)
    assert answer.layers == [("qemu", "write", True)]
    assert answer.commands[0] == "virsh resume vm0"


def test_a_foreign_lock_of_byte_0_refuses_a_domain(lockd: LibvirtHost, disk: Path) -> None:
    """A program with a lock of its own is no virtlockd; the error that it causes names virtlockd."""
    with Child([sys.executable, "-c", LOCKER, str(disk)]) as child:
        wait_for("the lock", lambda: explain(lockd, disk).verdict == "busy", within=10)
        lockd.define("vm1", disk_element(disk))
        refused = lockd.virsh("start", "vm1")
        told = explain_error(lockd, refused.stderr)
        assert "virtlockd holds the disk" in told
        assert f"vmlockctl explain {disk}" in told
        [holder] = explain(lockd, disk).holders
        assert (holder["layer"], holder["pid"], holder["bytes"]) == ("open", child.pid, "0")
        assert "a lock that is not QEMU's" in holder["text"]


def test_virtlockd_with_files_of_hashes(lockd: LibvirtHost, disk: Path) -> None:
    """The error names a hash only: it is taken as a name of the disk."""
    lockd.configure("qemu-lockd.conf", 'file_lockspace_dir = "/var/lib/libvirt/lockd"\n')
    lockd.restart_libvirtd()
    pid = lockd.run("hashed", disk)
    name = hashlib.sha256(os.fsencode(disk)).hexdigest()
    for text in (disk, "hashed", name):
        answer = explain(lockd, text)
        assert sorted(answer.layers) == [("lockd", "exclusive", True), ("qemu", "write", True)], text
        assert f"/var/lib/libvirt/lockd/{name}" in answer.holder("lockd")["text"]
        assert (answer.holder("lockd")["vm"], answer.holder("qemu")["pid"]) == ("hashed", pid)
        assert answer.commands == ["virsh shutdown hashed"]
