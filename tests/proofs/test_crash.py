"""The slice of ``python -m tests.proofs crash`` that every run of the checks makes, and what it rests on.

Killed: before every call of every command, recovered in one order and in the other by turns (the whole proof
does both at each point). Failed calls: the faults that are easiest to get wrong where they can do most
harm, a write that is lost and one that is short, for every command; EIO at every call of those that hold,
give back and join.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.proofs.crashpoints import wholehost
from tests.proofs.crashpoints.cases import Acquire
from tests.proofs.crashpoints.daemoncase import DaemonCase
from tests.proofs.crashpoints.faults import FAULTS, LEASE, RUN, Point
from tests.proofs.crashpoints.runner import CASES, Enumeration, Runner, enumerations
from tests.proofs.crashpoints.world import World
from tests.support.disk import lease_is_free, lockspace_path
from tests.support.programs import Child, run_command
from tests.support.systemcalls import CALLS, Call, Run, run_supervised
from tests.support.vmhost import OUR_COMMAND, VmHost

pytestmark = pytest.mark.busy

EXISTS, STORAGE, PERMISSION = 73, 74, 77

# By fault, so that one lockspace serves many.
ERRORS = {
    "lost": [command for command in CASES if command != "daemon"],
    "short": [command for command in CASES if command != "daemon"],
    "EIO": ["acquire", "release", "add-host"],
    "ENOSPC": ["acquire", "init-lockspace-host-id"],
    "EROFS": ["acquire", "release"],
    "ESTALE": ["acquire", "init-lockspace"],
    "gone": ["acquire"],
    "full": ["acquire", "init-lockspace"],
}


def enumerate_points(directory: Path, commands: Sequence[str], fault: str) -> list[Enumeration]:
    """Every point of some commands and one fault; what is found is in the failure's text."""
    todo = enumerations(commands, [fault], both_orders=False)
    Runner(directory, jobs=1).run(todo)
    assert not any(each.violations for each in todo), "\n\n".join(
        str(violation) for each in todo for violation in each.violations
    )
    assert all(each.is_complete for each in todo)
    return todo


@pytest.mark.long
@pytest.mark.real("sanlock")
@pytest.mark.parametrize("command", CASES)
def test_killed_before_every_call(command: str, tmp_path: Path) -> None:
    (enumeration,) = enumerate_points(tmp_path, [command], "kill")
    assert enumeration.count, "no call was met"


@pytest.mark.long
@pytest.mark.real("sanlock")
@pytest.mark.parametrize("fault", ERRORS)
def test_every_call_fails(fault: str, tmp_path: Path) -> None:
    enumerate_points(tmp_path, ERRORS[fault], fault)


@pytest.mark.long
@pytest.mark.real("sanlock")
def test_the_whole_host_dies_inside_a_ballot(tmp_path: Path) -> None:
    assert len(wholehost.run_all(tmp_path)) == len(wholehost.SECTOR_WRITES)


@pytest.mark.long
@pytest.mark.real("sanlock")
@pytest.mark.parametrize(
    ("name", "path", "number"),
    [
        ("openat", "host.lock", 1),
        ("write", "host.json", 1),
        ("rename", "host.json", 2),
        ("write", "hosts.json", 1),
    ],
)
def test_the_daemon_outlives_trouble_with_its_records(
    tmp_path: Path, name: str, path: str, number: int
) -> None:
    """Before a renewal, after it, and beside it: one record that cannot be written stops no VM."""
    case = DaemonCase(tmp_path)
    point = Point(FAULTS["EIO"], number, only=lambda call: call.name == name and f"/{path}" in call.path)
    try:
        case.prepare()
        case.meet(point)
        assert point.hit is not None
        case.recover(again_first=True)
    finally:
        case.close()


# -- in seconds -----------------------------------------------------------------------------------------


def _publishes(call: Call) -> bool:
    return call.is_write or call.name in ("link", "rename")


@pytest.mark.real("sanlock")
def test_acquire_killed_before_every_write(tmp_path: Path) -> None:
    """Also before a file gets its final name. What the command left is taken up when it is run again."""
    world = World(tmp_path)
    try:
        world.start(alone=True)
        met = 0
        while True:
            point = Point(FAULTS["kill"], met + 1, only=_publishes)
            case = Acquire(world, met)
            try:
                case.prepare()
                case.meet(point)
                super(Acquire, case).run_again()
            finally:
                case.close()
            assert lease_is_free(world.lease_dir, case.disk)
            if point.hit is None:
                break
            met += 1
    finally:
        world.close()
    assert met >= 8  # the area and its name, two claims and their names, the ballot, the leader, the note


