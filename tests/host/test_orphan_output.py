"""What people, scripts and monitoring get to see of check-orphans."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
from pathlib import Path

import pytest

from tests.support.disk import lease_leader, resource_path
from tests.support.orphans import findings, report
from tests.support.programs import Child, Result, standing_process
from tests.support.qemu import QemuStarter, drive, machine, make_disk
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for

HOSTILE = "a\x1b]0;pwn\x07\u202e[red]|x.img"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


def orphan(host: VmHost, disk: Path) -> None:
    """Leave a lease of this host without its process and its claim."""
    with standing_process() as process:
        assert host.acquire(process.pid, disk, options=["--vm", "web1"]).returncode == 0
        for claim in host.claims_dir.glob("*.json"):
            claim.unlink()


# -- people --------------------------------------------------------------------------------------------


def test_a_block_says_what_why_and_what_next(host: VmHost, lease_dir: Path, disk: Path) -> None:
    orphan(host, disk)
    lines = host.call("check-orphans").stdout.splitlines()
    start = lines.index(f"warning: lease-without-process: {disk}")
    block = lines[start : lines.index("", start)]
    assert block[1] == f"  {disk} is held by this host, but no process of it uses the disk"
    assert str(resource_path(lease_dir, disk)) in block[2]
    assert "version 1, owner host 1 (hostA) generation 1, for VM web1" in block[2]
    assert [line.split()[0] for line in block[2:]].count("seen:") == 3
    assert "  do:    vmlockctl check-orphans --fix" in block


def test_nothing_wrong_is_said_in_one_line(host: VmHost, holder: Child, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    done = host.call("check-orphans")
    if done.returncode == 0:  # a QEMU of another test may be found
        assert done.stdout == "no orphans\n"
    assert str(disk) not in done.stdout


def test_a_dry_run_tells_every_write(host: VmHost, lease_dir: Path, disk: Path) -> None:
    """And writes none; what is told is what is done then."""
    orphan(host, disk)
    path = resource_path(lease_dir, disk)
    before = path.read_bytes()
    done = host.call("check-orphans", "--fix", "--dry-run")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    start = lines.index(f"would release: {disk}")
    assert lines[start + 1 : start + 3] == [
        f"  write {path}:1024 our dblock: version 1 -> version 1, released",
        f"  write {path}:0 leader: version 1, owner 1:1 (hostA) -> version 1, free",
    ]
    [planned] = [p for p in report(host, "--dry-run")["planned"] if p["disk"] == str(disk)]
    assert [(w["offset"], w["record"]) for w in planned["writes"]] == [(1024, "our dblock"), (0, "leader")]
    assert path.read_bytes() == before
    host.call("check-orphans", "--fix", "--yes")
    after = path.read_bytes()
    changed = {index // 512 * 512 for index in range(0, 1 << 20, 4) if before[index : index + 4] != after[index : index + 4]}  # fmt: skip # noqa: E501
    assert changed == {write["offset"] for write in planned["writes"]}


@pytest.mark.real("qemu-system-x86_64")
def test_a_dry_run_of_an_adoption_and_a_removal(
    host: VmHost, holder: Child, qemu: QemuStarter, lease_dir: Path, tmp_path: Path
) -> None:
    kept, gone = make_disk(tmp_path / "kept.img"), make_disk(tmp_path / "gone.img")
    for disk in (kept, gone):
        assert host.acquire(holder.pid, disk).returncode == 0
        assert host.release(holder.pid, disk).returncode == 0
    gone.unlink()
    qemu(*machine(), *drive(kept)).wait_ready()
    before = [resource_path(lease_dir, disk).read_bytes() for disk in (kept, gone)]
    planned = {plan["disk"]: plan for plan in report(host, "--fix", "--prune", "--dry-run")["planned"]}
    assert set(planned) == {str(kept), str(gone)}
    assert [w["record"] for w in planned[str(kept)]["writes"]] == ["our dblock", "leader", "owner note"]
    assert planned[str(kept)]["writes"][1]["new"] == "version 2, owner 1:1 (hostA)"
    assert [(w["record"], w["old"], w["new"]) for w in planned[str(gone)]["writes"]] == [
        ("our dblock", "version 1, released", "version 2"),
        ("leader", "version 1, free", "version 2, owner 1:1 (hostA)"),
        ("file", "version 2, owner 1:1 (hostA)", "removed"),
        ("leader of the removed file", "version 2, owner 1:1 (hostA)", "cleared"),
    ]
    assert [resource_path(lease_dir, disk).read_bytes() for disk in (kept, gone)] == before
    assert [plan["disk"] for plan in report(host, "--prune", "--dry-run")["planned"]] == [str(gone)]
    assert host.call("check-orphans", "--fix", "--prune", "--yes").returncode in (0, 1)
    leader = lease_leader(lease_dir, kept)
    assert leader is not None
    assert (leader.lver, leader.owner) == (2, (1, 1))
    assert not resource_path(lease_dir, gone).exists()


# -- names from elsewhere --------------------------------------------------------------------------------


def at_a_terminal(host: VmHost, *arguments: str) -> str:
    """What it prints where its output is a terminal."""
    terminal, theirs = pty.openpty()
    with Child(
        [*OUR_COMMAND, *arguments], environment=host.environment, stdout=theirs, stderr=theirs
    ) as child:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(terminal, 65536):
                printed += chunk
        os.close(terminal)
        child.wait(within=20)
    return printed.decode(errors="surrogateescape")


@pytest.mark.real("qemu-system-x86_64")
@pytest.mark.parametrize("options", [(), ("--fix", "--prune", "--dry-run"), ("--json",), ("--nagios",)])
def test_names_from_elsewhere_print_harmlessly(
    host: VmHost, holder: Child, qemu: QemuStarter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Of a disk, a VM, a host, a command line: escape sequences, bidi, markup, bars."""
    disk = tmp_path / HOSTILE
    disk.write_bytes(bytes(4096))
    assert host.acquire(holder.pid, disk, options=["--vm", HOSTILE]).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    disk.unlink()
    running = make_disk(tmp_path / "running.img")
    bare = qemu("-name", f"guest={HOSTILE}", *machine(), *drive(running)).wait_ready()
    # --nagios tells the first finding only, and QEMUs of other tests come and go beside us.
    piped: list[Result] = []
    shown: list[str] = []

    def ours_is_piped() -> bool:
        piped.append(host.call("check-orphans", *options))
        return "pwn" in piped[-1].stdout + piped[-1].stderr

    def ours_is_shown() -> bool:
        shown.append(at_a_terminal(host, "check-orphans", *options))
        return "pwn" in shown[-1]

    wait_for("a report that names ours", ours_is_piped, within=30)
    wait_for("a screen that names ours", ours_is_shown, within=30)
    done = piped[-1]
    for text in (done.stdout + done.stderr, shown[-1]):
        assert "[red]" in text
        without_colours = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert not any(character in without_colours for character in "\x1b\x07\u202e"), text
    if options != ("--json",):
        assert "\\x1b" in done.stdout
        assert "Traceback" not in done.stderr
    if options == ("--nagios",):
        assert done.stdout.count("|") == 1
    assert bare.answers()


