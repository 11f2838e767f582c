"""``selftest``: what it shows, that it fails when locking fails, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest

from tests.support import filesystems
from tests.support.programs import Child, Result, run_command, send_signal
from tests.support.vmhost import OUR_COMMAND, VmHost, error_object
from tests.support.waiting import wait_for
from vmlockctl.cli.app import run_click
from vmlockctl.host.children import Child as OurChild
from vmlockctl.ops.selftest_stage import STAND_IN, Host, Stage, Tool

OTHER_QEMU = Path("/usr/libexec/qemu-kvm")  # found without PATH
SCENARIOS = {"single-host": 4, "two-hosts": 4, "owner-killed": 4, "orphan": 6}


class Bench(NamedTuple):
    """The storage that is tested, the temporary directory, and an environment with or without QEMU."""

    storage: Path
    temporary: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [*OUR_COMMAND, "selftest", *arguments]

    def run(self, *arguments: str) -> Result:
        return run_command(self.command(*arguments), environment=self.environment)

    def without_qemu(self) -> Bench:
        if OTHER_QEMU.exists():
            pytest.skip(f"{OTHER_QEMU} is installed")
        programs = self.temporary.parent / "no-programs"
        programs.mkdir()
        return self._replace(environment={**self.environment, "PATH": str(programs)})

    def assert_nothing_left(self) -> None:
        assert list(self.storage.iterdir()) == []
        assert list(self.temporary.iterdir()) == []
        assert processes_that_name(self.storage) + processes_that_name(self.temporary) == []


def processes_that_name(path: Path) -> list[bytes]:
    """The command lines of all processes that have a path in them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.fsencode(path) in words and int(pid) != os.getpid():
                found.append(words)
    return found


@pytest.fixture
def bench(host_alone: VmHost, tmp_path: Path) -> Bench:
    storage, temporary = tmp_path / "my storage, shared", tmp_path / "tmp"
    storage.mkdir()
    temporary.mkdir()
    return Bench(storage, temporary, {**host_alone.environment, "TMPDIR": str(temporary)})


# -- what it shows ---------------------------------------------------------------------------------


def test_json_with_a_stand_in(bench: Bench) -> None:
    bench = bench.without_qemu()
    result = bench.run(str(bench.storage), "--json")
    assert result.returncode == 0, result
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert {key: report[key] for key in ("schema", "dir", "tool", "result")} == {
        "schema": 1,
        "dir": str(bench.storage),
        "tool": "stand-in",
        "result": "pass",
    }
    assert report["version"].startswith("Python ")
    assert {scenario["name"]: len(scenario["steps"]) for scenario in report["scenarios"]} == SCENARIOS
    for scenario in report["scenarios"]:
        assert set(scenario) == {"name", "title", "steps", "result", "seconds"}
        for step in scenario["steps"]:
            assert set(step) == {"text", "result", "detail", "seconds"}
            assert step["result"] == "pass", step
    assert sum(scenario["seconds"] for scenario in report["scenarios"]) < result.seconds < 40
    bench.assert_nothing_left()


@pytest.mark.real("qemu-system-x86_64")
def test_lines_with_qemu(bench: Bench) -> None:
    result = bench.run(str(bench.storage))
    assert result.returncode == 0, result
    headline, *lines, summary = result.stdout.splitlines()
    assert "QEMU" in headline
    assert "stand-in" not in result.stdout
    assert [line.split()[0] for line in lines] == ["PASS"] * sum(SCENARIOS.values()), result
    assert sum("exit 75: " in line and "qemu-system" in line for line in lines) == 2, result
    assert sum("exit 75: " in line and "'host-a.selftest'" in line for line in lines) == 3, result
    assert summary.startswith("PASS  4 of 4 scenarios passed")
    bench.assert_nothing_left()


def test_a_live_table_on_a_terminal(bench: Bench) -> None:
    """Lower than the table is long: in the end the whole table stands there."""
    bench = bench.without_qemu()
    status, shown = on_a_terminal(bench.command(str(bench.storage)), bench.environment, rows=24, columns=120)
    assert status == 0, shown
    assert "running" in shown
    whole = shown[shown.rindex("┏") :]
    for text in ("Single host", "Two hosts", "Owner killed", "Orphan", "a start on host A works again"):
        assert text in whole, shown
    assert "fail" not in shown
    assert "4 of 4 scenarios passed" in whole
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    bench.assert_nothing_left()


