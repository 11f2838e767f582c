"""``vmlockctl release --evidence``. Next: ``ops/release_evidence.py``."""

from __future__ import annotations

import sys

from vmlockctl.cli.output import Progress, columns, print_json
from vmlockctl.errors import UsageError
from vmlockctl.ops.evidence import Evidence, parse_vouch
from vmlockctl.ops.release_evidence import Released, Watch, Written, release_with_evidence
from vmlockctl.ops.session import open_session
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

    from vmlockctl.cli.params import Context


def execute(context: Context, values: dict[str, Any], words: list[str]) -> int:
    if values["to_shared"] or values["pid"] is not None:
        raise UsageError(
            "--evidence contradicts --pid and --to-shared: it is for leases that another host holds",
            hint="say one of them",
        )
    if not words:
        raise UsageError("release --evidence: no disk named", hint="name at least one disk")
    vouch = None if values["i_know"] is None else parse_vouch(values["i_know"])
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    with Progress(quiet=context.quiet) as progress:
        watch = Watch(values["wait"], _ignore if context.json else _print_evidence, progress.wait)
        released = release_with_evidence(session, words, vouch=vouch, watch=watch)
    if context.json:
        print_json(_as_json(released))
    else:
        _print_released(released)
    return 0


# -- for people ----------------------------------------------------------------------------------------


def _ignore(_evidence: Sequence[Evidence]) -> None:
    """With --json one object says everything."""


def _print_evidence(evidence: Sequence[Evidence]) -> None:
    for found in evidence:
        owner = found.owner
        lease = f"{found.mode} lease, version {found.lver}, {safe(found.path)}:{found.offset}"
        print(f"{safe(found.disk)}: {lease}")
        facts = [
            (
                "owner",
                f"host id {owner['host_id']}, {owner['host_name'] or '?'}, generation {owner['generation']}",
            ),
            ("state", f"{owner['state']}, as observed by {found.observed_by}"),
        ]
        if owner["host_generation"] != owner["generation"]:
            facts.append(("host id now", f"generation {owner['host_generation']}"))
        if found.last_change_at is not None:
            facts.append(("last change", f"{found.last_change_at}, {format_seconds(owner['age'])} ago"))
        facts.append(("needed", f"{found.threshold_seconds} s without a change"))
        if owner["vm"] or owner["pid"]:
            facts.append(("owner note", f"VM {owner['vm'] or '?'}, process {owner['pid'] or '?'} there"))
        facts.append(("verdict", f"gone: {found.proof}" if found.proof else "not proven to be gone"))
        for line in columns(facts):
            print(f"  {line}")
    sys.stdout.flush()  # before the wait, also into a pipe


def _print_released(released: Released) -> None:
    for lease in released.now:
        disk = next(grant.disk for grant in released.grants if grant.resource == lease.resource)
        print(f"{safe(disk)}: released; its lease is {lease.mode} now, version {lease.lver}")
        for change in released.written:
            if change.path == lease.path:
                print(f"  written  {safe(change.path)}:{change.offset}  {_text(change)}")


def _text(change: Written) -> str:
    old, new = (
        "nobody" if owner is None else f"{owner.host_id}:{owner.generation}"
        for owner in (change.old_owner, change.new_owner)
    )
    return f"version {change.lver}, owner {old} -> {new}"


# -- for programs ----------------------------------------------------------------------------------------


def _as_json(released: Released) -> dict[str, Any]:
    return {
        "released": [{"resource": g.resource, "disk": g.disk, "lver": g.lver} for g in released.grants],
        "evidence": [found._asdict() for found in released.evidence],
        "written": [{**change._asdict(), **_owners(change)} for change in released.written],
        "leases": [lease._asdict() for lease in released.now],
    }


def _owners(change: Written) -> dict[str, Optional[dict[str, int]]]:
    return {
        key: None if owner is None else dict(owner._asdict())
        for key, owner in (("old_owner", change.old_owner), ("new_owner", change.new_owner))
    }
