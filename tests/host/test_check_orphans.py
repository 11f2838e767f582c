"""check-orphans on real VMs: it names what is orphaned, and --fix releases only what is proven unused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk import lease_is_free, lease_owner, read_delta, watch_delta
from tests.support.programs import Child, send_signal
from tests.support.qemu import Qemu, QemuStarter, drive, machine, make_disk
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for, wait_until

pytestmark = pytest.mark.real("qemu-system-x86_64", "qemu-img")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def findings(host: VmHost, disk: Path, *options: str) -> list[dict[str, Any]]:
    """What is found about one disk: a look at a machine sees the VMs of other tests as well."""
    result = host.call("check-orphans", "--json", *options)
    found: list[dict[str, Any]] = json.loads(result.stdout)["findings"]
    assert result.returncode == (1 if found else 0), result
    return [finding for finding in found if finding["disk"] == str(disk)]


def fix(host: VmHost) -> None:
    assert host.call("check-orphans", "--fix", "--yes").returncode in (0, 1)


def forget(host: VmHost) -> None:
    """Remove what this host knows about the users of its leases."""
    claims = list(host.claims_dir.glob("*.json"))
    assert claims
    for claim in claims:
        claim.unlink()


def start(host: VmHost, qemu: QemuStarter, disk: Path) -> Qemu:
    return qemu(*machine(), *drive(disk), host=host).wait_ready()


def test_nothing_is_wrong_with_vms_that_run_and_end(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    assert findings(here, disk) == []
    vm = start(here, qemu, disk)
    assert findings(here, disk) == []
    assert findings(there, disk) == []
    assert vm.quit() == 0
    wait_for("the release", lambda: lease_is_free(lease_dir, disk), within=2)
    assert findings(here, disk) == []


def test_a_lease_without_a_process(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    vm = start(host, qemu, disk)
    forget(host)
    vm.kill()
    [found] = findings(host, disk)
    assert (found["kind"], found["disk"]) == ("lease-without-process", str(disk))
    assert found["fix"]
    assert host.call("check-orphans", "--fix", "--yes", "--dry-run").returncode == 1
    assert lease_owner(lease_dir, disk) == 1, "a dry run writes nothing"
    assert host.call("check-orphans", "--fix").returncode == 77, "there is nobody to ask"
    assert lease_owner(lease_dir, disk) == 1

    fix(host)
    assert lease_is_free(lease_dir, disk)
    assert findings(host, disk) == []


def test_a_lease_whose_vm_runs_is_never_released(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    vm = start(host, qemu, disk)
    forget(host)
    [found] = findings(host, disk)
    assert (found["kind"], found["pid"], found["fix"]) == ("process-without-claim", vm.pid, "adopt")
    fix(host)
    assert lease_owner(lease_dir, disk) == 1
    assert vm.answers(), "it looks and tells; it never kills"


def test_a_process_without_a_lease(host: VmHost, qemu: QemuStarter, disk: Path) -> None:
    bare = qemu(*machine(), *drive(disk)).wait_ready()
    [found] = findings(host, disk)
    assert found["pid"] == bare.pid
    fix(host)
    assert bare.answers()
    assert bare.quit() == 0
    assert findings(host, disk) == []


def test_a_disk_that_is_gone(host: VmHost, holder: Child, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    disk.unlink()
    [found] = findings(host, disk)
    assert found["kind"] == "missing-disk"
    assert (found["disk"], found["fix"]) == (str(disk), None)


@pytest.mark.long
def test_a_lease_of_an_earlier_generation(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """A crash of the whole host, and a return after the margin: the old lease is nobody's."""
    start(host, qemu, disk)
    with watch_delta(lease_dir, 1) as renewals:
        host.crash_everything()
        forget(host)
        wait_until(renewals.last.seen + 10)
    host.start("daemon", log="daemon.log")
    wait_for("the second generation", lambda: read_delta(lease_dir, 1).owner_generation == 2, within=30)
    wait_for("the host to be live", lambda: host.status()["this_host"]["state"] == "live", within=15)
    [found] = findings(host, disk)
    assert (found["kind"], found["disk"]) == ("earlier-generation", str(disk))
    fix(host)
    assert lease_is_free(lease_dir, disk)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_lease_of_a_dead_host(
    two_hosts: tuple[VmHost, VmHost], qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    vm = start(here, qemu, disk)
    wait_for("B to see A live", lambda: there.seen_state(1) == "live", within=15)
    here.crash_everything()
    vm.wait(within=5)
    fix(there)
    assert lease_owner(lease_dir, disk) == 1, "a silent host is not dead yet"

    wait_for("B to see A dead", lambda: there.seen_state(1) == "dead", within=90, every_seconds=0.5)
    [found] = findings(there, disk)
    assert (found["kind"], found["owner"]["host_name"]) == ("dead-host", here.name)
    fix(there)
    assert lease_is_free(lease_dir, disk)


def test_a_stopped_vm_is_a_running_vm(host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path) -> None:
    """A process in state T holds its disk open: doubt about a VM means that it runs."""
    vm = start(host, qemu, disk)
    send_signal(vm.pid, signal.SIGSTOP)
    forget(host)
    [found] = findings(host, disk)
    assert found["pid"] == vm.pid
    fix(host)
    assert lease_owner(lease_dir, disk) == 1
