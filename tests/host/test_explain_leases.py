"""``explain`` about leases: of other hosts in every state, shared, damaged, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.disk import AREA, lockspace_path, read_delta, resource_name, resource_path, write_leader
from tests.support.explaining import Answer, explain
from tests.support.programs import Child
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.sanlockhost import SanlockHost, direct_init_resource
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

Hosts = tuple[VmHost, VmHost]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


def rewrite_host(lease_dir: Path, host_id: int, **fields: object) -> None:
    """Change the record of a host that is not running."""
    record = read_delta(lease_dir, host_id)._replace(**fields)  # type: ignore[arg-type]
    write_leader(lockspace_path(lease_dir), record, sector=host_id - 1)


def format_lease(lease_dir: Path, disk: Path) -> None:
    """As sanlock and libvirt make a lease: nobody has ever acquired it."""
    path = resource_path(lease_dir, disk)
    path.write_bytes(bytes(AREA))
    direct_init_resource(path, resource=resource_name(disk))


# -- the states of another host --------------------------------------------------------------------


def test_a_live_host_fails_and_dies(two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path) -> None:
    """The countdown runs while it is watched, and ends when the disk can be taken."""
    here, there = two_hosts
    assert there.acquire(holder.pid, disk, options=["--vm", "db"]).returncode == 0
    wait_for("B to be seen", lambda: here.seen_state(2) == "live", within=15)
    answer = explain(here, disk)
    assert (answer.verdict, answer.json["free_in"]) == ("busy", None)
    lease = answer.holder("lease")
    assert (lease["host"]["host_name"], lease["host"]["state"], lease["vm"]) == (there.name, "live", "db")
    assert lease["since_utc"].endswith("Z") and lease["pid"] == holder.pid
    assert answer.commands == [f"vmlockctl request {disk}"]
    there.crash_everything()
    wait_for("B to fall silent", lambda: here.seen_state(2) == "fail", within=20)
    watching = here.start("explain", "--watch", "--json", str(disk), log="watch")
    assert watching.wait(within=90) == 0
    shown = [json.loads(line) for line in (here.run_dir / "watch").read_text().splitlines()]
    assert [each["verdict"] for each in shown] == ["busy"] * (len(shown) - 1) + ["stale"]
    left = [each["free_in"] for each in shown]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 30 and left[0] <= 60
    assert explain(here, disk).commands == [f"vmlockctl run --disk {disk} -- COMMAND"]


def test_a_host_that_nobody_has_observed(
    host: VmHost, host_alone: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """From a machine that has joined nothing: unknown, until it is watched."""
    assert host.acquire(holder.pid, disk).returncode == 0
    host_alone.lease_dir = lease_dir
    answer = explain(host_alone, disk)
    lease = answer.holder("lease")
    assert (lease["host"]["state"], answer.verdict, lease["takeover_in"]) == ("unknown", "busy", None)
    assert "if that host stays silent, it can be taken in 68 s" in lease["text"]
    assert f"vmlockctl explain --watch {disk}" in answer.commands
    watched = explain(host_alone, "--observe", 5, disk)
    assert watched.holder("lease")["host"]["state"] == "live"


def test_an_owner_that_was_rebooted(two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path) -> None:
    """It has joined again, so what it held in its earlier generation is gone."""
    here, there = two_hosts
    assert there.acquire(holder.pid, disk).returncode == 0
    there.crash_everything()
    record = read_delta(lease_dir, 2)
    rewrite_host(lease_dir, 2, owner_generation=record.owner_generation + 1)
    wait_for("its new generation", lambda: explain(here, disk).verdict == "stale", within=10)
    answer = explain(here, disk)
    assert answer.layers == [("lease", "exclusive", False)]
    assert f"generation {record.owner_generation}, gone" in answer.holder("lease")["text"]


def test_an_owner_that_has_left(two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path) -> None:
    here, there = two_hosts
    assert there.acquire(holder.pid, disk).returncode == 0
    there.crash_everything()
    rewrite_host(lease_dir, 2, timestamp=0)
    answer = explain(here, disk)
    assert (answer.verdict, answer.json["free_in"]) == ("stale", 0.0)
    assert "can be taken now" in answer.text.splitlines()[0]


@pytest.mark.real("sanlock")
def test_an_owner_that_runs_sanlock(
    host: VmHost, sanlock_host: SanlockHost, lease_dir: Path, disk: Path
) -> None:
    """Sanlock leaves neither VM nor process on the disk; its host is named."""
    format_lease(lease_dir, disk)
    sanlock_host.join(lease_dir, 5)
    result, _ = sanlock_host.acquire(lease_dir, disk)
    assert result == 0
    lease = explain(host, disk).holder("lease")
    assert (lease["host"]["host_name"], lease["host"]["this_host"]) == (sanlock_host.name, False)
    assert (lease["vm"], lease["pid"]) == ("", None)


# -- leases that nobody holds ----------------------------------------------------------------------


@pytest.mark.real("sanlock")
def test_a_lease_that_was_never_acquired(host: VmHost, lease_dir: Path, disk: Path) -> None:
    format_lease(lease_dir, disk)
    answer = explain(host, disk)
    assert (answer.verdict, answer.holders) == ("free", [])
    assert ("lease file", f"{resource_path(lease_dir, disk)} (free, never acquired)") in answer.facts


def test_a_released_lease(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    answer = explain(host, disk)
    assert (answer.verdict, answer.holders) == ("free", [])
    assert ("lease file", f"{resource_path(lease_dir, disk)} (free, version 1)") in answer.facts


def test_a_disk_that_is_gone(two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path) -> None:
    """The lease is all that is left: asked for by the disk's path, or by its file."""
    here, there = two_hosts
    assert there.acquire(holder.pid, disk).returncode == 0
    disk.unlink()
    for name in (disk, resource_path(lease_dir, disk)):
        answer = explain(here, name)
        assert (answer.verdict, answer.json["disk"]) == ("busy", str(disk))
        assert ("disk", "it is not there: No such file or directory") in answer.facts
    assert there.release(holder.pid, disk).returncode == 0
    answer = explain(here, disk)
    assert (answer.verdict, answer.commands) == ("free", ["vmlockctl check-orphans"])


