"""Hosts that share what each must have alone: a host id (two programs renew one record), or a host name.

Two hosts under one id are one owner to everybody else: both hold every lease that either holds. Two hosts of
one name are taken for one that was started again, whose leases are free at once (sanlock's fast re-join).
"""

from __future__ import annotations

from vmlockctl.daemon.hoststate import JOINING, LIVE, LOST, HostState, Membership
from vmlockctl.errors import OnDiskError
from vmlockctl.lease.delta import read_record
from vmlockctl.lease.liveness import DEAD, FREE
from vmlockctl.lease.timeouts import id_renewal_seconds, sane_io_timeout
from vmlockctl.ondisk.leader import Leader
from vmlockctl.ops.orphans import finding as kinds
from vmlockctl.ops.orphans.finding import CRITICAL, WARNING, Finding, of_host
from vmlockctl.ops.orphans.view import membership_of
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import Host, Status
from vmlockctl.storage.driver import Driver
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Optional

# One host that renews late and then on time again is not two.
_TOO_OFTEN = 1.5
_CHANGES_TO_TELL = 4


class HostWatch:
    """Watches the host records for what one host alone cannot do."""

    def __init__(self) -> None:
        self._last: dict[int, Leader] = {}
        self._changes: dict[int, int] = {}
        self._signs: dict[int, str] = {}  # the first of each

    def look(self, records: Sequence[tuple[int, Leader]]) -> None:
        """One look at the lockspace, as (host_id, record)."""
        for host_id, record in records:
            before = self._last.get(host_id)
            self._last[host_id] = record
            if before is None or record[:-3] == before[:-3]:  # the event fields are no renewal
                continue
            self._changes[host_id] = self._changes.get(host_id, 0) + 1
            text = _impossible(before, record)
            if text is not None:
                self._signs.setdefault(host_id, text)

    def signs(self, seconds: float) -> dict[int, list[str]]:
        """What was seen in so many seconds of watching, by host id."""
        found = {host_id: [text] for host_id, text in self._signs.items()}
        for host_id, changes in self._changes.items():
            cycle = id_renewal_seconds(sane_io_timeout(self._last[host_id].io_timeout, 10))
            if changes >= _CHANGES_TO_TELL and changes > _TOO_OFTEN * (seconds / cycle + 1):
                text = f"it changed {changes} times in {seconds:.0f} s, and one host renews every {cycle} s"
                found.setdefault(host_id, []).append(text)
        return found


def _impossible(before: Leader, after: Leader) -> Optional[str]:
    """Why these two states of a record, in this order, are not one host's."""
    if after.owner_generation < before.owner_generation:
        return f"its generation went back from {before.owner_generation} to {after.owner_generation}"
    if after.owner_generation > before.owner_generation or before.is_free or after.is_free:
        return None
    if after.resource != before.resource:
        return f"its host name changed from {before.resource} to {after.resource} within one generation"
    if after.timestamp < before.timestamp:
        return f"its timestamp went back from {before.timestamp} to {after.timestamp}: two clocks write it"
    return None


def duplicate_hosts(session: Session, seen: Status, watch: HostWatch, seconds: float) -> Iterator[Finding]:
    """Host ids and host names that more than one host uses."""
    for host_id, signs in watch.signs(seconds).items():
        host = next((host for host in seen.hosts if host.host_id == host_id), None)
        name = host.host_name if host is not None else "name unknown"
        yield _duplicate_id(host_id, f"host id {host_id} ({name}) is used by more than one host", signs)
    yield from _own_record(session, seen)
    yield from _duplicate_names(seen)


def _duplicate_id(host_id: int, text: str, evidence: Sequence[str]) -> Finding:
    return of_host(
        kinds.DUPLICATE_HOST_ID,
        CRITICAL,
        {"host_id": host_id},
        text,
        evidence=evidence,
        risk="to everybody else both are one host: each holds, and may start, whatever the other holds",
        command="vmlockctl remove-host",
        advice="on one of the two, and then add-host --host-id auto there; under sanlock: change its host_id",
    )


def _own_record(session: Session, seen: Status) -> Iterator[Finding]:
    """Our own record against what this host last wrote, or tried to."""
    membership = membership_of(session, seen)
    directory = session.directory_of(membership) if membership is not None else None
    before = directory.read_state() if directory is not None else None
    if membership is None or directory is None or before is None or before.state not in (LIVE, LOST, JOINING):
        return
    record = _read_own(seen, membership)
    after = directory.read_state() or before  # it may have been renewed between the looks
    if record is not None and all(_is_of_another(record, membership, state) for state in (before, after)):
        found = f"host {record.resource}, generation {record.owner_generation}, timestamp {record.timestamp}"
        evidence = [f"the record of host id {membership.host_id} says: {found}"]
        evidence.append(f"this host last wrote: host {membership.host_name}, generation {after.generation}")
        evidence += [f"the daemon says: {after.problem}"] if after.problem else []
        text = f"host id {membership.host_id} of this host is used by host {record.resource}, too"
        yield _duplicate_id(membership.host_id, text, evidence)
    elif after.state in (LOST, JOINING) and after.problem:
        yield of_host(
            kinds.HOST_LEASE_LOST,
            CRITICAL,
            {"host_id": membership.host_id},
            f"this host has lost its host lease (host id {membership.host_id})",
            evidence=[f"the daemon says: {after.problem}"],
            risk="no VM can be started here; those that ran were stopped",
            command="vmlockctl status",
            advice="the daemon joins again by itself when the cause is gone",
        )


def _read_own(seen: Status, membership: Membership) -> Optional[Leader]:
    """None for a record that is damaged, which the daemon tells as its problem."""
    with Driver(writable=False) as driver:
        try:
            return driver.run(read_record(seen.lockspace, membership.host_id, membership.io_timeout))
        except OnDiskError:
            return None


def _is_of_another(record: Leader, membership: Membership, state: HostState) -> bool:
    if record.is_free or record.to_bytes() in state.expected:
        return False
    return record.resource != membership.host_name or record.owner_generation != state.generation


def _duplicate_names(seen: Status) -> Iterator[Finding]:
    by_name: dict[str, list[Host]] = {}
    for host in seen.hosts:
        if host.state not in (FREE, DEAD):
            by_name.setdefault(host.host_name, []).append(host)
    for name, hosts in by_name.items():
        if len(hosts) > 1:
            yield of_host(
                kinds.DUPLICATE_HOST_NAME,
                WARNING,
                {"host_name": name},
                f"{len(hosts)} hosts have the name {name}",
                evidence=[*map(_about_host, hosts), f"observed by: {seen.observed_by}"],
                risk="a sanlock host trusts the name alone when it joins: it may take the other's id at once",
                command="vmlockctl remove-host",
                advice="on one of them, and then add-host --host-name NAME; under sanlock: our_host_name",
            )


def _about_host(host: Host) -> str:
    age = "" if host.age is None else f", last sign of life {format_seconds(host.age)} ago"
    return f"host id {host.host_id}: generation {host.generation}, {host.state}{age}"
