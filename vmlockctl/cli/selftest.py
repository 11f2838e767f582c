"""``vmlockctl selftest``. Next: ``ops/selftest.py``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Optional

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import is_terminal, print_json, say
from vmlockctl.errors import EXIT_FINDINGS, EXIT_OK
from vmlockctl.ops.selftest import FAIL, PASS, RUNNING, WAITING, Report, Scenario, Step, selftest
from vmlockctl.ops.selftest_stage import QEMU
from vmlockctl.text import safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_STYLES = {WAITING: "dim", RUNNING: "cyan", PASS: "green", FAIL: "bold red"}
_FRAME_LINES = 8  # what stands around the rows of the table


@click.command("selftest", context_settings=CONTEXT_SETTINGS)
@click.argument("directory", required=False, metavar="[DIR]")
@common_options
@click.pass_context
def command(ctx: click.Context, directory: Optional[str]) -> int:
    """Test the locking on your own storage, with VMs that are started and refused.

    A new sub-directory of DIR (default: a temporary directory) is used and removed again; nothing else
    is touched. The VM is QEMU where it is installed, and otherwise a process that opens the disk. The
    exit status is 0 when all scenarios pass, and 1 when one does not.
    """
    context = context_of(ctx)
    if context.json:
        report = selftest(directory, on_progress=lambda _report, _note: None)
        print_json(_as_json(report))
    elif is_terminal() and os.environ.get("TERM") != "dumb":
        report = _run_live(directory)
    else:
        report = selftest(directory, on_progress=_Lines(quiet=context.quiet))
        print(_summary(report))
    return EXIT_OK if report.result == PASS else EXIT_FINDINGS


def _as_json(report: Report) -> dict[str, Any]:
    """The report, with the steps that were performed."""
    return {
        "dir": report.directory,
        "tool": report.tool,
        "version": report.version,
        "scenarios": [
            {**scenario._asdict(), "steps": [step._asdict() for step in scenario.steps if _is_done(step)]}
            for scenario in report.scenarios
        ],
        "result": report.result,
    }


def _is_done(step: Step) -> bool:
    return step.result in (PASS, FAIL)


def _headline(report: Report) -> str:
    what = report.version if report.tool == QEMU else "no QEMU found: a stand-in process opens the disk"
    return f"vmlockctl selftest in {safe(report.directory)} ({safe(what)})"


def _summary(report: Report) -> str:
    passed = sum(scenario.result == PASS for scenario in report.scenarios)
    seconds = sum(scenario.seconds for scenario in report.scenarios)
    return (
        f"{report.result.upper()}  {passed} of {len(report.scenarios)} scenarios passed, {seconds:.1f} s, "
        f"on {safe(report.directory)}"
    )


class _Lines:
    """For a pipe: a line for each finished step."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._printed: Optional[set[tuple[str, int]]] = None

    def __call__(self, report: Report, note: str) -> None:
        if self._printed is None:
            self._printed = set()
            print(_headline(report), flush=True)
        if note:
            say(note, quiet=self._quiet)
        for scenario in report.scenarios:
            for index, step in enumerate(scenario.steps):
                if _is_done(step) and (scenario.name, index) not in self._printed:
                    self._printed.add((scenario.name, index))
                    print(_line(scenario, step), flush=True)


def _line(scenario: Scenario, step: Step) -> str:
    result = step.result.upper()
    return f"{result}  {step.seconds:5.2f} s  {scenario.title}: {step.text}: {safe(step.detail)}"


def _run_live(directory: Optional[str]) -> Report:
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=bool(os.environ.get("NO_COLOR")))
    with Live(console=console, refresh_per_second=8) as live:
        report = selftest(
            directory, on_progress=lambda seen, note: live.update(_view(console, seen, note), refresh=True)
        )
        live.update(_table(report, short=False))
    console.print(_summary(report), style=_STYLES[report.result], markup=False, highlight=False)
    return report


def _view(console: Console, report: Report, note: str) -> RenderableType:
    """The table as it stands; on a low terminal, without what can wait for the end."""
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    lines = len(console.render_lines(_table(report, short=False)))
    table = _table(report, short=lines + _FRAME_LINES > console.height)
    return Group(table, Spinner("dots", Text(note, style=_STYLES[RUNNING]))) if note else table


def _table(report: Report, *, short: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_headline(report)), title_justify="left", header_style="bold", expand=False)
    table.add_column("STEP", overflow="fold")
    table.add_column("RESULT", no_wrap=True)
    table.add_column("TIME", justify="right", no_wrap=True)
    if not short:
        table.add_column("DETAIL", overflow="fold")
    for scenario in report.scenarios:
        result = Text(scenario.result, style=_STYLES[scenario.result])
        table.add_row(Text(scenario.title, style="bold"), result, _seconds(scenario))
        if not short or scenario.result in (RUNNING, FAIL):
            for step in scenario.steps:
                detail = () if short else (Text(safe(step.detail)),)
                table.add_row(f"  {step.text}", _result(scenario, step), _seconds(step), *detail)
        table.add_section()
    return table


def _result(scenario: Scenario, step: Step) -> RenderableType:
    from rich.spinner import Spinner
    from rich.text import Text

    if step.result == RUNNING:
        return Spinner("dots", Text(RUNNING, style=_STYLES[RUNNING]))
    shown = "not run" if step.result == WAITING and scenario.result == FAIL else step.result
    return Text(shown, style=_STYLES[step.result])


def _seconds(done: Scenario | Step) -> str:
    return f"{done.seconds:.2f} s" if done.result in (PASS, FAIL) else ""
