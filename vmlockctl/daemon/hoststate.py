"""This host's place in a lockspace, as the files of the run directory say it.

``host.json`` is written before and after each renewal, so that whoever comes next (a standby, a
restarted daemon, a command) knows the record that is on the disk or may be on its way there, and since
when (CLOCK_BOOTTIME). The daemon holds nothing that it cannot read back from here.
"""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.daemon.shapes import fits, fits_row, is_host_id, is_number, is_whole
from vmlockctl.errors import HostLeaseLost, NotJoined
from vmlockctl.host.process import boot_id
from vmlockctl.host.rundir import FileLock, make_directory, read_json, write_json
from vmlockctl.lease.delta import HostLease, Lockspace
from vmlockctl.lease.liveness import NEVER_OBSERVED, Observation
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.steps import Area
from vmlockctl.lease.timeouts import id_renewal_fail_seconds
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ondisk.leader import LEADER, Leader
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Optional

JOINING = "joining"
LIVE = "live"
LOST = "lost"
LEAVING = "leaving"  # nothing is granted any more; the record on the disk may or may not be free by now
LEFT = "left"

# The guarantee levels of the design: this daemon and its standby are the first.
LEVEL_DAEMON = 1
LEVEL = LEVEL_DAEMON


class Membership(NamedTuple):
    """What outlives a reboot: that this host belongs to a lockspace, and as whom."""

    path: str
    offset: int
    name: str
    host_id: int
    host_name: str
    io_timeout: int
    lease_dir: Optional[str] = None

    @property
    def target(self) -> str:
        """How a person names this lockspace again."""
        return self.lease_dir or f"{self.name}:0:{self.path}:{self.offset}"


class HostState(NamedTuple):
    """host.json."""

    membership: Membership
    state: str
    generation: int
    sector_size: int
    align_size: int
    record: str  # hex of the 200 bytes of the last record that is certainly on the disk
    attempts: tuple[str, ...]  # hex of later records whose writes have an unknown outcome
    renewed_at: float  # CLOCK_BOOTTIME at the *start* of the last good renewal
    boot_id: str
    problem: str = ""
    file: tuple[int, ...] = ()  # which file the last good renewal went to

    @property
    def lockspace(self) -> Lockspace:
        area = Area(self.membership.path, self.membership.offset, Geometry(self.sector_size, self.align_size))
        return Lockspace(area, self.membership.name, self.membership.io_timeout)

    @property
    def lease(self) -> HostLease:
        return HostLease(
            self.lockspace,
            self.membership.host_id,
            self.generation,
            self.membership.host_name,
            self.membership.io_timeout,
            Leader.from_bytes(bytes.fromhex(self.record)),
        )

    @property
    def expected(self) -> list[bytes]:
        """The records that may be on the disk if the host lease is still ours."""
        return [bytes.fromhex(record) for record in (self.record, *self.attempts) if record]

    @property
    def expires_at(self) -> float:
        return self.renewed_at + id_renewal_fail_seconds(self.membership.io_timeout)

    @property
    def is_this_boot(self) -> bool:
        return self.boot_id == boot_id()

    def is_certain(self, now_boottime: float) -> bool:
        """Whether our host lease certainly still is ours, as far as this host's records say."""
        return self.state == LIVE and self.is_this_boot and now_boottime < self.expires_at