# -- shared leases ---------------------------------------------------------------------------------


def share(two_hosts: Hosts, holder: Child, disk: Path) -> None:
    for each in two_hosts:
        assert each.acquire(holder.pid, disk, options=["--shared"]).returncode == 0


def test_two_hosts_that_share(two_hosts: Hosts, holder: Child, disk: Path) -> None:
    share(two_hosts, holder, disk)
    here, there = two_hosts
    answer = explain(here, disk)
    assert answer.layers == [("lease", "shared", True)] * 2
    assert {holder["host"]["host_name"] for holder in answer.holders} == {here.name, there.name}


def test_one_of_the_sharing_hosts_is_gone(
    two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path
) -> None:
    share(two_hosts, holder, disk)
    here, there = two_hosts
    there.crash_everything()
    rewrite_host(lease_dir, 2, timestamp=0)
    answer = explain(here, disk)
    assert answer.layers == [("lease", "shared", True)]
    assert answer.holder("lease")["host"]["host_name"] == here.name


@pytest.mark.real("qemu-system-x86_64")
def test_a_shared_lease_elsewhere_and_a_writer_here(
    two_hosts: Hosts, holder: Child, qemu: QemuStarter, disk: Path
) -> None:
    """Both are told, each with what ends it."""
    here, there = two_hosts
    assert there.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    vm = qemu(*machine(), *drive(disk)).wait_ready()
    answer = explain(here, disk)
    assert answer.layers == [("lease", "shared", True), ("qemu", "write", True)]
    assert answer.commands == [f"vmlockctl request {disk}", f"kill {vm.pid}"]


# -- damage ----------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")


def assert_damaged(answer: Answer, lease: Path) -> None:
    assert answer.status == 65
    assert f"vmlockctl dump-leases {lease}" in answer.commands
    assert "do not format the lease" in answer.text


def test_a_damaged_lease(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    lease = resource_path(lease_dir, disk)
    damage(lease)
    answer = explain(host, disk)
    assert_damaged(answer, lease)
    assert answer.verdict == "unknown"


def test_a_short_lease_file(host: VmHost, lease_dir: Path, disk: Path) -> None:
    """What a crash of libvirt leaves between making and formatting it."""
    lease = resource_path(lease_dir, disk)
    lease.write_bytes(b"")
    answer = explain(host, disk)
    assert_damaged(answer, lease)
    assert answer.verdict == "unknown"


@pytest.mark.real("qemu-system-x86_64")
def test_a_damaged_lease_of_a_disk_in_use(
    host: VmHost, qemu: QemuStarter, lease_dir: Path, disk: Path
) -> None:
    """The damage does not hide who has the disk."""
    vm = qemu(*machine(), *drive(disk)).wait_ready()
    lease = resource_path(lease_dir, disk)
    lease.write_bytes(b"\xff" * 4096)
    answer = explain(host, disk)
    assert_damaged(answer, lease)
    assert (answer.verdict, answer.holder("qemu")["pid"]) == ("busy", vm.pid)
    assert "and its lease is damaged" in answer.text.splitlines()[0]


# -- what may not be seen, and what would do harm --------------------------------------------------


def test_a_lease_file_of_a_lockspace_that_is_not_ours(
    host: VmHost, host_alone: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Its directory is the lockspace that is looked at."""
    assert host.acquire(holder.pid, disk, options=["--vm", "web"]).returncode == 0
    answer = explain(host_alone, resource_path(lease_dir, disk))
    assert (answer.json["disk"], answer.holder("lease")["vm"]) == (str(disk), "web")


def test_names_of_hosts_print_harmlessly(
    two_hosts: Hosts, holder: Child, lease_dir: Path, disk: Path
) -> None:
    here, there = two_hosts
    evil = "h\x1b]0;x\x07\u202e[red]"
    assert there.acquire(holder.pid, disk, options=["--vm", evil]).returncode == 0
    there.crash_everything()
    rewrite_host(lease_dir, 2, resource_name=evil.encode().ljust(48, b"\0"))
    answer = explain(here, disk)
    assert answer.holder("lease")["host"]["host_name"] == evil
    assert "[red]" in answer.text
    assert answer.text.replace("\n", "").isprintable()
