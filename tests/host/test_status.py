"""``status`` of real hosts: what a person reads, what a script reads, and what it costs to look again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk import SECTOR
from tests.support.fixtures import MakeHost
from tests.support.leasefiles import HOSTS, write_lease, write_lockspace
from tests.support.programs import Child, standing_process
from tests.support.qemu import make_disk
from tests.support.terminal import (
    ENTER_ALTERNATE,
    LEAVE_ALTERNATE,
    SHOW_CURSOR,
    Terminal,
    as_text,
    on_terminal,
)
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for
from vmlockctl.ops import status as status_module
from vmlockctl.ops.overview import problems
from vmlockctl.ops.session import open_session


def command(*arguments: str) -> list[str]:
    return [*OUR_COMMAND, *arguments]


# -- once -------------------------------------------------------------------------------------------


def test_json_has_problems_and_vms(host: VmHost, holder: Child, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "a.img")
    host.wait_for_pair()
    assert host.acquire(holder.pid, disk, options=["--vm", "web1"]).returncode == 0
    seen = host.status()
    assert seen["problems"] == []
    [vm] = seen["vms"]
    assert (vm["name"], vm["pids"]) == ("web1", [holder.pid])
    assert [(d["disk"], d["mode"], d["lease_is_ours"]) for d in vm["disks"]] == [
        (str(disk), "exclusive", True)
    ]
    [row] = seen["hosts"]
    assert (row["warn_after"], row["fail_after"], row["dead_after"]) == (6, 8, 68)


def test_a_lease_that_is_given_back_during_the_look_is_no_problem(
    host: VmHost, holder: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim was read, then its lease is free, and its process still runs."""
    disk = make_disk(tmp_path / "a.img")
    host.wait_for_pair()
    assert host.acquire(holder.pid, disk).returncode == 0
    dump = status_module.dump

    def give_back_and_dump(*wanted: Any, **options: Any) -> Any:
        host.release(holder.pid, disk)
        return dump(*wanted, **options)

    monkeypatch.setattr(status_module, "dump", give_back_and_dump)
    seen = status_module.status(open_session(run_dir=str(host.run_dir)))
    assert [lease.mode for lease in seen.leases] == ["free"]
    assert problems(seen) == []
    assert seen.claims == []


def test_a_missing_daemon_is_the_first_problem(host: VmHost) -> None:
    host.crash()
    first = host.status()["problems"][0]
    assert (first["kind"], first["severity"]) == ("no-daemon", "critical")
    assert first["command"].endswith(" daemon")
    text = host.call("status").stdout.splitlines()
    assert text[0].startswith("lockspace ")
    assert any(line.startswith("critical: no daemon runs") for line in text)


@pytest.mark.long
def test_a_host_whose_lease_expired_is_not_called_live(host: VmHost, holder: Child, tmp_path: Path) -> None:
    """Its own records say so until somebody writes them again; the clock says otherwise."""
    disk = make_disk(tmp_path / "a.img")
    assert host.acquire(holder.pid, disk).returncode == 0
    host.crash_everything()
    wait_for("the host lease to expire", lambda: host.status()["this_host"]["state"] == "lost", within=20)
    seen = host.status()
    [own], [lease] = seen["hosts"], seen["leases"]
    assert (own["state"] == "live", own["this_host"]) == (False, False)
    assert [(owner["state"] == "live", owner["this_host"]) for owner in lease["owners"]] == [(False, False)]


def test_piped_text_is_never_cut(host: VmHost, holder: Child, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / f"{'long' * 50}.img")
    assert host.acquire(holder.pid, disk).returncode == 0
    lines = host.call("status").stdout.splitlines()
    heading = next(line for line in lines if line.startswith("DISK"))
    assert heading.split() == ["DISK", "MODE", "LVER", "OWNER", "STATE", "PID", "VM", "FREE_IN"]
    assert any(line.split()[:2] == [str(disk), "exclusive"] for line in lines)