class LockspaceDir:
    """The records of one lockspace in the run directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.claims_path = os.path.join(path, "claims")
        self._host_path = os.path.join(path, "host.json")
        self._hosts_path = os.path.join(path, "hosts.json")
        self._bits_path = os.path.join(path, "bits.json")
        self.host_lock_path = os.path.join(path, "host.lock")

    def create(self) -> LockspaceDir:
        make_directory(self.claims_path)
        return self

    def read_state(self) -> Optional[HostState]:
        """None where there is none, or where it is damaged: then nothing is certain of this host."""
        record = read_json(self._host_path)
        return None if record is None else _state_from(record)

    def write_state(self, state: HostState) -> None:
        write_json(self._host_path, _state_to(state))

    def read_observations(self) -> dict[int, Observation]:
        """What the daemon of this boot has seen of the others; empty where none has, or it is damaged."""
        record = read_json(self._hosts_path)
        if record is None or record.get("boot_id") != boot_id():
            return {}
        hosts = record.get("hosts")
        if not isinstance(hosts, dict) or not all(map(_is_observation, hosts.items())):
            return {}
        return {int(host_id): Observation(*row) for host_id, row in hosts.items()}

    def write_observations(self, rows: Mapping[int, Observation]) -> None:
        write_json(
            self._hosts_path, {"boot_id": boot_id(), "hosts": {str(k): list(v) for k, v in rows.items()}}
        )

    def set_bit(self, host_id: int, seconds: float) -> None:
        """Ask the daemon to set a host's bit in our renewals for so long; our own, to look itself (1.4)."""
        lock = FileLock(f"{self._bits_path}.lock")
        lock.acquire()
        try:
            until = {**self._bits(), host_id: clock.boottime() + seconds}
            write_json(
                self._bits_path, {"boot_id": boot_id(), "until": {str(k): v for k, v in until.items()}}
            )
        finally:
            lock.release()

    def bits(self) -> list[int]:
        """The host ids whose bit our next renewal is to set."""
        return sorted(self._bits())

    def _bits(self) -> dict[int, float]:
        record = read_json(self._bits_path)
        if record is None or record.get("boot_id") != boot_id():
            return {}
        bits, now = record.get("until"), clock.boottime()
        if not isinstance(bits, dict) or not all(is_host_id(k) and is_number(v) for k, v in bits.items()):
            return {}
        return {int(host_id): until for host_id, until in bits.items() if until > now}

    def require_live(self) -> HostState:
        """Our state, certain now. Raises ``NotJoined`` or ``HostLeaseLost``."""
        state = self.read_state()
        if state is None or state.state == LEFT:
            raise NotJoined("this host has not joined the lockspace")
        target = state.membership.target
        if state.state == LEAVING:
            raise NotJoined(f"{target}: this host is leaving the lockspace")
        if state.state == JOINING or not state.is_this_boot:
            raise NotJoined(
                f"{target}: this host has not joined the lockspace yet", hint="wait for 'status' to say live"
            )
        if not state.is_certain(clock.boottime()):
            raise HostLeaseLost(
                f"{target}: the host lease of host id {state.membership.host_id} generation "
                f"{state.generation} is lost{': ' + state.problem if state.problem else ''}",
                hint="nothing was written; the daemon joins again when the storage answers",
            )
        return state

    def claimant(self, state: HostState) -> Claimant:
        """Who we are for a procedure of ``lease.paxos``, with what was observed up to now."""
        return Claimant(
            state.lockspace,
            state.membership.host_id,
            state.generation,
            state.membership.io_timeout,
            self.read_observations(),
        )

    def guard(self, generation: int) -> None:
        """Raise unless our host lease is certain and still of this generation: before every write."""
        if self.require_live().generation != generation:
            raise HostLeaseLost("this host joined again meanwhile; nothing more was written")


def observation_of(rows: Mapping[int, Observation], host_id: int) -> Observation:
    return rows.get(host_id, NEVER_OBSERVED)


def _state_to(state: HostState) -> dict[str, Any]:
    """host.json: flat, with what a person looks for (``expires_at``) computed."""
    record = {"schema": 1, **membership_to(state.membership), **state._asdict()}
    del record["membership"]
    return {**record, "expires_at": state.expires_at}


def _state_from(record: dict[str, Any]) -> Optional[HostState]:
    record = {"file": [], **record}  # an earlier version did not write it
    membership = membership_from(record)
    if membership is None or not fits({**record, "membership": None}, HostState, apart_from=("membership",)):
        return None
    fields = {field: record[field] for field in HostState._fields if field != "membership"}
    fields["attempts"] = tuple(fields["attempts"])
    fields["file"] = tuple(fields["file"])
    state = HostState(membership=membership, **fields)
    if state.state not in (JOINING, LIVE, LOST, LEAVING, LEFT):
        return None
    if (state.sector_size, state.align_size) not in ALL_GEOMETRIES:
        return None
    return state if all(map(_is_record, filter(None, (state.record, *state.attempts)))) else None


def _is_record(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == LEADER.size
    except ValueError:
        return False


def _is_observation(item: tuple[str, object]) -> bool:
    """One row of hosts.json: a host id, and what was seen of it; its io_timeout may be out of range."""
    host_id, row = item
    if not is_host_id(host_id) or not fits_row(row, Observation, apart_from=("io_timeout",)):
        return False
    seen = Observation(*row)
    return is_whole(seen.io_timeout) and max(seen.first_check, seen.last_live) <= seen.last_check


def membership_to(membership: Membership) -> dict[str, Any]:
    return dict(membership._asdict())


def membership_from(record: Mapping[str, Any]) -> Optional[Membership]:
    """None for a record that is damaged."""
    if not fits(record, Membership):
        return None
    return Membership(*(record[field] for field in Membership._fields))
