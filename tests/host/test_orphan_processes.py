"""VMs without a lease, under a lease that others took, and those that libvirt has forgotten: real QEMUs."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from pathlib import Path

import pytest

from tests.support.disk import (
    lease_is_free,
    lease_leader,
    lease_owner,
    resource_path,
    write_leader,
)
from tests.support.orphans import findings, fixed, kinds
from tests.support.programs import Child
from tests.support.qemu import Qemu, QemuStarter, drive, machine, make_disk
from tests.support.sanlockhost import SanlockHost
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

pytestmark = pytest.mark.real("qemu-system-x86_64")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def known(host: VmHost, holder: Child, disk: Path) -> None:
    """Let the lockspace have a lease of the disk, which is free."""
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0


def bare(qemu: QemuStarter, disk: Path, *options: str) -> Qemu:
    return qemu("-name", "web1", *machine(), *drive(disk), *options).wait_ready()


# -- adopting ------------------------------------------------------------------------------------------


def test_a_running_vm_is_adopted(
    host: VmHost, holder: Child, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """By an ordinary acquire for its process; then it is watched as any other."""
    known(host, holder, disk)
    vm = bare(qemu, disk)
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["fix"]) == ("unprotected-process", vm.pid, "adopt")
    assert found["command"] == f"vmlockctl acquire --pid {vm.pid} {disk}"
    assert [(done["done"], done["text"]) for done in fixed(host, "--fix")] == [(True, "adopted")]
    assert lease_owner(lease_dir, disk) == 1
    assert kinds(host, disk) == []
    [owner] = host.lease_status(disk)["owners"]
    assert (owner["pid"], owner["vm"]) == (vm.pid, "web1")
    assert vm.quit() == 0
    wait_for("the release", lambda: lease_is_free(lease_dir, disk), within=5)


def test_the_claim_of_a_running_vm_is_given_back(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """The lease stays this host's at every moment; the daemon stops the VM again when it is lost."""
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    before = lease_leader(lease_dir, disk)
    for claim in host.claims_dir.glob("*.json"):
        claim.unlink()
    assert [done["text"] for done in fixed(host, "--fix")] == ["adopted"]
    after = lease_leader(lease_dir, disk)
    assert before is not None
    assert after is not None
    assert (after.owner, after.lver) == (before.owner, before.lver + 1)
    assert kinds(host, disk) == []
    write_leader(resource_path(lease_dir, disk), after._replace(owner_id=2))
    vm.wait(within=10)


def test_a_disk_that_was_plugged_into_a_running_vm(
    host: VmHost, holder: Child, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """No command line names it; that the process has it open for writing does."""
    known(host, holder, disk)
    vm = qemu(*machine()).wait_ready()
    assert kinds(host, disk) == []
    image = {"driver": "file", "filename": str(disk)}
    vm.qmp("blockdev-add", driver="raw", file=image, **{"node-name": "plugged"})
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["fix"]) == ("unprotected-process", vm.pid, "adopt")
    assert [done["done"] for done in fixed(host, "--fix")] == [True]
    assert lease_owner(lease_dir, disk) == 1