@pytest.mark.real("setsid")
@pytest.mark.parametrize("columns", [60, 160])
def test_a_terminal_shows_disks_and_obeys_no_name(host: VmHost, tmp_path: Path, columns: int) -> None:
    disk = make_disk(tmp_path / "a[red]b.img")
    with standing_process() as process:
        name = "\x1b\u202e"
        assert host.acquire(process.pid, disk, options=["--vm", name]).returncode == 0
        with on_terminal(command("status"), host.environment, columns=columns) as terminal:
            assert terminal.wait(within=20) == 0
    assert "\u202e" not in terminal.output
    shown = as_text(terminal.output)
    assert max(map(len, shown.splitlines())) <= columns
    joined = "".join(shown.split())
    assert "a[red]b.img" in joined
    assert "\\x1b\\u202e" in shown


def test_an_interval_without_a_watch(host_alone: VmHost) -> None:
    done = host_alone.call("status", "--interval", "1")
    assert done.returncode == 64
    assert "--watch" in done.stderr


# -- again and again ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.real("setsid")
def test_watching_a_host_die(two_hosts: tuple[VmHost, VmHost], tmp_path: Path) -> None:
    here, there = two_hosts
    disk = make_disk(tmp_path / "db.img")
    here.wait_for_pair()
    with standing_process() as process:
        assert there.acquire(process.pid, disk, options=["--vm", "db"]).returncode == 0
        with on_terminal(command("status", "--watch"), here.environment) as terminal:
            terminal.wait_for_screen(
                "B alive", lambda s: row(s, "hostB").split()[2] == "live" and "NO PROBLEMS" in s, within=20
            )
            there.crash_everything()
            frame = terminal.wait_for_screen(
                "B failing", lambda s: row(s, "hostB").split()[2] == "FAIL", within=20
            )
            assert frame.index("CRITICAL: host 2 hostB fails") < frame.index("THIS HOST")
            assert f"vmlockctl explain {disk}" in frame
            bars = row(frame, "hostB"), row(frame, "hostA")
            assert bars[0].count("█") > bars[1].count("█")
            lease = next(line for line in frame.splitlines() if "db.img" in line and " FAIL " in line)
            assert "hostB" in lease
            ages: set[str] = set()
            wait_for(
                "the age to count on",
                lambda: ages.add(age_of(row(terminal.screen(), "hostB"))) or len(ages) > 3,
                within=10,
            )
            terminal.type(b"\x03")
            assert terminal.wait(within=10) == 130
            assert_terminal_is_clean(terminal)


def row(frame: str, host_name: str) -> str:
    """The line of a host in the table; a harmless one while it is not there."""
    lines = [line for line in frame.splitlines() if host_name in line.split()[1:2]]
    return lines[0] if lines else "- - -"


def age_of(line: str) -> str:
    return " ".join(line.split()[4:6])


def assert_terminal_is_clean(terminal: Terminal) -> None:
    output = terminal.output
    assert output.rindex(LEAVE_ALTERNATE) > output.rindex(ENTER_ALTERNATE)
    assert output.rindex(SHOW_CURSOR) > output.rindex("\x1b[H")
    assert terminal.modes == terminal.modes_before


@pytest.mark.real("setsid")
def test_a_screen_that_is_resized_and_left(host_alone: VmHost, lease_dir: Path) -> None:
    write_lockspace(lease_dir)
    write_lease(lease_dir, "/images/a.img")
    words = command("status", "--watch", "--interval", "0.2", "-L", str(lease_dir))
    with on_terminal(words, host_alone.environment, columns=120) as terminal:
        wide = terminal.wait_for_screen("the disk", lambda s: "/images/a.img" in s, within=10)
        assert "MODE" in wide
        terminal.resize(60, 24)
        narrow = terminal.wait_for_screen("a narrow screen", lambda s: "MODE" not in s, within=10)
        assert max(map(len, narrow.splitlines())) <= 60
        assert len(narrow.splitlines()) <= 24
        terminal.type(b"q")
        assert terminal.wait(within=10) == 0
        assert_terminal_is_clean(terminal)


