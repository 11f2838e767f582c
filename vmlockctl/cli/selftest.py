"""``vmlockctl selftest``. Next: ``ops/selftest.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import is_terminal, print_json
from vmlockctl.errors import EXIT_FINDINGS, EXIT_OK
from vmlockctl.ops.selftest import PASS, Report, selftest
from vmlockctl.text import safe

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"pass": "green", "fail": "bold red", "running": "cyan"}


@click.command("selftest", context_settings=CONTEXT_SETTINGS)
@click.argument("directory", required=False, metavar="[DIR]")
@common_options
@click.pass_context
def command(ctx: click.Context, directory: Optional[str]) -> int:
    """Test the locking on your own storage: two hosts in a new sub-directory of DIR, and real VMs.

    DIR defaults to /var/tmp. Nothing outside the sub-directory is touched, and
    nothing is left behind.
    """
    context = context_of(ctx)
    if context.json:
        report = selftest(directory, on_change=lambda _report: None)
        print_json({**report._asdict(), "scenarios": [_as_json(s) for s in report.scenarios],
                    "result": report.result})  # fmt: skip
    elif is_terminal():
        report = _run_live(directory)
    else:
        report = selftest(directory, on_change=_Lines())
    if not context.json:
        print(_summary(report))
    return EXIT_OK if report.result == PASS else EXIT_FINDINGS


def _as_json(scenario: Any) -> dict[str, Any]:
    return {**scenario._asdict(), "steps": [step._asdict() for step in scenario.steps]}


class _Lines:
    """For a pipe: one line for every step, when it is done."""

    def __init__(self) -> None:
        self._printed: set[tuple[int, int]] = set()

    def __call__(self, report: Report) -> None:
        for number, scenario in enumerate(report.scenarios):
            for index, step in enumerate(scenario.steps):
                if (number, index) not in self._printed:
                    self._printed.add((number, index))
                    what = f"{scenario.name}: {step.text} ({step.seconds:.2f} s)"
                    print(f"{step.result}  {what}: {safe(step.detail)}")


def _run_live(directory: Optional[str]) -> Report:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), refresh_per_second=8) as live:
        return selftest(directory, on_change=lambda report: live.update(_table(report)))


def _table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="vmlockctl selftest", title_justify="left")
    for heading in ("SCENARIO", "STEP", "RESULT", "SECONDS", "DETAIL"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "SECONDS" else "left")
    for scenario in report.scenarios:
        for index, step in enumerate(scenario.steps):
            table.add_row(
                scenario.title if index == 0 else "",
                step.text,
                Text(step.result, style=_STYLES[step.result]),
                f"{step.seconds:.2f}",
                Text(safe(step.detail)),
            )
        if scenario.result == "running":
            title = "" if scenario.steps else scenario.title
            table.add_row(title, "...", Text("running", style=_STYLES["running"]), "", "")
        table.add_section()
    return table


def _summary(report: Report) -> str:
    passed = sum(scenario.result == PASS for scenario in report.scenarios)
    return (
        f"{passed} of {len(report.scenarios)} scenarios passed in {safe(report.directory)}, "
        f"with {report.tool}: {safe(report.version)}"
    )
