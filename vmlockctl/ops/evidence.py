"""What proves that the owner of a lease is gone: the evidence, and the judgement that rests on it.

The judgement is the protocol's own (``lease/paxos.py``, ``_wait_for_owner`` and ``_settle_shared_holders``),
made beforehand so that it can be shown, waited for and refused in words. It decides nothing: whatever is said
here, the acquire that takes over judges again, from the same table and the same records.
"""

from __future__ import annotations

from vmlockctl import clock
from vmlockctl.errors import UsageError
from vmlockctl.lease.delta import read_record
from vmlockctl.lease.liveness import (
    LIVE,
    NEVER_OBSERVED,
    UNKNOWN,
    Instance,
    gone_after_seconds,
    host_state,
    observe,
    shared_holder_is_alive,
)
from vmlockctl.lease.timeouts import id_renewal_seconds, sane_io_timeout
from vmlockctl.ops.status import SHARED, Lease
from vmlockctl.records import NamedTuple
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

    from vmlockctl.lease.resource import Claimant
    from vmlockctl.ondisk.leader import Leader
    from vmlockctl.storage.driver import Driver


_MAX_DIGITS = 20  # of a generation, which has 64 bits


class Vouch(NamedTuple):
    """What a person says is dead: a host by its id or its name, and which life of it."""

    host: str
    generation: int

    def __str__(self) -> str:
        return f"{safe(self.host)}:{self.generation}"

    def means(self, owner: Instance, host_name: str) -> bool:
        host = str(owner.host_id) if self.host.isdecimal() else host_name
        return (self.host, self.generation) == (host, owner.generation)


def parse_vouch(text: str) -> Vouch:
    """``HOST:GENERATION``. Raises ``UsageError``."""
    host, _, generation = text.rpartition(":")
    is_number = generation.isascii() and generation.isdecimal() and len(generation) <= _MAX_DIGITS
    if not host or not is_number or int(generation) == 0:
        raise UsageError(
            f"--i-know {safe(text)!r}: not an instance of a host, expected HOST:GENERATION",
            hint="'vmlockctl status' shows host ids, names and generations",
        )
    return Vouch(host, int(generation))


# -- judging -----------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """Whether an owner is gone. ``proof`` "": not proven. ``takeover_in`` None: waiting never proves it."""

    state: str
    proof: str
    silent_seconds: float
    threshold_seconds: int
    takeover_in: Optional[float]


def judge(
    claimant: Claimant, owner: Instance, record: Leader, now: float, *, shared: bool, vouched: bool
) -> Judgement:
    """Judge an owner by what this host's daemon saw of it up to now, and its record as it is at ``now``."""
    row = claimant.observations.get(owner.host_id, NEVER_OBSERVED)
    seen = observe(row, record, now)
    ours = owner.host_id == claimant.host_id
    io_timeout = sane_io_timeout(record.io_timeout, claimant.io_timeout)
    silent = (min(now, row.last_check) if shared else now) - seen.last_change
    vouched = vouched and silent <= gone_after_seconds(io_timeout)  # else nobody's word is needed
    threshold = gone_after_seconds(io_timeout, vouched=vouched)
    state = host_state(seen, now, own_io_timeout=claimant.io_timeout, is_ours=ours)
    found = Judgement(state, "", max(0.0, now - seen.last_change), threshold, None)
    if owner == (claimant.host_id, claimant.generation):
        return found
    if record.owner_generation < owner.generation and (shared or not record.is_free):
        return found._replace(state=UNKNOWN)  # a lockspace that was formatted anew under the lease
    gone = _moved_on(owner, record)
    if gone:
        if shared and not ours and _respected(claimant, owner, now, vouched=vouched):
            # Shared holders are judged by the table alone, and the next renewal brings it up to date.
            return found._replace(takeover_in=float(id_renewal_seconds(claimant.io_timeout)))
        return found._replace(proof=gone, takeover_in=0.0)
    if state == LIVE:
        return found
    if silent > threshold and row[:2] == owner and row.last_check > row.last_live:
        return found._replace(proof=_silence(silent, io_timeout, vouched=vouched), takeover_in=0.0)
    return found._replace(takeover_in=max(1.0, threshold - silent))


