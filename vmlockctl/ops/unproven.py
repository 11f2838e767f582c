"""What is said where an owner of a lease is not proven to be gone: who, in what state, and what helps."""

from __future__ import annotations

import shlex

from vmlockctl.errors import GaveUpWaiting, LeaseHeld, UsageError
from vmlockctl.lease.liveness import LIVE
from vmlockctl.log import WARNING, log, who
from vmlockctl.ops.evidence import Evidence, Vouch
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional


def instance_text(found: Evidence) -> str:
    return f"{found.owner['host_id']}:{found.owner['generation']}"


def owner_text(found: Evidence) -> str:
    owner = found.owner
    text = f"host {safe(str(owner['host_name'] or '?'))!r} (host id {owner['host_id']}, generation "
    text += f"{owner['generation']}, {owner['state']}"
    if owner["vm"] or owner["pid"]:
        text += f", VM {safe(str(owner['vm'] or '?'))!r} process {owner['pid']}"
    return text + ")"


def require_meant(evidence: Sequence[Evidence], vouch: Optional[Vouch]) -> None:
    """A person who vouches for another instance than those that hold the leases is mistaken."""
    if vouch is None:
        return
    meant = {found.instance for found in evidence if found.vouched}
    if len(meant) > 1:
        raise UsageError(f"--i-know {vouch}: several hosts have that name", hint="name it by its host id")
    if not meant:
        found = evidence[0]
        log(f"release --evidence --i-know {vouch} refused, held by {owner_text(found)}: by {who()}", WARNING)
        raise LeaseHeld(
            f"{safe(found.disk)}: --i-know {vouch} is not its owner, found {owner_text(found)}",
            hint="vouch only for the very instance that you know to be powered off or fenced",
            details=_details(found, evidence),
        )


def not_proven(worst: Evidence, evidence: Sequence[Evidence]) -> LeaseHeld:
    """Who holds it, in what state, and when it can be taken; or that waiting never helps, and what does."""
    held = f"{safe(worst.disk)}: its lease is held by {owner_text(worst)}"
    if worst.takeover_in is not None:
        left = format_seconds(worst.takeover_in)
        message = f"{held}: it is silent, and can be taken in {left} if it stays so"
        hint = (
            "run this again then, or with --wait; if you know it to be powered off or fenced, with "
            f"--i-know {instance_text(worst)}"
        )
    elif worst.owner["state"] != LIVE:
        found = worst.owner["host_generation"]
        message = f"{held}, but its host id is at generation {found} only: nothing can be proven"
        hint = "the lockspace was formatted under the lease; make sure of the VM on every host"
    elif worst.owner["this_host"]:
        message = f"{held}: that is this host itself"
        hint = "'vmlockctl release' gives back what this host holds; see 'vmlockctl check-orphans'"
    else:
        age = worst.owner["age"]
        message = f"{held}: it is alive, its record changed {format_seconds(age)} ago; waiting does not help"
        hint = f"stop the VM there, or ask for it: vmlockctl request {shlex.quote(worst.disk)}"
        if worst.vouched:
            log(f"release --evidence --i-know {instance_text(worst)} refused, alive: by {who()}", WARNING)
            message += ", and a live owner cannot be overridden"
            left = format_seconds(max(0.0, worst.threshold_seconds - age))
            hint = f"if it was cut off just now, run this again in {left}: you are believed once it is silent"
    return LeaseHeld(message, hint=hint, details=_details(worst, evidence))


def gave_up(seconds: float, worst: Evidence, evidence: Sequence[Evidence]) -> GaveUpWaiting:
    error = not_proven(worst, evidence)
    return GaveUpWaiting(
        f"gave up waiting after {format_seconds(seconds)}: {error.message}",
        hint=error.hint,
        details=error.details,
    )


def _details(found: Evidence, evidence: Sequence[Evidence]) -> dict[str, Any]:
    return {
        "disk": found.disk,
        "owners": [found.owner],
        "state": found.owner["state"],
        "mode": found.mode,
        "lver": found.lver,
        "takeover_in": found.takeover_in,
        "evidence": [each._asdict() for each in evidence],
    }