@pytest.mark.real("setsid")
def test_a_storage_that_goes_and_comes_back(host_alone: VmHost, lease_dir: Path) -> None:
    write_lockspace(lease_dir)
    write_lease(lease_dir, "/images/a.img")
    words = command("status", "--watch", "--interval", "0.2", "-L", str(lease_dir))
    with on_terminal(words, host_alone.environment) as terminal:
        terminal.wait_for_screen("the disk", lambda s: "/images/a.img" in s, within=10)
        lease_dir.rename(lease_dir.with_name("away"))
        lost = terminal.wait_for_screen("the trouble", lambda s: "CANNOT LOOK" in s, within=10)
        assert "no look since 20" in lost
        assert str(lease_dir) in lost
        assert "/images/a.img" in lost
        lease_dir.with_name("away").rename(lease_dir)
        terminal.wait_for_screen("its end", lambda s: "CANNOT LOOK" not in s, within=10)
        terminal.type(b"\x03")
        assert terminal.wait(within=10) == 130


@pytest.mark.long
@pytest.mark.real("setsid")
def test_this_host_loses_its_storage(host: VmHost, lease_dir: Path) -> None:
    """What becomes of this host shows while nobody can look at the storage."""
    host.wait_for_pair()
    with on_terminal(command("status", "--watch"), host.environment) as terminal:
        terminal.wait_for_screen("a good look", lambda s: "NO PROBLEMS" in s, within=10)
        lease_dir.rename(lease_dir.with_name("away"))
        terminal.wait_for_screen(
            "the countdown",
            lambda s: "CANNOT LOOK" in s and "cannot renew its host lease: in" in s,
            within=10,
        )
        lost = terminal.wait_for_screen("the end", lambda s: "has lost its host lease" in s, within=15)
        assert "LOST" in next(line for line in lost.splitlines() if line.startswith("THIS HOST"))


def test_blocks_where_there_is_no_terminal(host_alone: VmHost, lease_dir: Path) -> None:
    """A line with the time before each; ``head`` ends it without a word."""
    write_lockspace(lease_dir)
    words = command("status", "--watch", "--interval", "0.2", "-L", str(lease_dir))
    script = "\"$@\" | awk '/^---/ {n++} n == 3 {exit} {print}'"
    done = subprocess.run(
        ["sh", "-c", script, "sh", *words],
        env=host_alone.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("---", "lockspace"))] == [
        "---",
        "lockspace",
    ] * 2
    assert lines[0].split()[1].startswith("20")


def test_what_a_redraw_reads(host_alone: VmHost, lease_dir: Path) -> None:
    """The sectors of three hosts; the leader and three dblocks of each of 200 leases; and little else."""
    write_lockspace(lease_dir)
    for number in range(200):
        write_lease(lease_dir, f"/images/{number}.img")
    process = subprocess.Popen(
        command("status", "--watch", "--interval", "0.1", "--json", "-L", str(lease_dir)),
        env=host_alone.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    looks = 5
    try:
        for _ in range(2):  # the whole lockspace, and every lease
            seen = json.loads(process.stdout.readline())
            assert len(seen["leases"]) == 200
            assert {lease["disk"] is not None for lease in seen["leases"]} == {True}
        before = bytes_read(process.pid)
        for _ in range(looks):
            process.stdout.readline()
        a_look = (bytes_read(process.pid) - before) / looks
    finally:
        process.kill()
        process.communicate()
    occupied = len(HOSTS) * SECTOR + 200 * (1 + len(HOSTS)) * SECTOR
    assert occupied <= a_look <= occupied + 64 * 1024


def bytes_read(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.long
def test_a_new_host_and_a_new_lease_show(host_alone: VmHost, lease_dir: Path, make_host: MakeHost) -> None:
    """The host before it has even joined: the lockspace is read whole now and then."""
    first = make_host("hostA")
    first.create(lease_dir)
    process = subprocess.Popen(
        command("status", "--watch", "--interval", "0.2", "--json", "-L", str(lease_dir)),
        env=host_alone.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert len(json.loads(process.stdout.readline())["hosts"]) == 1
        second = make_host("hostB")
        second.join(lease_dir, 2)
        write_lease(lease_dir, "/images/new.img")

        def seen() -> bool:
            assert process.stdout is not None
            look = json.loads(process.stdout.readline())
            return len(look["hosts"]) == 2 and [lease["disk"] for lease in look["leases"]] == [
                "/images/new.img"
            ]

        wait_for("the new host and lease", seen, within=15)
    finally:
        process.kill()
        process.communicate()
