"""Claims: this host's own records that a process uses a lease.

One JSON file per resource, written before the disk is touched and removed after the lease is released,
so that a command that dies half way leaves a claim whose lock is free, and the daemon settles it.

    acquiring   a command is at the ballot
    held        the lease is ours
    converting  a command changes its mode; what is certain meanwhile is that it is shared
    releasing   a command or the daemon gives it back
"""

from __future__ import annotations

import os

from vmlockctl.daemon.shapes import fits, fits_row
from vmlockctl.errors import VmlockctlError
from vmlockctl.host.openers import Identity, find_openers
from vmlockctl.host.process import Process, boot_id, is_alive
from vmlockctl.host.rundir import FileLock, read_json, record_names, remove, write_json
from vmlockctl.lease.resource import Resource
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

ACQUIRING = "acquiring"
HELD = "held"
CONVERTING = "converting"
RELEASING = "releasing"
_STATES = (ACQUIRING, HELD, CONVERTING, RELEASING)

EXCLUSIVE = "exclusive"
SHARED = "shared"


class Claim(NamedTuple):
    """claims/RES.json. An exclusive claim has one process, unless its children took the disk over."""

    resource: str
    path: str
    offset: int
    disk: str
    identity: Optional[Identity]  # of the disk: None when it had none (a lease without a disk)
    mode: str
    state: str
    host_id: int
    generation: int
    lver: int
    processes: tuple[Process, ...]
    command: Optional[Process]  # who works on the lease: stopped with the VMs when the host lease is lost
    vm: str = ""
    uuid: str = ""
    acquired_at: float = 0.0  # seconds since the epoch, for people
    file: tuple[int, ...] = ()  # which file the lease was acquired in

    @property
    def is_shared(self) -> bool:
        return self.mode == SHARED

    @property
    def label(self) -> str:
        """The lease and the disk it stands for, as log lines begin."""
        return f"{self.resource}: {safe(self.disk)}"

    @property
    def lease(self) -> Resource:
        return Resource(self.path, self.offset, self.resource)


def takers_over(claim: Claim) -> list[Process]:
    """Processes that use a claimed disk without being named by the claim (QEMU's -daemonize).

    For an exclusive claim, whoever may write the disk; for a shared one, whoever has it open.
    """
    if claim.identity is None:
        return []
    known = {process.pid for process in claim.processes if is_alive(process)}
    found = find_openers([claim.identity], skip=known).openers.get(claim.identity, [])
    return [
        Process(opener.pid, opener.start_time, boot_id())
        for opener in found
        if opener.writable or claim.is_shared
    ]


class ClaimStore:
    """The claims of one lockspace."""

    def __init__(self, path: str) -> None:
        self.path = path

    def lock(self, resource: str) -> FileLock:
        """Whoever works on a lease holds this, in whichever process."""
        return FileLock(os.path.join(self.path, f"{resource}.lock"))

    def file(self, resource: str) -> str:
        return os.path.join(self.path, f"{resource}.json")

    def read(self, resource: str) -> Optional[Claim]:
        """None where there is none, or where it is damaged."""
        record = read_json(self.file(resource))
        claim = None if record is None else _claim_from(record)
        return claim if claim is not None and claim.resource == resource else None

    def write(self, claim: Claim) -> None:
        write_json(self.file(claim.resource), _claim_to(claim))

    def remove(self, resource: str) -> None:
        remove(self.file(resource))

    def disk_of(self, resource: str) -> str:
        """The disk of a claim, for a log line, whose writing may not fail; "" where it cannot be told."""
        try:
            claim = self.read(resource)
        except VmlockctlError:
            return ""
        return "" if claim is None else claim.disk

    def all(self) -> list[Claim]:
        """Every claim, by resource name."""
        claims = map(self.read, record_names(self.path))
        return [claim for claim in claims if claim is not None]

    def version(self) -> int:
        """Changes whenever a claim is written or removed."""
        try:
            return os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return 0


def _claim_to(claim: Claim) -> dict[str, Any]:
    """A claim as JSON; of its processes, the first also stands as ``pid`` for people and scripts."""
    record = claim._asdict()
    record["identity"] = None if claim.identity is None else list(claim.identity)
    record["processes"] = [process._asdict() for process in claim.processes]
    record["command"] = None if claim.command is None else claim.command._asdict()
    record["pid"] = claim.processes[0].pid if claim.processes else None
    return record


def _claim_from(record: dict[str, Any]) -> Optional[Claim]:
    record = {"file": [], **record}  # an earlier version did not write it
    if not fits(record, Claim, apart_from=_PARTS) or not all(
        _fits_part(part, record[part]) for part in _PARTS
    ):
        return None
    fields = {field: record[field] for field in Claim._fields}
    fields["file"] = tuple(fields["file"])
    fields["identity"] = None if fields["identity"] is None else Identity(*fields["identity"])
    fields["processes"] = tuple(Process(**process) for process in fields["processes"])
    fields["command"] = None if fields["command"] is None else Process(**fields["command"])
    claim = Claim(**fields)
    return claim if claim.mode in (EXCLUSIVE, SHARED) and claim.state in _STATES else None


_PARTS = ("identity", "processes", "command")


def _fits_part(part: str, value: object) -> bool:
    if part == "processes":
        return isinstance(value, list) and all(map(_is_process, value))
    return value is None or (fits_row(value, Identity) if part == "identity" else _is_process(value))


def _is_process(value: object) -> bool:
    return fits(value, Process) and len(value) == len(Process._fields)
