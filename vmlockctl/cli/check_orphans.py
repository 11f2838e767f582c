"""``vmlockctl check-orphans``. Next: ``ops/check_orphans.py``; ``orphan_report.py`` shows what it finds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.orphan_report import as_json, nagios_line, plan_lines, print_report, unknown_line
from vmlockctl.cli.output import print_json, say
from vmlockctl.errors import EXIT_FINDINGS, EXIT_OK, Refused, UsageError, VmlockctlError
from vmlockctl.ops.check_orphans import Report, check_orphans
from vmlockctl.ops.orphans.fixes import Fixed, apply, fixable
from vmlockctl.ops.orphans.plan import planned_writes
from vmlockctl.ops.session import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmlockctl.cli.params import Context
    from vmlockctl.ops.orphans.finding import Finding
    from vmlockctl.ops.session import Session

# What a monitoring plug-in ends with; only --nagios does.
NAGIOS_OK, NAGIOS_WARNING, NAGIOS_CRITICAL, NAGIOS_UNKNOWN = range(4)


@click.command("check-orphans", context_settings=CONTEXT_SETTINGS)
@click.option("--fix", is_flag=True, help="Adopt running VMs, and release what is proven unused.")
@click.option("--prune", is_flag=True, help="Remove the lease files of disks that are gone.")
@click.option("--dry-run", is_flag=True, help="Only say what --fix and --prune would do, write by write.")
@click.option("--yes", is_flag=True, help="Do not ask before --fix and --prune.")
@click.option("--images", multiple=True, metavar="DIR", help="Look here for disks that nothing else names.")
@click.option(
    "--observe", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Watch the hosts so long."
)
@click.option("--nagios", is_flag=True, help="One line, and the exit codes of a monitoring plug-in.")
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    fix: bool,  # noqa: FBT001 - click
    prune: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    images: tuple[str, ...],
    observe: float,
    nagios: bool,  # noqa: FBT001
) -> int:
    """Leases, processes and hosts that do not belong together: what is left over, or unprotected."""
    context = context_of(ctx)
    if nagios and (fix or prune or dry_run or context.json):
        raise UsageError("--nagios only looks, and prints one line", hint="leave out the other options")
    try:
        session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
        report = check_orphans(session, image_directories=images, observe_seconds=observe)
    except VmlockctlError as error:
        if not nagios:
            raise
        print(unknown_line(error.message))
        return NAGIOS_UNKNOWN
    if nagios:
        print(nagios_line(report))
        return _nagios_status(report)
    wanted = fixable(report.findings, fix=fix or (dry_run and not prune), prune=prune)
    if dry_run:
        return _show_plan(context, session, report, wanted)
    if not wanted:
        return _show(context, report, [])
    if not context.json:
        print_report(report)
    _ask(wanted, yes=yes)
    return _show(context, report, apply(session, wanted))


def _nagios_status(report: Report) -> int:
    if report.number_of("critical"):
        return NAGIOS_CRITICAL
    return NAGIOS_WARNING if report.problems else NAGIOS_OK


def _ask(wanted: Sequence[Finding], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("nobody is there to ask: no terminal", hint="say --yes to do it without being asked")
    counts = {str(f.fix): sum(other.fix == f.fix for other in wanted) for f in wanted}
    what = ", ".join(f"{fix} {count}" for fix, count in counts.items())
    if not click.confirm(f"Really {what}?", err=True):
        raise Refused("not confirmed; nothing was written")


def _show_plan(context: Context, session: Session, report: Report, wanted: Sequence[Finding]) -> int:
    plan = [(finding, planned_writes(session, report.seen, finding)) for finding in wanted]
    if context.json:
        print_json(as_json(report, plan=plan))
    else:
        print_report(report)
        for line in plan_lines(plan):
            print(line)
    return EXIT_FINDINGS if report.problems else EXIT_OK


def _show(context: Context, report: Report, fixed: Sequence[Fixed]) -> int:
    """Tell what was found, or what was done about it where that was printed before."""
    if context.json:
        print_json(as_json(report, fixed=fixed))
    elif not fixed:
        print_report(report)
    for result in fixed:
        say(f"{result.finding.subject}: {result.text}", quiet=context.quiet)
    done = [result.finding for result in fixed if result.done]
    left = [f for f in report.findings if f.severity != "info" and f not in done]
    return EXIT_FINDINGS if left else EXIT_OK
