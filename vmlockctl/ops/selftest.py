"""selftest: the lock tests of the feature, on the user's own storage, with the commands that users run.

Two hosts of its own (two run directories in a private temporary directory) share a new lease directory
inside DIR. A VM is real QEMU where it is installed, else a stand-in that opens the disk. QEMU has an image
lock of its own, so every refusal is checked where ours is made: ``run`` exits 75 before QEMU starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile

from vmlockctl import clock
from vmlockctl.daemon.control import daemon_pid, standby_pid
from vmlockctl.errors import EXIT_BUSY, EXIT_OK, NoSuchArea, VmlockctlError
from vmlockctl.host.children import Child, Finished, run_to_end
from vmlockctl.host.openers import Identity, find_openers
from vmlockctl.host.process import identify, stop
from vmlockctl.host.rundir import RunDir
from vmlockctl.host.spawn import own_command
from vmlockctl.ops.dump_leases import dump
from vmlockctl.records import NamedTuple
from vmlockctl.specs import resource_name
from vmlockctl.storage.device import storage_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

PASS, FAIL, RUNNING = "pass", "fail", "running"

_QEMUS = ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-kvm", "/usr/libexec/qemu-kvm")
_IO_TIMEOUT = 1
_DISK_BYTES = 4 << 20
_START_SECONDS = 15.0
_COMMAND_SECONDS = 30.0
_RELEASE_SECONDS = 2.0  # what is promised for a VM that was killed

# Opens the disk as a VM would, says so by having it open, and waits to be stopped.
_STAND_IN = "import os, signal, sys; os.open(sys.argv[1], os.O_RDWR); signal.pause()"


class Step(NamedTuple):
    text: str
    result: str
    detail: str
    seconds: float


class Scenario(NamedTuple):
    name: str
    title: str
    steps: list[Step]
    result: str
    seconds: float


class Report(NamedTuple):
    directory: str
    tool: str  # "qemu" or "stand-in"
    version: str
    scenarios: list[Scenario]

    @property
    def result(self) -> str:
        return PASS if all(scenario.result == PASS for scenario in self.scenarios) else FAIL


class _StepFailed(Exception):
    pass


def selftest(directory: Optional[str], *, on_change: Callable[[Report], None]) -> Report:
    """Run the four scenarios; ``on_change`` is told after every step. Leaves nothing behind."""
    qemu = next((path for path in map(shutil.which, _QEMUS) if path is not None), None)
    work = _make_directory(directory)
    try:
        return _Lab(work, qemu, on_change).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make_directory(directory: Optional[str]) -> str:
    if directory is not None and not os.path.isdir(directory):
        raise NoSuchArea(f"{directory}: no such directory", hint="name one on the storage to be tested")
    parent = os.path.abspath(directory or _default_directory())
    try:
        return tempfile.mkdtemp(prefix="vmlockctl-selftest.", dir=parent)
    except OSError as error:
        raise storage_error(error, parent, "cannot create a directory") from None


def _default_directory() -> str:
    """On a disk where there is one: a /tmp in memory may not support direct I/O."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108 - mkdtemp


class _Host:
    """One host of the test: a run directory of its own, driven by the real command line."""

    def __init__(self, run_dir: str, name: str) -> None:
        self.name = name
        self.run_dir = RunDir(run_dir)

    def command(self, *arguments: str) -> list[str]:
        return [*own_command(self.run_dir.path), *arguments]

    def call(self, *arguments: str) -> Finished:
        return run_to_end(self.command(*arguments), timeout_seconds=_COMMAND_SECONDS)

    def claims(self) -> list[str]:
        return [
            os.path.join(path, "claims", name)
            for path in self.run_dir.lockspace_dirs()
            for name in os.listdir(os.path.join(path, "claims"))
        ]

    def close(self) -> None:
        """End the daemon and its standby, the standby first so that it does not take over."""
        for pid in (standby_pid(self.run_dir), daemon_pid(self.run_dir), standby_pid(self.run_dir)):
            process = identify(pid) if pid else None
            if process is not None:
                stop(process, grace_seconds=0)


