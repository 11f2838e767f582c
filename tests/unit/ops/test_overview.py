"""What is called a problem, and how bad."""

from __future__ import annotations

import os
from typing import Any, Optional

import pytest

from tests.unit.cli.seen import claim, host, lease, seen, this_host
from vmlockctl.host.process import Process, identify
from vmlockctl.ops.overview import problems, vms
from vmlockctl.ops.status import Status

OURS = host(1, "live", 3.0, ours=True)
DISK = "/images/a.img"
PROCESS = identify(os.getpid())
assert PROCESS is not None
GONE = Process(PROCESS.pid, PROCESS.start_time + 1, PROCESS.boot_id)
FOREIGN = host(2, "live", 1.0)


def kinds(status: Status) -> list[tuple[str, str]]:
    return [(problem.severity, problem.kind) for problem in problems(status)]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (this_host(), []),
        (this_host(expires_in=19.0, problem="EIO"), [("critical", "host-lease-expires")]),
        (this_host(expires_in=21.0), []),
        (this_host(problem="no space left on device"), [("warning", "host-problem")]),
        (this_host(state="lost", expires_in=None), [("critical", "host-lease-lost")]),
        (this_host(daemon_pid=None, standby_pid=None), [("critical", "no-daemon")]),
        (this_host(standby_pid=None), [("warning", "no-standby")]),
        (this_host(state="left", expires_in=None, daemon_pid=None), []),
        (this_host(state="joining", expires_in=None), []),
    ],
)
def test_this_host(ours: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert kinds(seen([OURS], ours=ours)) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (host(2, "live", 59.0), []),
        (host(2, "live", 60.0), [("warning", "late-host")]),
        (host(2, "unknown", 70.0), []),
        (host(2, "fail", 81.0), [("critical", "failing-host")]),
        (host(2, "dead", 141.0), [("warning", "dead-host")]),
        (host(2, "free", None), []),
    ],
)
def test_other_hosts(other: Any, expected: list[tuple[str, str]]) -> None:
    assert kinds(seen([OURS, other], ours=this_host())) == expected


def test_many_hosts_are_one_problem() -> None:
    hosts = [host(number, "dead", 999.0) for number in range(2, 102)]
    [problem] = problems(seen([OURS, *hosts], ours=this_host()))
    assert problem.text == "100 hosts, each is dead: 2 host2, 3 host3, 4 host4 and 97 more"


def test_leases_of_a_dead_host_are_told_with_it_once() -> None:
    dead = host(2, "dead", 200.0)
    leases = [lease(f"/images/{name}.img", dead) for name in "abc"]
    [problem] = problems(seen([OURS, dead], leases, ours=this_host()), "vmlockctl -L /leases")
    assert problem.kind == "leases-of-gone-owner"
    assert problem.text.startswith("3 leases of host 2 host2, which is dead, no sign of life for 3 min 20 s")
    assert problem.text.endswith("/images/a.img, /images/b.img and 1 more")
    assert problem.command == "vmlockctl -L /leases check-orphans"


@pytest.mark.parametrize(
    ("process", "found", "expected"),
    [
        (PROCESS, lease(DISK, OURS), None),
        (GONE, lease(DISK, FOREIGN), None),
        (PROCESS, lease(DISK, FOREIGN), "is held by host 2 host2"),
        (PROCESS, lease(DISK), "is free"),
    ],
)
def test_a_vm_whose_lease_is_not_ours(process: Process, found: Any, expected: Optional[str]) -> None:
    status = seen([OURS, FOREIGN], [found], [claim(DISK, process, vm="web")], this_host())
    texts = [p.text for p in problems(status) if p.kind == "vm-without-lease"]
    assert len(texts) == (expected is not None)
    assert not texts or f"uses {DISK}, but the lease {expected}" in texts[0]


def test_damage_is_worse_than_a_dead_host_and_commands_are_quoted() -> None:
    dead, bad = host(2, "dead", 999.0), lease("/images/a b.img", OURS, damage="wrong checksum")
    first, second = problems(seen([OURS, dead], [bad._replace(path="/le ases/x")], ours=this_host()))
    assert (first.kind, second.kind) == ("damaged-lease", "dead-host")
    assert first.command == "vmlockctl dump-leases '/le ases/x'"


def test_nobody_observes() -> None:
    assert kinds(seen([FOREIGN], observed_by="nobody")) == [("warning", "unobserved")]
    assert kinds(seen([FOREIGN], observed_by="watching")) == []
    assert kinds(seen([host(2, "free", None)], observed_by="nobody")) == []


def test_vms_by_name_and_nameless_ones_by_process() -> None:
    claims = [
        claim("/b.img", PROCESS, vm="web"), claim("/a.img", PROCESS, vm="web"),
        claim("/c.img", PROCESS), claim("/d.img", GONE),
    ]  # fmt: skip
    found = vms(seen([OURS], [lease("/a.img", OURS), lease("/b.img", FOREIGN)], claims, this_host()))
    assert [(vm.name, vm.pids, [d.disk for d in vm.disks]) for vm in found] == [
        ("", [PROCESS.pid], ["/c.img", "/d.img"]), ("web", [PROCESS.pid], ["/a.img", "/b.img"]),
    ]  # fmt: skip
    assert [disk.lease_is_ours for disk in found[1].disks] == [True, False]
    assert [disk.lease_is_ours for disk in found[0].disks] == [None, None]
