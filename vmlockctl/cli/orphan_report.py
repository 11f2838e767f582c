"""How the findings of check-orphans are shown: blocks, one line for monitoring, or JSON."""

from __future__ import annotations

import os

from vmlockctl.cli.output import is_terminal
from vmlockctl.ops.check_orphans import Report
from vmlockctl.ops.orphans.finding import CRITICAL, NEVER_ACQUIRED, RELEASED, SEVERITIES, WARNING, Finding
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from vmlockctl.ops.orphans.finding import Write
    from vmlockctl.ops.orphans.fixes import Fixed

    Plan = Sequence[tuple[Finding, Sequence[Write]]]

_STYLES = {CRITICAL: "bold red", WARNING: "yellow"}


def print_report(report: Report) -> None:
    """The worst first: a block for each finding, and then what is merely there."""
    for finding in report.findings:
        heading, *lines = finding_lines(finding)
        _print_heading(heading, _STYLES.get(finding.severity, ""))
        for line in lines:
            print(line)
        print()
    for line in summary_lines(report):
        print(line)


def _print_heading(text: str, style: str) -> None:
    if not is_terminal():
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(no_color=bool(os.environ.get("NO_COLOR")), highlight=False)
    console.print(Text(text, style=style), soft_wrap=True)


def finding_lines(finding: Finding) -> Iterator[str]:
    """One block, safe to print: what, about which disk, and what to do."""
    yield f"{finding.severity}: {finding.kind}: {safe(finding.subject)}"
    yield f"  {safe(finding.text)}"
    for evidence in finding.evidence:
        yield f"  seen:  {safe(evidence)}"
    if finding.risk:
        yield f"  risk:  {safe(finding.risk)}"
    if finding.command:
        yield f"  do:    {safe(finding.command)}"
    if finding.advice:
        yield f"         {safe(finding.advice)}"


def summary_lines(report: Report) -> Iterator[str]:
    """How much there is of each, in one or two lines."""
    counts = [
        f"{report.number_of(severity)} {severity}" for severity in SEVERITIES if report.number_of(severity)
    ]
    yield ", ".join(counts) if counts else "no orphans"
    if report.notes:
        yield f"nothing wrong with: {notes_text(report)}"


def notes_text(report: Report) -> str:
    """``12 released leases, 3 never acquired, 2 of them of unknown disks``."""
    released = sum(note.kind == RELEASED for note in report.notes)
    never = sum(note.kind == NEVER_ACQUIRED for note in report.notes)
    unknown = sum(note.disk is None for note in report.notes)
    parts = [f"released leases: {released}", f"never acquired: {never}"]
    if unknown:
        parts.append(f"of disks that nobody knows: {unknown} (--images DIR may know them)")
    return ", ".join(parts)


def plan_lines(plan: Plan) -> Iterator[str]:
    """What would be written, where, and over what."""
    if not plan:
        yield "nothing would be written"
    for finding, writes in plan:
        yield f"would {finding.fix}: {safe(finding.subject)}"
        for write in writes:
            change = f"{write.old} -> {write.new}"
            yield f"  write {safe(write.path)}:{write.offset} {write.record}: {safe(change)}"


def nagios_line(report: Report) -> str:
    """``VMLOCKCTL STATE - text|perfdata`` (the Monitoring Plugins' guidelines)."""
    critical, warning = report.number_of(CRITICAL), report.number_of(WARNING)
    state = "CRITICAL" if critical else "WARNING" if warning else "OK"
    leases = len(report.seen.leases)
    text = f"{leases} leases, no orphans"
    if critical or warning:
        first = report.findings[0]
        more = f" (and {critical + warning - 1} more)" if critical + warning > 1 else ""
        text = f"{first.kind}: {first.text}{more}"
    perfdata = f"critical={critical};;0 warning={warning};0 leases={leases} hosts={len(report.seen.hosts)}"
    return f"VMLOCKCTL {state} - {_for_nagios(text)}|{perfdata}"


def unknown_line(message: str) -> str:
    return f"VMLOCKCTL UNKNOWN - {_for_nagios(message)}"


def _for_nagios(text: str) -> str:
    """A bar would begin the performance data."""
    return safe(text).replace("|", "\\x7c")


def as_json(report: Report, *, fixed: Sequence[Fixed] = (), plan: Plan = ()) -> dict[str, Any]:
    return {
        "findings": [finding._asdict() for finding in report.findings],
        "fixed": [
            {"resource": f.finding.resource, "done": f.done, "text": f.text,
             "kind": f.finding.kind, "disk": f.finding.disk}
            for f in fixed
        ],
        "planned": [
            {"resource": finding.resource, "disk": finding.disk, "fix": finding.fix,
             "writes": [write._asdict() for write in writes]}
            for finding, writes in plan
        ],
        "notes": [note._asdict() for note in report.notes],
        "counts": {severity: report.number_of(severity) for severity in SEVERITIES},
        "observed_by": report.seen.observed_by,
    }  # fmt: skip
