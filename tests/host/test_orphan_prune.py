"""--prune removes the leases of disks that are gone, each while it is held, whatever comes in between."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest

from tests.support.disk import (
    lease_leader,
    lease_owner,
    lockspace_path,
    read_leader,
    resource_name,
    resource_path,
)
from tests.support.orphans import findings, fixed, kinds
from tests.support.programs import Child
from tests.support.sanlockhost import SanlockHost, direct_init_resource
from tests.support.systemcalls import KILL, Answer, Call, Decision, Run, run_supervised
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk import ownernote

BUSY = 75
CLEARED = 0x11282016
PRUNE = ("check-orphans", "--prune", "--yes", "--json")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.img"
    path.parent.mkdir()
    path.write_bytes(bytes(4096))
    path.with_name("other.img").write_bytes(b"")
    return path


@pytest.fixture
def lease(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> Path:
    """The free lease of a disk that is gone."""
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    disk.unlink()
    return resource_path(lease_dir, disk)


def supervised(host: VmHost, lease: Path, decide: Callable[[int, Call], Decision]) -> Run:
    """Run --prune with each of its calls on the lease file shown to ``decide`` first."""
    return run_supervised(
        [*OUR_COMMAND, *PRUNE], environment=host.environment, places={"lease": str(lease)}, decide=decide,
    )  # fmt: skip


# -- what is removed -----------------------------------------------------------------------------------


def test_a_lease_of_a_disk_that_is_gone(host: VmHost, lease: Path, disk: Path) -> None:
    [found] = findings(host, disk)
    assert (found["kind"], found["fix"]) == ("missing-disk", "remove")
    assert found["command"] == "vmlockctl check-orphans --prune"
    assert fixed(host, "--fix") == [], "--fix does not remove files"
    assert lease.exists()
    assert host.call("check-orphans", "--prune").returncode == 77, "there is nobody to ask"
    assert lease.exists()
    assert [(done["done"], done["text"]) for done in fixed(host, "--prune")] == [(True, "removed")]
    assert not lease.exists()
    assert kinds(host, disk) == []
    assert list(host.claims_dir.glob("*.json")) == []


def test_the_disk_comes_back(host: VmHost, holder: Child, lease: Path, lease_dir: Path, disk: Path) -> None:
    """A new lease is made for it, as for every disk."""
    assert fixed(host, "--prune")
    disk.write_bytes(bytes(4096))
    assert host.acquire(holder.pid, disk).returncode == 0
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    assert (leader.owner_id, leader.lver) == (1, 1)


@pytest.mark.real("sanlock")
def test_one_that_was_never_acquired(host: VmHost, lease_dir: Path, disk: Path, tmp_path: Path) -> None:
    """Nothing in it says which disk it was: only where libvirt still defines the VM can that be told."""
    path = resource_path(lease_dir, disk)
    path.write_bytes(bytes(1 << 20))
    direct_init_resource(path, resource=resource_name(disk))
    disk.unlink()
    assert fixed(host, "--prune") == []
    defined = tmp_path / "web1.xml"
    defined.write_text(
        f"<domain><name>web1</name><devices><disk><source file='{disk}'/></disk></devices></domain>"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can show it another /etc/libvirt")
    directory = "/etc/libvirt/qemu"
    run = f'mount -t tmpfs none /etc/libvirt && mkdir {directory} && cp "$0" {directory} && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", run, str(defined)]
    result = host.call(*PRUNE, prefix=prefix)
    assert "libvirt domain web1" in result.stdout
    assert not path.exists(), result


@pytest.mark.long
def test_one_of_a_dead_host(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    assert there.acquire(holder.pid, disk).returncode == 0
    wait_for("B to be seen", lambda: here.seen_state(2) == "live", within=15)
    there.crash_everything()
    disk.unlink()
    assert fixed(here, "--prune") == []
    wait_for("B to be dead", lambda: here.seen_state(2) == "dead", within=90, every_seconds=0.5)
    assert kinds(here, disk) == ["dead-host", "missing-disk"]
    assert [done["text"] for done in fixed(here, "--fix", "--prune")] == ["released", "removed"]
    assert not resource_path(lease_dir, disk).exists()


# -- what is not ---------------------------------------------------------------------------------------


def test_one_that_is_held(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    assert here.acquire(holder.pid, disk).returncode == 0
    disk.unlink()
    for host in (here, there):
        assert fixed(host, "--fix", "--prune") == []
        assert lease_owner(lease_dir, disk) == 1
    assert kinds(here, disk) == ["missing-disk"]
    assert kinds(there, disk) == [], "it may be a disk of that host alone"


@pytest.mark.parametrize("case", ["directory gone", "directory empty", "link"])
def test_one_whose_disk_may_be_out_of_sight(host: VmHost, lease: Path, disk: Path, case: str) -> None:
    """A file system that is not mounted here looks just so."""
    if case == "link":
        disk.symlink_to("not-mounted")
    else:
        disk.with_name("other.img").unlink()
        if case == "directory gone":
            disk.parent.rmdir()
    [found] = findings(host, disk)
    assert (found["severity"], found["fix"]) == ("info", None)
    assert "mounted" in found["evidence"][0]
    assert fixed(host, "--prune") == []
    assert lease.exists()


def test_one_whose_note_names_another_disk(host: VmHost, lease: Path, disk: Path) -> None:
    """A note is advice, the digest proves: the disk may be there under the name that has that digest."""
    data = bytearray(lease.read_bytes())
    note = ownernote.from_bytes(bytes(data[-4096:]))
    assert note is not None
    other = disk.with_name("b.img")
    data[-4096:] = ownernote.to_bytes({**note, "disk": str(other)})
    lease.write_bytes(data)
    assert (findings(host, other), findings(host, disk)) == ([], [])
    assert fixed(host, "--prune") == []
    assert lease.exists()


def answered(host: VmHost, before: Callable[[], object], answer: str) -> tuple[int, str]:
    """Run --prune at a terminal, and answer its question; its exit status and what it said."""
    terminal, ours = pty.openpty()
    said = host.run_dir / "said"
    with said.open("wb") as output, os.fdopen(terminal, "wb", buffering=0) as keyboard:
        command = [*OUR_COMMAND, "check-orphans", "--prune"]
        process = subprocess.Popen(
            command, stdin=ours, stdout=output, stderr=subprocess.STDOUT, env=host.environment
        )
        os.close(ours)
        wait_for("the question", lambda: "Really remove 1?" in said.read_text(), within=20)
        before()
        keyboard.write(f"{answer}\n".encode())
        return process.wait(20), said.read_text()


def test_one_whose_disk_comes_back_while_somebody_is_asked(host: VmHost, lease: Path, disk: Path) -> None:
    before = lease.read_bytes()
    status, said = answered(host, lambda: disk.write_bytes(b""), "y")
    assert status == 1
    assert f"{disk}: left as it is: {disk} is there" in said
    assert lease.read_bytes() == before


@pytest.mark.parametrize(("answer", "statuses"), [("n", {77}), ("y", {0, 1})])
def test_what_a_person_answers(host: VmHost, lease: Path, answer: str, statuses: set[int]) -> None:
    """A yes ends with 1 where a QEMU of another test is found."""
    status, _ = answered(host, lambda: None, answer)
    assert status in statuses
    assert lease.exists() == (answer == "n")


# -- crashes -------------------------------------------------------------------------------------------


def steps_of(calls: list[Call]) -> list[int]:
    """The numbers of the calls that change something, which a crash may precede or follow."""
    return [number for number, call in enumerate(calls, 1) if call.is_write or "unlink" in call.name]


def test_a_crash_at_every_step_can_be_run_again(host: VmHost, lease: Path, disk: Path) -> None:
    """Before each write and the unlink: what is left is a lease that is free or the file's absence."""
    saved = lease.read_bytes()
    calls = supervised(host, lease, lambda _number, _call: None).calls
    assert not lease.exists()
    steps = steps_of(calls)
    assert [calls[number - 1].name.rstrip("at") for number in steps].count("unlink") == 1
    assert len(steps) >= 5
    for step in steps:
        lease.write_bytes(saved)
        run = supervised(host, lease, lambda number, _call, step=step: KILL if number == step else None)
        assert run.returncode == -9, run
        wait_for("the claim to be settled", lambda: not list(host.claims_dir.glob("*.json")), within=15)
        if lease.exists():
            assert lease_owner(lease.parent, disk) == 0, f"after a crash at call {step}"
            assert [done["text"] for done in fixed(host, "--prune")] == ["removed"]
        assert not lease.exists()
        assert lockspace_path(lease.parent).exists()
    assert host.status()["this_host"]["generation"] == 1