class _Lab:
    """The disk, the lease directory, the two hosts, and the VMs that were started."""

    def __init__(self, work: str, qemu: Optional[str], on_change: Callable[[Report], None]) -> None:
        self._qemu = qemu
        self._on_change = on_change
        self._leases = os.path.join(work, "leases")
        self._disk = os.path.join(work, "disk.img")
        self._runs = tempfile.mkdtemp(prefix="vmlockctl-selftest-run.")
        self._a = _Host(os.path.join(self._runs, "a"), "selftest-host-a")
        self._b = _Host(os.path.join(self._runs, "b"), "selftest-host-b")
        self._vms: list[Child] = []
        self._steps: list[Step] = []
        version = "a process that opens the disk"
        if qemu is not None:
            version = run_to_end([qemu, "--version"]).stdout.split("\n")[0]
        self._report = Report(work, "qemu" if qemu else "stand-in", version, [])

    def run(self) -> Report:
        try:
            with open(self._disk, "wb") as file:
                file.truncate(_DISK_BYTES)
            self._join()
            for name, title, scenario in (
                ("single-host", "one host: the same disk in two VMs", self._single_host),
                ("two-hosts", "two hosts: the same disk on both", self._two_hosts),
                ("owner-killed", "the VM is killed", self._owner_killed),
                ("orphan", "the manager forgets a running VM", self._orphan),
            ):
                self._run_scenario(name, title, scenario)
            return self._report
        finally:
            self._stop_vms()
            self._b.close()
            self._a.close()
            shutil.rmtree(self._runs, ignore_errors=True)

    def _join(self) -> None:
        """Make the lockspace with host A inside, and let host B join."""
        made = self._a.call("init-lockspace", self._leases, "--io-timeout", str(_IO_TIMEOUT),
                            "--host-id", "1", "--host-name", self._a.name)  # fmt: skip
        _require(made)
        _require(self._b.call("add-host", self._leases, "--host-id", "2", "--host-name", self._b.name))

    def _run_scenario(self, name: str, title: str, scenario: Callable[[], None]) -> None:
        begun = clock.monotonic()
        self._steps = []
        self._publish(Scenario(name, title, self._steps, RUNNING, 0.0), new=True)
        result = PASS
        try:
            scenario()
        except _StepFailed:
            result = FAIL
        self._stop_vms()
        self._publish(Scenario(name, title, self._steps, result, round(clock.monotonic() - begun, 2)))

    def _publish(self, scenario: Scenario, *, new: bool = False) -> None:
        if not new:
            self._report.scenarios.pop()
        self._report.scenarios.append(scenario)
        self._on_change(self._report)

    def _step(self, text: str, check: Callable[[], tuple[bool, str]]) -> None:
        """Perform one step, record it, and stop the scenario if it failed."""
        begun = clock.monotonic()
        passed, detail = check()
        self._steps.append(Step(text, PASS if passed else FAIL, detail, round(clock.monotonic() - begun, 2)))
        self._on_change(self._report)
        if not passed:
            raise _StepFailed

    # -- the four scenarios ------------------------------------------------------------------------

    def _single_host(self) -> None:
        self._step("a VM starts on host A", lambda: self._starts(self._a))
        self._step("a second start on host A is refused", lambda: self._is_refused(self._a, "process"))
        self._step("the first VM stops", self._stops)
        self._step("the second start works now", lambda: self._starts(self._a))

    def _two_hosts(self) -> None:
        self._step("a VM starts on host A", lambda: self._starts(self._a))
        self._step("a start on host B is refused", lambda: self._is_refused(self._b, self._a.name))
        self._step("the VM on host A stops", self._stops)
        self._step("the start on host B works now", lambda: self._starts(self._b))

    def _owner_killed(self) -> None:
        self._step("a VM starts on host A", lambda: self._starts(self._a))
        self._step("it is killed, and its host releases the lease within 2 s", self._killed_and_released)
        self._step("another start works", lambda: self._starts(self._a))

    def _orphan(self) -> None:
        self._step("a VM starts on host A", lambda: self._starts(self._a))
        self._step("the manager's records are removed", self._forget)
        self._step("a start on host A is refused", lambda: self._is_refused(self._a, "process"))
        self._step("a start on host B is refused", lambda: self._is_refused(self._b, self._a.name))
        self._step("the VM stops", self._stops)
        self._step("a start on host A works now", lambda: self._starts(self._a))

    # -- steps -------------------------------------------------------------------------------------

    def _run_command(self, host: _Host, *, wait: bool) -> list[str]:
        options = ["run", "-L", self._leases, "--vm", "selftest", *(["--wait=5"] if wait else [])]
        if self._qemu is None:
            from sys import executable

            stand_in = [executable, "-I", "-c", _STAND_IN, self._disk]
            return host.command(*options, "--no-auto-disks", "--disk", self._disk, "--", *stand_in)
        drive = f"file={self._disk.replace(',', ',,')},format=raw,if=none,id=disk0"
        return host.command(*options, "--", self._qemu, "-display", "none", "-S", "-nodefaults", "-machine",
                            "none", "-serial", "none", "-monitor", "none", "-drive", drive)  # fmt: skip

    def _starts(self, host: _Host) -> tuple[bool, str]:
        """Start a VM; it runs when the process that acquired the lease has the disk open.

        It waits a little: the host of a VM that was just killed takes a moment to release.
        """
        vm = Child(self._run_command(host, wait=True))
        self._vms.append(vm)
        disk = Identity.of_path(self._disk)

        def is_open() -> bool:
            found = find_openers([disk]).openers.get(disk, [])
            return any(opener.pid == vm.pid for opener in found)

        if _eventually(lambda: is_open() or vm.has_ended(), _START_SECONDS) and not vm.has_ended():
            return True, f"process {vm.pid} on {host.name}"
        finished = self._vms.pop().finish(kill=True)
        return False, f"exit {finished.status}: {_first_line(finished.stderr)}"

    def _is_refused(self, host: _Host, named: str) -> tuple[bool, str]:
        finished = run_to_end(self._run_command(host, wait=False), timeout_seconds=_COMMAND_SECONDS)
        said = _first_line(finished.stderr)
        if finished.status != EXIT_BUSY:
            return False, f"exit {finished.status}, expected {EXIT_BUSY}: {said}"
        return named in said, said

    def _stops(self) -> tuple[bool, str]:
        vm = self._vms.pop()
        vm.terminate()
        finished = vm.finish(kill=not vm.wait(_START_SECONDS))
        return True, f"process {vm.pid}, exit {finished.status}"

    def _killed_and_released(self) -> tuple[bool, str]:
        vm = self._vms.pop()
        begun = clock.monotonic()
        vm.finish(kill=True)
        released = _eventually(self._lease_is_free, _RELEASE_SECONDS)
        seconds = clock.monotonic() - begun
        return released, f"{'released' if released else 'not released'} after {seconds:.2f} s"

    def _lease_is_free(self) -> bool:
        path = os.path.join(self._leases, resource_name(self._disk))
        return all(area.leader is not None and area.leader["timestamp"] == 0 for area in dump([path]))

    def _forget(self) -> tuple[bool, str]:
        claims = [path for path in self._a.claims() if path.endswith(".json")]
        for path in claims:
            os.unlink(path)
        return bool(claims), f"{len(claims)} claims"

    def _stop_vms(self) -> None:
        while self._vms:
            self._vms.pop().finish(kill=True)


def _require(finished: Finished) -> None:
    """The preparation must work; what it said is the error of this command."""
    if finished.status != EXIT_OK:
        said = _first_line(finished.stderr).removeprefix("vmlockctl: ")
        error = VmlockctlError(said, hint=_hint(finished.stderr))
        error.exit_code = finished.status
        raise error


def _eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = clock.monotonic() + seconds
    while not condition():
        if clock.monotonic() > deadline:
            return False
        clock.sleep(0.02)
    return True


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("vmlockctl: ")] or text.splitlines()
    return lines[0] if lines else ""


def _hint(text: str) -> Optional[str]:
    return next((line[6:] for line in text.splitlines() if line.startswith("hint: ")), None)
