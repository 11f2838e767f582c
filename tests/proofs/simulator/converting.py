"""Looks that confirm what was written, and conversions: driven as in ``daemon/confirm.py``, ``embedded.py``.

The first are procedures here, which the shipped code runs one after the other on its driver: a write that the
storage acknowledged and lost is found before anything is built on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmlockctl.daemon.claims import CONVERTING, HELD
from vmlockctl.errors import LeaseLost, StorageError, VmlockctlError
from vmlockctl.lease import convert as conversion
from vmlockctl.lease.convert import to_exclusive, to_shared
from vmlockctl.lease.resource import Claimant, names_us, verify_held
from vmlockctl.lease.steps import Procedure

if TYPE_CHECKING:
    from tests.proofs.simulator.leasing import Claim, Command


def confirm_shared(claimant: Claimant, claim: Claim) -> Procedure[None]:
    marked = yield from _is_marked(claimant, claim)
    if not marked or (yield from _is_owned(claimant, claim)):
        raise _lost_write(claim)


def confirm_released(claimant: Claimant, claim: Claim) -> Procedure[None]:
    still = _is_marked if claim.shared else _is_owned
    if (yield from still(claimant, claim)):
        raise _lost_write(claim)


def _is_owned(claimant: Claimant, claim: Claim) -> Procedure[bool]:
    leader = yield from names_us(claimant, claim.lease)
    if leader is None or leader.write_id != claimant.host_id:
        return False
    return claim.lver in (0, leader.lver)


def _is_marked(claimant: Claimant, claim: Claim) -> Procedure[bool]:
    try:
        yield from verify_held(claimant, claim.lease, lver=claim.lver, shared=True)
    except LeaseLost:
        return False
    return True


def _lost_write(claim: Claim) -> StorageError:
    return StorageError(f"{claim.lease.path}: the storage lost a write that it had acknowledged")


def convert(command: Command, claim: Claim) -> Procedure[None]:
    """Exclusive to shared, or shared to exclusive, while the VM runs; what fails is settled by the daemon."""
    machine, task = command.machine, command.task
    assert task is not None and claim.hold is not None
    if claim.is_locked() or claim.state != HELD:
        return
    checker, counts = machine.world.checker, machine.world.counts
    try:
        state = machine.require_live()
        task.guard = machine.guard_of(state.generation)
        claimant = machine.claimant(state)
        claim.worker, claim.state = task, CONVERTING
        if claim.shared:
            claim.lver = yield from _to_exclusive(claimant, claim)
            claim.shared = False
            checker.strengthen(claim.number, claim.hold, lver=claim.lver)
        else:
            claim.shared = True
            checker.weaken(claim.number, claim.hold)
            yield from to_shared(claimant, claim.lease, lver=claim.lver)
            yield from confirm_shared(claimant, claim)
    except VmlockctlError as error:
        machine.world.refused(error)
        claim.unlock()
        if claim.state == CONVERTING:
            machine.settle(claim)
    else:
        counts["conversions"] += 1
        claim.state = HELD
        claim.unlock()


def _to_exclusive(claimant: Claimant, claim: Claim) -> Procedure[int]:
    try:
        held = yield from to_exclusive(claimant, claim.lease)
    except VmlockctlError as error:
        if not isinstance(error, StorageError):
            yield from back_to_shared(claimant, claim)
        raise
    return held.leader.lver


def back_to_shared(claimant: Claimant, claim: Claim) -> Procedure[None]:
    """A conversion was not finished: what is certain is that the lease is shared."""
    yield from conversion.back_to_shared(claimant, claim.lease)
    claim.state = HELD