# -- races ---------------------------------------------------------------------------------------------


def acquire_with_a_disk(host: VmHost, holder: Child, disk: Path) -> int:
    """As a host that sees the disk does; on one machine its sight is everybody's."""
    disk.write_bytes(b"")
    try:
        return host.acquire(holder.pid, disk).returncode
    finally:
        disk.unlink()


def test_whoever_holds_the_lease_first_keeps_it(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease: Path, disk: Path
) -> None:
    """Another host acquires in the moment before our ballot."""
    here, there = two_hosts
    done: list[int] = []

    def decide(_number: int, call: Call) -> Decision:
        if call.is_write and not done:
            done.append(acquire_with_a_disk(there, holder, disk))
        return None

    run = supervised(here, lease, decide)
    assert done == [0]
    assert "left as it is" in run.stdout, run
    assert lease_owner(lease.parent, disk) == 2
    assert there.release(holder.pid, disk).returncode == 0


def test_nobody_gets_a_lease_that_is_being_removed(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease: Path, disk: Path
) -> None:
    """In the moment of the unlink it is held, so another host is refused; then it makes a new one."""
    here, there = two_hosts
    done: list[int] = []

    def decide(_number: int, call: Call) -> Decision:
        if "unlink" in call.name:
            done.append(acquire_with_a_disk(there, holder, disk))
        return None

    supervised(here, lease, decide)
    assert done == [BUSY]
    assert not lease.exists()
    assert acquire_with_a_disk(there, holder, disk) == 0
    assert lease_owner(lease.parent, disk) == 2


