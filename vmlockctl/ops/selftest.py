"""selftest: the feature's own test plan, on the user's own storage, with the commands that users run.

``SCENARIOS`` is the plan. QEMU has an image lock of its own, which would hide ours; so what counts as
refused is the exit status of ``vmlockctl run``, given before it becomes QEMU, and what counts as held or
free is read from the disk. Next: ``ops/selftest_stage.py``, where it is played.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.errors import EXIT_BUSY, VmlockctlError
from vmlockctl.host.children import Child, Interrupts
from vmlockctl.ops.selftest_stage import HOST_A, HOST_B, Host, Stage, error_object, find_tool
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

WAITING, RUNNING, PASS, FAIL = "waiting", "running", "pass", "fail"

_RELEASE_SECONDS = 2.0  # what is promised from the end of a VM to its lease being free
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.01


class Step(NamedTuple):
    text: str
    result: str = WAITING
    detail: str = ""
    seconds: float = 0.0


class Scenario(NamedTuple):
    name: str
    title: str
    steps: tuple[Step, ...]
    result: str
    seconds: float


class Report(NamedTuple):
    """The whole plan at one moment; its steps are ``WAITING`` until their turn comes."""

    directory: str
    tool: str
    version: str
    scenarios: tuple[Scenario, ...]

    @property
    def result(self) -> str:
        return PASS if all(scenario.result == PASS for scenario in self.scenarios) else FAIL


class _StepFailed(Exception):
    @property
    def message(self) -> str:
        return str(self)


def selftest(directory: Optional[str], *, on_progress: Callable[[Report, str], None]) -> Report:
    """Play every scenario in a sub-directory of ``directory``; None: of a temporary directory.

    ``on_progress`` is told the report as it stands, and what is being done beside the steps. Raises
    ``StorageError`` leaves, ``StorageRefused``, ``NoSuchArea``, ``CannotCreate`` and whatever else keeps
    the two hosts from joining.
    """
    tool = find_tool()
    with Interrupts() as interrupts:
        stage = Stage(interrupts, tool)
        try:
            play = _Play(stage, stage.open(directory), on_progress)
            return play.perform()
        finally:
            with interrupts.held():
                stage.close()


class _Scene:
    """What the steps of one scenario share: a disk, and the VM that has it. Each step returns a detail."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self._name = name
        self._disk, self._identity = stage.make_disk(f"{name}.img")
        self._vm: Optional[Child] = None
        self._ended_at = 0.0

    def start_on_a(self) -> str:
        return self._start(HOST_A)

    def start_on_b(self) -> str:
        return self._start(HOST_B)

    def second_start_on_a(self) -> str:
        return self._refused(HOST_A, HOST_A.name, f"process {self._running().pid}")

    def orphan_start_on_a(self) -> str:
        return self._refused(HOST_A, f"process {self._running().pid}")

    def second_start_on_b(self) -> str:
        return self._refused(HOST_B, HOST_A.name)

    def stop(self) -> str:
        return f"{self._end(_STOP_SECONDS)}, lease {self.released()}"

    def kill(self) -> str:
        return self._end(0)

    def released(self) -> str:
        while (owner := self._stage.owner_of(self._disk)) != 0:
            if clock.monotonic() - self._ended_at > _RELEASE_SECONDS:
                raise _StepFailed(f"the disk still names host id {owner} after {_RELEASE_SECONDS:.0f} s")
            clock.sleep(_LOOK_AGAIN_SECONDS)
        return f"free after {clock.monotonic() - self._ended_at:.2f} s"

    def forget(self) -> str:
        if not self._stage.remove_claim(HOST_A, self._disk):
            raise _StepFailed("host A had no record of it")
        return f"claim removed; process {self._running().pid} still runs"

    def end(self) -> None:
        """Whatever the scenario has left."""
        if self._vm is not None:
            self._stage.end(self._vm)

    def _start(self, host: Host) -> str:
        self._vm = self._stage.start_vm(host, f"selftest-{self._name}", self._disk)
        status = self._outcome(self._vm)
        if status is not None:
            raise _StepFailed(f"exit {status}: {self._said(self._vm)}")
        self._require_owner(host)
        return f"process {self._vm.pid}; the lease on the disk names host id {host.host_id}"

    def _refused(self, host: Host, *names: str) -> str:
        rival = self._stage.start_vm(host, f"selftest-{self._name}-again", self._disk)
        status = self._outcome(rival)
        self._stage.end(rival)
        if status is None:
            raise _StepFailed("not refused: two processes had the disk open for writing")
        said = self._said(rival)
        if status != EXIT_BUSY:
            raise _StepFailed(f"exit {status}, expected {EXIT_BUSY}: {said}")
        for name in names:
            if name not in said:
                raise _StepFailed(f"exit {status}, but {name!r} is not named: {said}")
        self._running()
        self._require_owner(HOST_A)
        return f"exit {status}: {said}"

    def _outcome(self, child: Child) -> Optional[int]:
        """The exit status of a start, or None once it has the disk open."""
        deadline = clock.monotonic() + _START_SECONDS
        while clock.monotonic() < deadline:
            if (status := child.wait(_LOOK_AGAIN_SECONDS)) is not None:
                return status
            if child.may_write(self._identity):
                return None
        raise _StepFailed(f"neither started nor refused within {_START_SECONDS:.0f} s")

    def _said(self, child: Child) -> str:
        error = error_object(child)
        return (error["message"] if error else child.last_words()).replace(self._stage.work + os.sep, "")

    def _running(self) -> Child:
        assert self._vm is not None
        if self._vm.wait() is not None:
            raise _StepFailed(f"the running VM ended: exit {self._vm.wait()}: {self._said(self._vm)}")
        return self._vm

    def _require_owner(self, host: Host) -> None:
        owner = self._stage.owner_of(self._disk)
        if owner != host.host_id:
            found = f"host id {owner}" if owner else "nobody"
            raise _StepFailed(f"the lease on the disk names {found}, expected host id {host.host_id}")

    def _end(self, grace_seconds: float) -> str:
        vm = self._running()
        self._ended_at = clock.monotonic()
        if not vm.end(grace_seconds=grace_seconds):
            raise _StepFailed(f"process {vm.pid} survives SIGKILL")
        return f"process {vm.pid} gone after {clock.monotonic() - self._ended_at:.2f} s"