def test_a_vm_whose_disk_has_no_lease_here_is_left_to_a_person(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """It may be none of this lockspace's: protecting it means that it is stopped when the storage is lost."""
    vm = bare(qemu, disk)
    [found] = findings(host, disk)
    assert (found["kind"], found["fix"]) == ("unprotected-process", None)
    assert fixed(host, "--fix") == []
    assert lease_leader(lease_dir, disk) is None
    done = host.call(*shlex.split(found["command"])[1:])
    assert done.returncode == 0, done
    assert kinds(host, disk) == []
    assert vm.quit() == 0


def test_a_disk_with_two_writers_is_adopted_by_neither(
    host: VmHost, holder: Child, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    known(host, holder, disk)
    first = bare(qemu, disk, "-snapshot")
    assert kinds(host, disk) == [], "with -snapshot it writes elsewhere"
    assert first.quit() == 0
    vms = [qemu(*machine(), *drive(disk, "file.locking=off")).wait_ready() for _ in range(2)]
    found = findings(host, disk)
    assert [(f["kind"], f["fix"]) for f in found] == [("unprotected-process", None)] * 2
    assert {f["pid"] for f in found} == {vm.pid for vm in vms}
    assert fixed(host, "--fix") == []
    assert lease_is_free(lease_dir, disk)
    assert all(vm.answers() for vm in vms)


def test_a_vm_that_may_only_read_needs_no_lease(host: VmHost, qemu: QemuStarter, disk: Path) -> None:
    reader = qemu(*machine(), *drive(disk, "readonly=on")).wait_ready()
    assert kinds(host, disk) == []
    assert reader.quit() == 0


def test_a_host_that_has_not_joined_adopts_nothing(
    host: VmHost, host_alone: VmHost, holder: Child, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    known(host, holder, disk)
    bare(qemu, disk)
    host_alone.lease_dir = lease_dir
    [found] = findings(host_alone, disk)
    assert (found["kind"], found["fix"]) == ("unprotected-process", None)


def test_a_process_that_does_not_have_its_disk_open_is_left_to_a_person(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """A wrapper perhaps, whose VM is not started yet: only the owner note says who it is."""
    assert host.acquire(holder.pid, disk).returncode == 0
    for claim in host.claims_dir.glob("*.json"):
        claim.unlink()
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["fix"]) == ("process-without-claim", holder.pid, None)
    assert fixed(host, "--fix") == []
    assert lease_owner(lease_dir, disk) == 1
    done = host.call(*shlex.split(found["command"])[1:])
    assert done.returncode == 0, done
    assert kinds(host, disk) == []


# -- taken ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.real("sanlock")
def test_a_vm_here_whose_lease_sanlock_has(
    host: VmHost, sanlock_host: SanlockHost, qemu: QemuStarter, lease_dir: Path, disk: Path, holder: Child
) -> None:
    """Another host's, or the daemon's of this machine: it says which host ids are its own."""
    known(host, holder, disk)
    sanlock_host.join(lease_dir, 2)
    code, _ = sanlock_host.acquire(lease_dir, disk)
    assert code == 0
    vm = bare(qemu, disk)
    [found] = findings(host, disk)
    assert (found["kind"], found["severity"], found["pid"]) == ("lease-taken", "critical", vm.pid)
    assert found["owner"]["host_id"] == 2
    assert fixed(host, "--fix", "--prune") == []
    assert vm.answers()
    own = {"SANLOCK_RUN_DIR": sanlock_host.environment["SANLOCK_RUN_DIR"]}
    assert findings(host, disk, environment=own) == []
    assert vm.quit() == 0

    target = bare(qemu, disk, "-incoming", "defer")
    [found] = findings(host, disk)
    assert (found["kind"], found["severity"]) == ("lease-taken", "warning")
    assert "migration" in " ".join(found["evidence"])
    assert target.answers()


def test_a_claimed_vm_whose_lease_another_host_took(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """The daemon would end it within a cycle; here there is none."""
    vm = qemu("-name", "web1", *machine(), *drive(disk), host=host).wait_ready()
    host.crash()
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    write_leader(
        resource_path(lease_dir, disk), leader._replace(owner_id=7, lver=leader.lver + 1, write_id=7)
    )
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["owner"]["host_id"]) == ("lease-taken", vm.pid, 7)
    assert "version 1" in found["evidence"][0]


def test_a_claimed_vm_whose_lease_file_is_gone(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = qemu(*machine(), *drive(disk), host=host).wait_ready()
    host.crash()
    resource_path(lease_dir, disk).unlink()
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["fix"]) == ("process-without-lease", vm.pid, None)


# -- libvirt -------------------------------------------------------------------------------------------

CHARDEV = "socket,id=charmonitor,path={},server=on,wait=off"


def of_libvirt(qemu: QemuStarter, disk: Path, name: str, domain_uuid: str) -> int:
    """A QEMU as libvirt starts one: with its arguments, and a child of init. Return its pid."""
    pid_file = qemu.pid_file()
    starter = qemu(
        "-name", f"guest={name},debug-threads=on", "-uuid", domain_uuid, "-no-user-config",
        "-chardev", CHARDEV.format(pid_file.with_suffix(".monitor")),
        "-mon", "chardev=charmonitor,id=monitor",
        *machine(), *drive(disk), "-daemonize", "-pidfile", str(pid_file),
    )  # fmt: skip
    assert starter.wait(within=20) == 0, starter.log
    return int(pid_file.read_text())


def test_a_vm_that_libvirt_has_forgotten(host: VmHost, qemu: QemuStarter, disk: Path) -> None:
    """Its domain is named, which libvirt lists as shut off."""
    domain_uuid = str(uuid.uuid4())
    pid = of_libvirt(qemu, disk, "web1", domain_uuid)
    found = {f["kind"]: f for f in findings(host, disk)}
    assert set(found) == {"forgotten-by-libvirt", "unprotected-process"}
    forgotten = found["forgotten-by-libvirt"]
    assert (forgotten["pid"], forgotten["fix"]) == (pid, None)
    assert "domain web1" in forgotten["text"]
    assert domain_uuid in " ".join(forgotten["evidence"])
    assert "start web1 through libvirt" in forgotten["advice"]
    assert host.acquire(pid, disk).returncode == 0
    assert kinds(host, disk) == ["forgotten-by-libvirt"], "its lease does not make libvirt know it"


STATUS = """<domstatus state='{state}' reason='booted' pid='{pid}'><domain type='qemu'><name>web1</name>
<uuid>{uuid}</uuid><devices><disk type='file' device='disk'><source file='{disk}'/></disk></devices>
</domain></domstatus>"""


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.parametrize(
    ("state", "is_known", "expected"),
    [
        ("running", True, ["unprotected-process"]),
        ("running", False, ["forgotten-by-libvirt", "unprotected-process"]),
        ("paused", True, ["unprotected-process"]),
    ],
)
def test_a_vm_that_libvirt_lists(
    host: VmHost, holder: Child, qemu: QemuStarter, disk: Path, tmp_path: Path, state: str,
    is_known: bool, expected: list[str],
) -> None:  # fmt: skip
    """By the pid in its record of a domain of this name. One that is paused is not adopted."""
    known(host, holder, disk)
    domain_uuid = str(uuid.uuid4())
    pid = of_libvirt(qemu, disk, "web1", domain_uuid)
    records = tmp_path / "records"
    records.mkdir()
    listed = STATUS.format(state=state, pid=pid if is_known else holder.pid, uuid=domain_uuid, disk=disk)
    (records / "web1.xml").write_text(listed)
    run = (
        "mount -t tmpfs none /run && mkdir -p /run/libvirt/qemu && "
        f'cp {shlex.quote(str(records))}/* /run/libvirt/qemu && exec "$@"'
    )
    result = host.call("check-orphans", "--json", prefix=["unshare", "--mount", "sh", "-c", run, "sh"])
    found = [f for f in json.loads(result.stdout)["findings"] if f["disk"] == str(disk)]
    assert sorted(f["kind"] for f in found) == expected
    [unprotected] = [f for f in found if f["kind"] == "unprotected-process"]
    assert unprotected["fix"] == (None if state == "paused" else "adopt")
    assert ("through libvirt" in unprotected["advice"]) == (state == "paused")


def test_a_vm_that_a_person_started_is_none_of_libvirts(host: VmHost, qemu: QemuStarter, disk: Path) -> None:
    qemu("-name", "guest=web1", "-uuid", str(uuid.uuid4()), *machine(), *drive(disk), host=host).wait_ready()
    assert kinds(host, disk) == []