def test_a_grant_in_a_file_that_was_removed_is_none(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease: Path, disk: Path
) -> None:
    """A host opened the lease, and wins it after somebody has put another file there: nothing is granted."""
    here, there = two_hosts
    disk.write_bytes(b"")
    copies: list[bytes] = []

    def decide(_number: int, call: Call) -> Decision:
        if call.is_write and not copies:
            copies.append(lease.read_bytes())
            lease.unlink()
            lease.write_bytes(copies[0])
        return None

    run = run_supervised(
        [*OUR_COMMAND, "acquire", "--pid", str(holder.pid), str(disk)],
        environment=there.environment, places={"lease": str(lease)}, decide=decide,
    )  # fmt: skip
    assert run.returncode == BUSY, run
    assert "removed or replaced" in run.stderr
    assert list(there.claims_dir.glob("*.json")) == []
    assert here.acquire(holder.pid, disk).returncode == 0


def test_a_lease_that_is_removed_before_it_is_acquired_is_made_again(
    host: VmHost, holder: Child, lease: Path, disk: Path
) -> None:
    """Another host prunes; before each call of an acquire in turn, up to the first write."""
    disk.write_bytes(b"")
    acquire = [*OUR_COMMAND, "acquire", "--pid", str(holder.pid), "--wait=9", str(disk)]
    writes: list[int] = []
    before = 1
    while not writes or before <= writes[0]:
        writes.clear()

        def remove(number: int, call: Call, before: int = before) -> Decision:
            if call.is_write:
                writes.append(number)
            if number == before:
                lease.unlink()
            return None

        run = run_supervised(
            acquire, environment=host.environment, places={"lease": str(lease)}, decide=remove
        )
        assert run.returncode == 0, f"before call {before}: {run}"
        assert lease_owner(lease.parent, disk) == 1
        assert host.release(holder.pid, disk).returncode == 0
        before += 1
    assert before > 3


