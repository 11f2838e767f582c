"""check-orphans: what is left over or unprotected: leases, processes and hosts that do not belong together.

It looks and tells, and it never kills. The parts are in ``ops/orphans``: ``leases`` and ``disks`` (lease
files), ``processes`` (claims and QEMUs), ``hosts`` (ids and names), ``fixes`` (what is proven safe) and
``plan`` (the writes of a fix). A lease that was released, or never acquired, is no finding: there is one for
every disk that ever had a VM.
"""

from __future__ import annotations

from vmlockctl.ops.orphans.finding import CRITICAL, SEVERITIES, WARNING, Finding, Note
from vmlockctl.ops.orphans.hosts import HostWatch, duplicate_hosts
from vmlockctl.ops.orphans.leases import about_lease, note_of
from vmlockctl.ops.orphans.processes import about_qemus, claims_without_lease
from vmlockctl.ops.orphans.view import look_around
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import Status, status
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Report(NamedTuple):
    """What was found, the worst first, and the leases that nobody holds."""

    seen: Status
    findings: list[Finding]
    notes: list[Note]

    def number_of(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def problems(self) -> int:
        return self.number_of(CRITICAL) + self.number_of(WARNING)


def check_orphans(
    session: Session, *, image_directories: Sequence[str] = (), observe_seconds: float = 0.0
) -> Report:
    """Everything that is orphaned or unprotected. Nothing is written.

    ``image_directories`` may know disks that nothing else names; ``observe_seconds`` of watching tells which
    hosts are alive where no daemon has watched them, and shows two hosts that use one id.
    """
    watch = HostWatch()
    seen = status(
        session,
        observe_seconds=observe_seconds,
        image_directories=image_directories,
        on_look=watch.look,
    )
    view = look_around(session, seen)
    findings = [finding for lease in seen.leases for finding in about_lease(lease, view)]
    findings += claims_without_lease(view)
    findings += about_qemus(view)
    findings += duplicate_hosts(session, seen, watch, observe_seconds)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.kind, finding.subject))
    told = {finding.path for finding in findings}
    notes = [note for note in map(note_of, seen.leases) if note is not None and note.path not in told]
    return Report(seen, findings, notes)
