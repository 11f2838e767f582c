"""The daemon's renewals, as ``daemon/renewal.py`` drives them: join, renew, observe, say when it is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmlockctl.daemon.hoststate import JOINING, LEFT, LIVE, LOST
from vmlockctl.daemon.renewal import joined_state
from vmlockctl.errors import HostLeaseLost, StorageError, VmlockctlError
from vmlockctl.host.process import boot_id
from vmlockctl.lease.delta import join, leave, occupied_records, renew
from vmlockctl.lease.liveness import NEVER_OBSERVED, observe
from vmlockctl.lease.steps import Procedure, Wait
from vmlockctl.lease.timeouts import id_renewal_seconds, renewal_retry_seconds

if TYPE_CHECKING:
    from tests.proofs.simulator.machine import Machine

REJOIN_RETRY_SECONDS = 5.0


def guard(machine: Machine) -> None:
    """Asked before every write of a renewal or a join."""
    state = machine.state
    machine.attempt_started = machine.boottime()
    machine.attempt_started_real = machine.world.clockwork.now
    if state is not None and state.state == LIVE and not state.is_certain(machine.attempt_started):
        raise HostLeaseLost("the host lease expired before it could be renewed")
    if state is not None and state.state == LOST:
        raise StorageError("the host lease is lost")


def journal(machine: Machine, record: bytes) -> None:
    state = machine.state
    assert state is not None
    machine.state = state._replace(attempts=(*state.attempts, record.hex()))


def renewing(machine: Machine) -> Procedure[None]:
    """One life of a host lease after the other."""
    while True:
        state = machine.state
        if state is None or state.state == LEFT:
            yield from _join_until_joined(machine)
        elif state.state != LOST and not state.is_certain(machine.boottime()):
            machine.lose("no renewal in time before this daemon started")
        if machine.is_lost:
            while not machine.all_gone:
                yield Wait(float("inf"), "every process of the lost host lease")
            machine.earlier_instance_gone = True
            yield from _join_until_joined(machine)
        machine.on_live()
        yield from _renew_until_lost(machine)


def _join_until_joined(machine: Machine) -> Procedure[None]:
    while True:
        try:
            yield from _join(machine)
            return
        except VmlockctlError as error:
            machine.world.refused(error)
        yield Wait(REJOIN_RETRY_SECONDS, "joining again")


def _join(machine: Machine) -> Procedure[None]:
    member, lockspace, before = machine.membership, machine.world.lockspace, machine.state
    geometry = lockspace.area.geometry
    state_of = machine.world.state_of
    generation = before.generation if before else 0
    machine.state = state_of(member, JOINING, generation, *geometry, "", (), 0.0, boot_id())
    lease = yield from join(
        lockspace,
        host_id=member.host_id,
        host_name=member.host_name,
        io_timeout=member.io_timeout,
        earlier_instance_gone=machine.earlier_instance_gone,
    )
    machine.state = state_of(
        *joined_state(member, lease.record.to_bytes(), lease.generation, geometry, machine.attempt_started)
    )
    machine.earlier_instance_gone = False
    machine.world.counts["joins"] += 1
    machine.pet(machine.attempt_started_real)
    machine.world.clockwork.note(machine, f"joined, generation {lease.generation}")
    if machine.supervisor is not None:
        machine.world.clockwork.wake(machine.supervisor)


def _renew_until_lost(machine: Machine) -> Procedure[None]:
    delay = 0.0
    while True:
        yield Wait(delay, "the next renewal")
        state = machine.state
        if state is None or state.state != LIVE:
            return
        if not state.is_certain(machine.boottime()):
            machine.lose(state.problem or "no good renewal in time")
            return
        started, started_real = machine.boottime(), machine.world.clockwork.now
        try:
            lease, image = yield from renew(state.lease, expected=state.expected)
        except HostLeaseLost as error:
            machine.lose(error.message, kill_at_once=True)
            return
        except VmlockctlError as error:
            machine.world.refused(error)
            delay = renewal_retry_seconds()
            continue
        state = machine.state
        if state is None or state.state != LIVE:
            return  # lost while the write was on its way: it counts for nothing
        record = lease.record.to_bytes().hex()
        machine.state = state._replace(record=record, attempts=(), renewed_at=started, problem="")
        machine.world.counts["renewals"] += 1
        machine.pet(started_real)
        _observe(machine, image)
        machine.verify_all()
        delay = max(0.0, started + id_renewal_seconds(machine.io_timeout) - machine.boottime())


def _observe(machine: Machine, image: bytes) -> None:
    now = machine.monotonic()
    rows = dict(machine.rows)
    for host_id, record in occupied_records(machine.world.lockspace.area, image):
        rows[host_id] = observe(rows.get(host_id, NEVER_OBSERVED), record, now)
    machine.rows = rows


def leaving(machine: Machine) -> Procedure[None]:
    """``remove-host``, or the end of the daemon: only when nothing is held."""
    state = machine.state
    assert state is not None
    try:
        yield from leave(state.lease, expected=state.expected)
    except VmlockctlError as error:
        machine.world.refused(error)
        machine.state = state._replace(state=LOST)
    else:
        machine.state = state._replace(state=LEFT)
        machine.watchdog_at = float("inf")
        machine.world.counts["leaves"] += 1