def on_a_terminal(
    command: list[str], environment: dict[str, str], *, rows: int, columns: int
) -> tuple[int, str]:
    """Run a command with a terminal as its stdout; return its exit status and what it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    with open(theirs, "wb") as terminal:
        size = {"COLUMNS": str(columns), "LINES": str(rows)}
        child = Child(command, environment={**environment, **size, "TERM": "xterm"}, stdout=terminal)
    written = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO: the end
        while chunk := terminal.read(65536):
            written += chunk
    return child.wait(within=30), written.decode(errors="replace")


# -- it ends cleanly, whatever ends it ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "Two hosts"), (signal.SIGTERM, "vmlockctl selftest")],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interruption_leaves_nothing(bench: Bench, number: signal.Signals, moment: str) -> None:
    bench = bench.without_qemu()
    output = bench.temporary.parent / "output"
    with output.open("wb") as stdout:
        child = Child(bench.command(str(bench.storage)), environment=bench.environment, stdout=stdout)
    wait_for("the moment", lambda: moment in output.read_text(), within=30)
    assert list(bench.storage.iterdir()) != []
    send_signal(child.pid, number)
    assert child.wait(within=30) == 130
    bench.assert_nothing_left()


# -- it fails when locking fails -----------------------------------------------------------------------


@pytest.fixture
def no_locking(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> Iterator[dict[str, int]]:
    """VMs that start without a lease; what the disk says of their leases is a number to be set."""
    owners: dict[str, int] = {}

    def start_vm(stage: Stage, _host: Host, vm: str, disk: str) -> OurChild:
        command = tool.command(disk)
        child = OurChild(
            command[command.index("--") + 1 :],
            environment=bench.environment,
            stderr_path=os.path.join(stage.work, vm),
        )
        stage._children.append(child)
        return child

    tool = Tool(STAND_IN, sys.executable, "")
    monkeypatch.setenv("TMPDIR", str(bench.temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("vmlockctl.ops.selftest.find_tool", lambda: tool)
    monkeypatch.setattr(Stage, "join", lambda _stage: None)
    monkeypatch.setattr(Stage, "start_vm", start_vm)
    monkeypatch.setattr(Stage, "owner_of", lambda _stage, _disk: owners["id"])
    yield owners
    bench.assert_nothing_left()


def failed_steps(capsys: pytest.CaptureFixture[str], bench: Bench) -> dict[str, str]:
    """Run it here; the detail of the last step of each scenario."""
    assert run_click(["selftest", str(bench.storage), "--json"]) == 1
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["result"] == "fail"
    for scenario in report["scenarios"]:
        results = [step["result"] for step in scenario["steps"]]
        assert results == ["pass"] * (len(results) - 1) + ["fail"], "the first failure ends its scenario"
    return {scenario["name"]: scenario["steps"][-1]["detail"] for scenario in report["scenarios"]}


def test_a_second_start_that_is_not_refused(
    no_locking: dict[str, int], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    no_locking["id"] = 1
    details = failed_steps(capsys, bench)
    assert details["single-host"].startswith("not refused"), details
    assert details["two-hosts"].startswith("not refused"), details
    assert details["owner-killed"] == "the disk still names host id 1 after 2 s"
    assert details["orphan"] == "host A had no record of it"


def test_a_lease_that_nobody_holds(
    no_locking: dict[str, int], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    no_locking["id"] = 0
    details = failed_steps(capsys, bench)
    assert set(details.values()) == {"the lease on the disk names nobody, expected host id 1"}


# -- storage that it cannot use --------------------------------------------------------------------------


def assert_refused(result: Result, exit_code: int, path: Optional[Path], what: str) -> None:
    assert result.returncode == exit_code, result
    assert result.stdout == "", result
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"vmlockctl: {path}: " if path else "vmlockctl: "), result
    assert what in first, result
    assert hint.startswith("hint: "), result


@pytest.mark.parametrize("name", ["missing", "a file"])
def test_no_such_directory(bench: Bench, tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()
    assert_refused(bench.run(str(tmp_path / name)), 66, tmp_path / name, "directory")
    assert error_object(bench.run("--json", str(tmp_path / name)))["code"] == "no-such"
    assert_refused(bench.run(""), 64, None, "empty")
    bench.assert_nothing_left()


def test_an_unwritable_directory(bench: Bench, tmp_path: Path) -> None:
    with filesystems.read_only(bench.storage, tmp_path / "read-only") as path:
        assert_refused(bench.run(str(path)), 77, path, "Read-only file system")
    bench.assert_nothing_left()


def test_storage_without_direct_io(bench: Bench, tmp_path: Path) -> None:
    with filesystems.without_direct_io(tmp_path) as path:
        assert_refused(bench.run(str(path)), 74, path, "O_DIRECT")
        assert list(path.iterdir()) == []
    bench.assert_nothing_left()


def test_a_full_file_system(bench: Bench, tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path) as path:
        filesystems.fill(path)
        result = bench.run(str(path))
        assert result.returncode == 73, result
        assert result.stderr.splitlines()[-1].startswith("hint: "), result
        assert [entry.name for entry in path.iterdir() if entry.name.startswith("vmlockctl")] == []
    bench.assert_nothing_left()