def _respected(claimant: Claimant, owner: Instance, now: float, *, vouched: bool) -> bool:
    row = claimant.observations.get(owner.host_id, NEVER_OBSERVED)
    return shared_holder_is_alive(
        row, owner.generation, now, own_io_timeout=claimant.io_timeout, vouched=vouched
    )


def _moved_on(owner: Instance, record: Leader) -> str:
    if record.is_free:
        return f"host id {owner.host_id} is free: whoever had it has left"
    if record.owner_id != owner.host_id or record.owner_generation > owner.generation:
        return (
            f"host id {owner.host_id} is at generation {record.owner_generation} now: "
            f"its generation {owner.generation} is over"
        )
    return ""


def _silence(silent: float, io_timeout: int, *, vouched: bool) -> str:
    limit = gone_after_seconds(io_timeout, vouched=vouched)
    if vouched:
        return (
            f"silent for {format_seconds(silent)}, longer than {limit} s (8 x its io_timeout {io_timeout} s),"
            " and a person vouches that it is dead"
        )
    return (
        f"dead: silent for {format_seconds(silent)}, longer than {limit} s (8 x its io_timeout "
        f"{io_timeout} s + 60 s)"
    )


# -- the evidence ------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """One owner of one lease, and what is known of its life."""

    resource: str
    path: str
    offset: int
    disk: str
    mode: str
    lver: Optional[int]
    owner: dict[str, Any]  # as in ``status --json``
    last_change_at: Optional[str]  # of its host's record, as observed; None for this host
    observed_by: str
    threshold_seconds: int
    vouched: bool
    proof: str  # "" where it is not proven to be gone
    takeover_in: Optional[float]

    @property
    def instance(self) -> Instance:
        return Instance(self.owner["host_id"], self.owner["generation"])


def gather(
    driver: Driver, claimant: Claimant, leases: Sequence[Lease], observer: str, vouch: Optional[Vouch]
) -> list[Evidence]:
    """The evidence on every owner of these leases. Raises ``OnDiskError`` and ``StorageError`` leaves."""
    # Whole seconds, as the protocol judges: what is proven here can be taken now.
    now = float(clock.monotonic_seconds())
    found = []
    for lease in leases:
        for owner in lease.owners:
            record = driver.run(read_record(claimant.lockspace, owner["host_id"], claimant.io_timeout))
            found.append(_evidence(claimant, lease, owner, record, now, observer, vouch))
    return found


def _evidence(
    claimant: Claimant,
    lease: Lease,
    owner: dict[str, Any],
    record: Leader,
    now: float,
    observer: str,
    vouch: Optional[Vouch],
) -> Evidence:
    instance = Instance(owner["host_id"], owner["generation"])
    # Of a host id that has moved on only the owner note knows the name; its word proves nothing there.
    name = record.resource if record.owner_generation == instance.generation else owner["host_name"] or ""
    vouched = vouch is not None and vouch.means(instance, name)
    judged = judge(claimant, instance, record, now, shared=lease.mode == SHARED, vouched=vouched)
    ours = instance.host_id == claimant.host_id
    described = {
        **{key: value for key, value in owner.items() if key != "dead_in"},
        "host_name": name or None,
        "state": judged.state,
        "io_timeout": sane_io_timeout(record.io_timeout, claimant.io_timeout),
        "age": None if ours else round(judged.silent_seconds, 1),
        "host_generation": record.owner_generation,
        "takeover_in": judged.takeover_in,
    }
    return Evidence(
        lease.resource,
        lease.path,
        lease.offset,
        lease.disk or lease.resource,
        lease.mode,
        lease.lver,
        described,
        None if ours else clock.rfc3339(clock.wall() - clock.monotonic() + now - judged.silent_seconds),
        observer,
        judged.threshold_seconds,
        vouched,
        judged.proof,
        judged.takeover_in,
    )