def supervised(host: VmHost, point: Point, *arguments: object) -> Run:
    assert host.lease_dir is not None
    return run_supervised(
        [*OUR_COMMAND, *map(str, arguments)],
        environment=host.environment,
        places={LEASE: str(host.lease_dir), RUN: str(host.run_dir)},
        decide=point,
    )


@pytest.mark.parametrize(("fault", "exit_code"), [("EIO", STORAGE), ("full", EXISTS), ("EROFS", PERMISSION)])
def test_a_claim_that_cannot_be_written(
    host: VmHost, holder: Child, tmp_path: Path, fault: str, exit_code: int
) -> None:
    """The run directory's own trouble is told by the table too, and nothing is written to the lease."""
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(4096))
    point = Point(FAULTS[fault], 1, only=lambda call: call.path.endswith(".tmp") and call.name == "openat")
    run = supervised(host, point, "acquire", "--pid", holder.pid, disk)
    assert run.returncode == exit_code, run
    assert [line.split(": ")[0] for line in run.stderr.splitlines()] == ["vmlockctl", "hint"], run
    assert lease_is_free(tmp_path / "leases", disk)


def test_a_lost_write_is_not_published(host_alone: VmHost, tmp_path: Path) -> None:
    """Acknowledged and not stored: the file would have had its final name, and zeros inside."""
    host_alone.lease_dir = tmp_path / "leases"
    run = supervised(host_alone, Point(FAULTS["lost"], 1), "init-lockspace", host_alone.lease_dir)
    assert run.returncode == STORAGE, run
    assert os.listdir(host_alone.lease_dir) == []


def test_init_lockspace_that_died_is_run_again(host_alone: VmHost, tmp_path: Path) -> None:
    """The lockspace was published with this host in it, which does not know yet that it is a member."""
    host_alone.lease_dir = tmp_path / "leases"
    options = ["--io-timeout", "1", "--host-id", "1"]
    point = Point(FAULTS["kill"], 1, only=lambda call: "memberships" in call.path and call.name == "rename")
    supervised(host_alone, point, "init-lockspace", host_alone.lease_dir, *options)
    assert lockspace_path(host_alone.lease_dir).exists()
    host_alone.succeed("init-lockspace", host_alone.lease_dir, *options)
    assert host_alone.status()["this_host"]["state"] == "live"


# -- what is seen, and by strace ------------------------------------------------------------------------

_LINE = re.compile(r"^\d+ +(\w+)\((?:(\d+)<([^>]*)>)?(.*)$")
_QUOTED = re.compile(r'"([^"]*)"')
# Random or a pid, and in the names of one run only.
_VARYING = re.compile(r"\.[0-9a-f]{12}$|[0-9a-f]{32}|\d+\.tmp$")


def seen_by_strace(log: Path, *roots: Path) -> list[str]:
    """Name and path of every call of the table on a file under ``roots``, in the order of their beginning."""
    kinds = {kind.name: kind for kind in CALLS.values()}
    seen = []
    for name, _fd, fd_path, rest in (
        found.groups() for found in map(_LINE.match, log.read_text().splitlines()) if found
    ):
        kind = kinds.get(name)
        if kind is None or (name == "lseek" and "SEEK_END" not in rest):
            continue
        paths = [fd_path or ""] if kind.fd is not None else _QUOTED.findall(rest)[: len(kind.paths)]
        matching = [path for path in paths if any(path.startswith(str(root)) for root in roots)]
        if matching:
            seen.append(f"{name} {_VARYING.sub('', matching[0])}")
    return seen


@pytest.mark.real("strace")
def test_no_call_is_missed(host: VmHost, holder: Child, tmp_path: Path) -> None:
    """strace, with no interest in our table, sees the same calls on the same files in the same order."""
    disks = [tmp_path / "a.img", tmp_path / "b.img"]
    for disk in disks:
        disk.write_bytes(bytes(4096))
    ours = supervised(host, Point(FAULTS["kill"], 10**6), "acquire", "--pid", holder.pid, disks[0])
    assert host.release(holder.pid, disks[0]).returncode == 0
    log = tmp_path / "strace.log"
    result = run_command(
        ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "trace=%file,%desc", "-o", str(log), *OUR_COMMAND,
         "acquire", "--pid", str(holder.pid), str(disks[1])],
        environment=host.environment,
    )  # fmt: skip
    assert result.returncode == 0, result
    theirs = seen_by_strace(log, tmp_path / "leases", host.run_dir)
    assert len(theirs) > 50
    assert [f"{call.name} {_VARYING.sub('', call.path)}" for call in ours.calls] == theirs
