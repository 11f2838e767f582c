"""What check-orphans says: findings, each with its evidence, the risk of leaving it, and the next step."""

from __future__ import annotations

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

    from vmlockctl.ops.status import Lease

CRITICAL = "critical"  # two writers may come of it, or have
WARNING = "warning"
INFO = "info"  # worth knowing, and nothing that has to be done
SEVERITIES = (CRITICAL, WARNING, INFO)

# Processes.
PROCESS_WITHOUT_CLAIM = "process-without-claim"
PROCESS_WITHOUT_LEASE = "process-without-lease"
LEASE_TAKEN = "lease-taken"
UNPROTECTED_PROCESS = "unprotected-process"
FORGOTTEN_BY_LIBVIRT = "forgotten-by-libvirt"
# Leases.
LEASE_WITHOUT_PROCESS = "lease-without-process"
DEAD_HOST = "dead-host"
EARLIER_GENERATION = "earlier-generation"
SILENT_HOST = "silent-host"
MISSING_DISK = "missing-disk"
DAMAGED = "damaged"
SHORT = "short"
UNINITIALISED = "uninitialised"
CLEARED = "cleared"
# Hosts.
DUPLICATE_HOST_ID = "duplicate-host-id"
DUPLICATE_HOST_NAME = "duplicate-host-name"
HOST_LEASE_LOST = "host-lease-lost"
# Notes.
RELEASED = "released"
NEVER_ACQUIRED = "never-acquired"

ADOPT = "adopt"
RELEASE_OURS = "release"
TAKE_AND_RELEASE = "take over and release"
REMOVE = "remove"


class Finding(NamedTuple):
    """One thing that is not as it should be. ``fix`` None: nothing that is proven safe can be done."""

    kind: str
    severity: str
    resource: Optional[str]
    disk: Optional[str]
    pid: Optional[int]
    owner: Optional[dict[str, Any]]
    text: str
    fix: Optional[str]
    path: Optional[str] = None
    evidence: tuple[str, ...] = ()
    risk: str = ""  # what can happen if it is left
    command: str = ""  # the next step, as it is typed
    advice: str = ""  # the next step in words

    @property
    def subject(self) -> str:
        """What a person calls it: the disk, where anybody knows it."""
        return self.disk or self.path or self.resource or (f"process {self.pid}" if self.pid else "this host")


class Note(NamedTuple):
    """A lease as there are many: nothing is wrong with it."""

    kind: str
    resource: str
    disk: Optional[str]
    path: str


class Write(NamedTuple):
    """A write that a fix does."""

    path: str
    offset: int
    record: str
    old: str
    new: str


def of_lease(
    kind: str,
    severity: str,
    lease: Lease,
    text: str,
    *,
    owner: Optional[dict[str, Any]] = None,
    pid: Optional[int] = None,
    fix: Optional[str] = None,
    evidence: Sequence[str],
    risk: str,
    command: str,
    advice: str,
) -> Finding:
    """A finding about a lease; its process is the owner's where ``pid`` names none."""
    if pid is None and owner is not None:
        pid = owner["pid"]
    return Finding(
        kind, severity, lease.resource, lease.disk, pid, owner, text, fix, lease.path,
        tuple(evidence), risk, command, advice,
    )  # fmt: skip


def of_process(
    kind: str,
    severity: str,
    pid: int,
    disk: Optional[str],
    text: str,
    *,
    fix: Optional[str] = None,
    evidence: Sequence[str],
    risk: str,
    command: str,
    advice: str,
) -> Finding:
    """A finding about a process of this host, and the disk that it uses."""
    return Finding(
        kind, severity, None, disk, pid, None, text, fix, None, tuple(evidence), risk, command, advice
    )


def of_host(
    kind: str,
    severity: str,
    host: dict[str, Any],
    text: str,
    *,
    evidence: Sequence[str],
    risk: str,
    command: str,
    advice: str,
) -> Finding:
    """A finding about a host, which is its ``owner``."""
    return Finding(
        kind, severity, None, None, None, host, text, None, None, tuple(evidence), risk, command, advice
    )
