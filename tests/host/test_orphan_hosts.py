"""Host ids and host names that two hosts use, and a host lease that is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk import SECTOR, lockspace_path, read_delta, write_direct, write_leader
from tests.support.fixtures import MakeHost
from tests.support.orphans import report
from tests.support.programs import Child
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk.leader import name_field


def about_hosts(host: VmHost, *options: str) -> list[dict[str, Any]]:
    found = report(host, *options)["findings"]
    return [finding for finding in found if "host" in finding["kind"] and finding["resource"] is None]


@pytest.mark.long
def test_nothing_is_wrong_with_two_hosts(two_hosts: tuple[VmHost, VmHost]) -> None:
    for host in two_hosts:
        assert about_hosts(host, "--observe", "5") == []


def test_two_hosts_of_one_name(host: VmHost, make_host: MakeHost, lease_dir: Path) -> None:
    """Not one that is free: its host moved to another id."""
    twin = make_host("twin")
    twin.name = host.name
    twin.join(lease_dir, 2)
    [found] = about_hosts(host)
    assert (found["kind"], found["severity"]) == ("duplicate-host-name", "warning")
    assert host.name in found["text"]
    assert ["host id 1" in found["evidence"][0], "host id 2" in found["evidence"][1]] == [True, True]
    twin.succeed("remove-host", lease_dir)
    assert about_hosts(host) == []


def test_a_host_id_that_another_host_took(host: VmHost, lease_dir: Path) -> None:
    """Our daemon finds it out within a cycle, and stops everything; here it is told before and after."""
    host.wait_for_pair()
    record = read_delta(lease_dir, 1)
    stranger = record._replace(resource_name=name_field("stranger"), owner_generation=5)
    host.crash()
    write_leader(lockspace_path(lease_dir), stranger)
    [found] = about_hosts(host)
    assert (found["kind"], found["severity"]) == ("duplicate-host-id", "critical")
    assert "used by host stranger, too" in found["text"]
    assert "generation 5" in found["evidence"][0]

    host.start("daemon", log="daemon.log")
    wait_for("the loss", lambda: "host lease lost" in (host.run_dir / "daemon.log").read_text(), within=15)
    [found] = about_hosts(host)
    assert found["kind"] == "duplicate-host-id"


def test_a_host_lease_that_is_lost(host: VmHost, lease_dir: Path) -> None:
    """Damage to its record is nobody else's doing, and the host cannot join again."""
    host.wait_for_pair()
    host.crash()
    record = read_delta(lease_dir, 1)
    torn = record._replace(timestamp=record.timestamp + 1).sector(SECTOR)
    write_direct(lockspace_path(lease_dir), 0, torn)
    host.start("daemon", log="daemon.log")
    log = host.run_dir / "daemon.log"
    wait_for("the loss", lambda: "cannot join" in log.read_text(), within=20)
    [found] = about_hosts(host)
    assert (found["kind"], found["severity"]) == ("host-lease-lost", "critical")
    assert "checksum" in found["evidence"][0]


@contextmanager
def two_writers(lease_dir: Path) -> Iterator[None]:
    """Two programs of different clocks that renew the record of host id 2."""
    record = read_delta(lease_dir, 1)._replace(owner_id=2, resource_name=name_field("hostB"))
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.wait(0.4):
            number += 1
            # Whatever two of them a look sees: the later one is of the clock that is behind.
            timestamp = 9000 - number
            write_leader(lockspace_path(lease_dir), record._replace(timestamp=timestamp), sector=1)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.long
def test_two_programs_that_renew_one_record(host: VmHost, host_alone: VmHost, lease_dir: Path) -> None:
    """Only watching tells; any host can."""
    host_alone.lease_dir = lease_dir
    with two_writers(lease_dir):
        assert about_hosts(host_alone) == [], "one look cannot tell"
        for watcher in (host, host_alone):
            [found] = about_hosts(watcher, "--observe", "6")
            assert (found["kind"], found["owner"]) == ("duplicate-host-id", {"host_id": 2})
            assert "two clocks write it" in found["evidence"][0]


def test_a_vm_is_never_ended(host: VmHost, make_host: MakeHost, holder: Child, lease_dir: Path) -> None:
    twin = make_host("twin")
    twin.name = host.name
    twin.join(lease_dir, 2)
    assert host.call("check-orphans", "--fix", "--prune", "--yes").returncode == 1
    assert holder.running
