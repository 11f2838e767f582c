"""``vmlockctl check-orphans``. Next: ``ops/check_orphans.py``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import print_json, print_table, say
from vmlockctl.errors import EXIT_FINDINGS, EXIT_OK, Refused
from vmlockctl.ops.check_orphans import Finding, Fixed, check_orphans, fix
from vmlockctl.ops.session import open_session
from vmlockctl.text import safe

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("check-orphans", context_settings=CONTEXT_SETTINGS)
@click.option("--fix", "fix_them", is_flag=True, help="Release what is proven unused.")
@click.option("--dry-run", is_flag=True, help="With --fix: say what would be done.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@common_options
@click.pass_context
def command(ctx: click.Context, fix_them: bool, dry_run: bool, yes: bool) -> int:  # noqa: FBT001 - click
    """Leases without a process, processes without a lease, dead hosts, earlier generations."""
    context = context_of(ctx)
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    findings = check_orphans(session)
    fixed: list[Fixed] = []
    if fix_them and not dry_run and any(finding.fix for finding in findings):
        if not context.json:
            _print_findings(findings)
        _ask(findings, yes=yes)
        fixed = fix(session, findings)
    if context.json:
        print_json({"findings": [_as_json(finding) for finding in findings], "fixed": [
            {"resource": f.finding.resource, "done": f.done, "text": f.text} for f in fixed
        ]})  # fmt: skip
    elif not fixed:
        _print_findings(findings)
        if fix_them:
            _print_plan(findings)
    for result in fixed:
        say(f"{result.finding.disk or result.finding.resource}: {result.text}", quiet=context.quiet)
    left = len(findings) - sum(result.done for result in fixed)
    return EXIT_FINDINGS if left else EXIT_OK


def _ask(findings: Sequence[Finding], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("nobody is there to ask: no terminal", hint="say --yes to release without being asked")
    count = sum(finding.fix is not None for finding in findings)
    if not click.confirm(f"Release {count} of them?", err=True):
        raise Refused("not confirmed; nothing was written")


def _print_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        print("no orphans")
        return
    print_table(
        ("SEVERITY", "KIND", "DISK", "PID", "WHAT"),
        [
            (f.severity, f.kind, f.disk or f.resource or "-", str(f.pid) if f.pid else "-", f.text)
            for f in findings
        ],
    )


def _print_plan(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.fix is not None:
            print(f"would {finding.fix}: {safe(finding.disk or finding.resource or '')}")


def _as_json(finding: Finding) -> dict[str, Any]:
    return dict(finding._asdict())