# -- monitoring ------------------------------------------------------------------------------------------

PERFDATA = re.compile(r"^critical=\d+;;0 warning=\d+;0 leases=\d+ hosts=\d+$")


def nagios(host: VmHost, *options: str) -> tuple[int, str]:
    done = host.call("check-orphans", "--nagios", *options)
    [line] = done.stdout.splitlines()
    assert done.stderr == ""
    if "|" in line:
        line, _, perfdata = line.partition("|")
        assert PERFDATA.match(perfdata)
    return done.returncode, line


def test_the_states_of_a_monitoring_plug_in(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    assert host.acquire(holder.pid, disk).returncode == 0
    assert host.release(holder.pid, disk).returncode == 0
    code, line = nagios(host)
    assert (code, line.split(" - ")[0]) in [(0, "VMLOCKCTL OK"), (1, "VMLOCKCTL WARNING")]
    if code == 0:  # no QEMU of another test runs
        assert line == "VMLOCKCTL OK - 1 leases, no orphans"
    orphan(host, disk)
    code, line = nagios(host)
    assert (code, line.split(" - ")[0]) == (1, "VMLOCKCTL WARNING")
    with resource_path(lease_dir, disk).open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")
    code, line = nagios(host)
    assert (code, line.split(" - ")[0]) == (2, "VMLOCKCTL CRITICAL")
    assert "damaged: the lease of" in line


def test_what_cannot_be_looked_at_is_unknown(host_alone: VmHost, tmp_path: Path) -> None:
    code, line = nagios(host_alone, "-L", str(tmp_path / "missing"))
    assert code == 3
    assert line.startswith("VMLOCKCTL UNKNOWN - ")
    assert "missing" in line


@pytest.mark.parametrize("option", ["--fix", "--prune", "--dry-run", "--json"])
def test_monitoring_only_looks(host_alone: VmHost, option: str) -> None:
    assert host_alone.call("check-orphans", "--nagios", option).returncode == 64


# -- scripts ---------------------------------------------------------------------------------------------


def test_the_keys_that_scripts_rely_on(host: VmHost, disk: Path) -> None:
    orphan(host, disk)
    [found] = findings(host, disk)
    contract = {"kind", "severity", "resource", "disk", "pid", "owner", "text", "fix"}
    assert contract <= set(found)
    answer = report(host)
    assert answer["schema"] == 1
    assert answer["counts"]["warning"] >= 1
    assert json.dumps(answer)
    assert os.fspath(disk) in json.dumps(answer)