class _Plan(NamedTuple):
    name: str
    title: str
    steps: tuple[tuple[str, Callable[[_Scene], str]], ...]


SCENARIOS = (
    _Plan(
        "single-host",
        "Single host",
        (
            ("a VM starts on host A", _Scene.start_on_a),
            ("a second start on host A is refused and names the holder", _Scene.second_start_on_a),
            ("the VM stops and its lease is free", _Scene.stop),
            ("the second start works", _Scene.start_on_a),
        ),
    ),
    _Plan(
        "two-hosts",
        "Two hosts",
        (
            ("a VM starts on host A", _Scene.start_on_a),
            ("a start on host B is refused and names host A", _Scene.second_start_on_b),
            ("the VM stops and its lease is free", _Scene.stop),
            ("the start on host B works", _Scene.start_on_b),
        ),
    ),
    _Plan(
        "owner-killed",
        "Owner killed",
        (
            ("a VM starts on host A", _Scene.start_on_a),
            ("the VM is killed with SIGKILL", _Scene.kill),
            (f"its lease on the disk is free within {_RELEASE_SECONDS:.0f} s", _Scene.released),
            ("another start works", _Scene.start_on_a),
        ),
    ),
    _Plan(
        "orphan",
        "Orphan",
        (
            ("a VM starts on host A", _Scene.start_on_a),
            ("host A loses its record of the running VM", _Scene.forget),
            ("a start on host A is refused and names the process", _Scene.orphan_start_on_a),
            ("a start on host B is refused and names host A", _Scene.second_start_on_b),
            ("the VM is killed with SIGKILL", _Scene.kill),
            ("a start on host A works again", _Scene.start_on_a),
        ),
    ),
)


class _Play:
    """The plan being carried out."""

    def __init__(self, stage: Stage, directory: str, on_progress: Callable[[Report, str], None]) -> None:
        self._stage = stage
        self._directory = directory
        self._on_progress = on_progress
        self._scenarios = [
            Scenario(plan.name, plan.title, tuple(Step(text) for text, _ in plan.steps), WAITING, 0.0)
            for plan in SCENARIOS
        ]

    def perform(self) -> Report:
        self._tell("two hosts join a lockspace of their own (3 s)")
        self._stage.join()
        for number, plan in enumerate(SCENARIOS):
            self._perform_scenario(number, plan)
        self._tell("clearing up")
        return self._report()

    def _perform_scenario(self, number: int, plan: _Plan) -> None:
        begun = clock.monotonic()
        scene = _Scene(self._stage, plan.name)
        for index, (text, action) in enumerate(plan.steps):
            self._note(number, index, Step(text, RUNNING), RUNNING, begun)
            step = _perform_step(text, action, scene)
            if step.result == FAIL or index == len(plan.steps) - 1:
                scene.end()
                self._note(number, index, step, step.result, begun)
                return
            self._note(number, index, step, RUNNING, begun)

    def _note(self, number: int, index: int, step: Step, result: str, begun: float) -> None:
        scenario = self._scenarios[number]
        steps = (*scenario.steps[:index], step, *scenario.steps[index + 1 :])
        seconds = round(clock.monotonic() - begun, 3)
        self._scenarios[number] = scenario._replace(steps=steps, result=result, seconds=seconds)
        self._tell()

    def _report(self) -> Report:
        tool = self._stage.tool
        return Report(self._directory, tool.name, tool.version, tuple(self._scenarios))

    def _tell(self, note: str = "") -> None:
        self._on_progress(self._report(), note)


def _perform_step(text: str, action: Callable[[_Scene], str], scene: _Scene) -> Step:
    begun = clock.monotonic()
    try:
        result, detail = PASS, action(scene)
    except (_StepFailed, VmlockctlError) as error:
        result, detail = FAIL, error.message
    return Step(text, result, detail, round(clock.monotonic() - begun, 3))