def test_a_lease_that_is_removed_while_others_look_is_no_trouble(
    host: VmHost, lease: Path, disk: Path
) -> None:
    """Another host prunes; before each of our calls on the file in turn."""
    saved = lease.read_bytes()
    look = [*OUR_COMMAND, "check-orphans", "--json"]
    places = {"lease": str(lease)}
    calls = run_supervised(look, environment=host.environment, places=places).calls
    assert len(calls) >= 3
    for number in range(1, len(calls) + 1):
        lease.write_bytes(saved)

        def remove(count: int, _call: Call, number: int = number) -> Decision:
            if count == number:
                lease.unlink()
            return None

        run = run_supervised(look, environment=host.environment, places=places, decide=remove)
        assert run.returncode in (0, 1), f"before call {number}, {calls[number - 1]}: {run}"


def test_whoever_has_the_removed_file_open_finds_no_lease_there(
    host: VmHost, lease: Path, disk: Path
) -> None:
    with lease.open("rb") as opened:
        assert fixed(host, "--prune")
        assert not lease.exists()
        old = Path(f"/proc/self/fd/{opened.fileno()}")
        assert read_leader(old).magic == CLEARED


@pytest.mark.real("sanlock")
@pytest.mark.long
def test_beside_sanlock(
    host: VmHost, sanlock_host: SanlockHost, holder: Child, lease: Path, disk: Path
) -> None:
    """What sanlock holds is left alone; in a file that is being removed it gets nothing."""
    sanlock_host.join(lease.parent, 2)
    code, theirs = sanlock_host.acquire(lease.parent, disk)
    assert code == 0
    assert fixed(host, "--prune") == []
    assert lease_owner(lease.parent, disk) == 2
    sanlock_host.release(theirs)

    codes: list[Optional[int]] = []

    def decide(_number: int, call: Call) -> Decision:
        if "unlink" in call.name:
            wait_for("sanlock to see us", lambda: 1 in sanlock_host.hosts(), within=10)
            codes.append(sanlock_host.acquire(lease.parent, disk, within=90)[0])
        return None

    supervised(host, lease, decide)
    assert codes == [-243]
    assert not lease.exists()


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_directory_that_refuses_tells_why(host: VmHost, lease: Path, disk: Path, error: int) -> None:
    """Nothing is removed, and the lease is free again when the command ends."""

    def refuse(_number: int, call: Call) -> Decision:
        return Answer(error=error) if "unlink" in call.name else None

    run = supervised(host, lease, refuse)
    assert "cannot remove" in run.stdout
    assert lease_owner(lease.parent, disk) == 0
    assert fixed(host, "--prune")[0]["done"]


def test_an_unlink_whose_outcome_is_unknown_is_left_to_the_daemon(
    host: VmHost, lease: Path, disk: Path
) -> None:
    def fail(_number: int, call: Call) -> Decision:
        return Answer(error=errno.EIO) if "unlink" in call.name else None

    run = supervised(host, lease, fail)
    assert "left as it is" in run.stdout
    wait_for("the release", lambda: lease_owner(lease.parent, disk) == 0, within=15)
    wait_for("the claim to be settled", lambda: not list(host.claims_dir.glob("*.json")), within=15)
    assert fixed(host, "--prune")[0]["done"]
