"""Look once more before saying that a lease is shared or released: a write may be acknowledged and lost.

An exclusive acquire reads its leader again before it is granted, and a renewal finds out what became of its
record. A shared mark and a release are single writes: lost, the first would be a grant that no other host
sees, and the second a lease that nobody has and nobody can take. Two reads, and never a write.
"""

from __future__ import annotations

from vmlockctl.daemon.claims import Claim
from vmlockctl.errors import LeaseLost, StorageError
from vmlockctl.lease.resource import Claimant, names_us, verify_held
from vmlockctl.storage.driver import Driver


def confirm_shared(driver: Driver, claimant: Claimant, claim: Claim) -> None:
    """Raise ``StorageError`` unless our shared mark is there, and the leader is not ours any more."""
    if not _is_marked(driver, claimant, claim) or _is_owned(driver, claimant, claim):
        raise _lost_write(claim)


def confirm_released(driver: Driver, claimant: Claimant, claim: Claim) -> None:
    """Raise ``StorageError`` if what was released is ours still; a claim without lver stands for any."""
    still = _is_marked if claim.is_shared else _is_owned
    if still(driver, claimant, claim):
        raise _lost_write(claim)


def _is_owned(driver: Driver, claimant: Claimant, claim: Claim) -> bool:
    """As we wrote it: one that another host committed for us is void by the mark in our dblock."""
    leader = driver.run(names_us(claimant, claim.lease))
    if leader is None or leader.write_id != claimant.host_id:
        return False
    return claim.lver in (0, leader.lver)


def _is_marked(driver: Driver, claimant: Claimant, claim: Claim) -> bool:
    try:
        driver.run(verify_held(claimant, claim.lease, lver=claim.lver, shared=True))
    except LeaseLost:
        return False
    return True


def _lost_write(claim: Claim) -> StorageError:
    return StorageError(f"{claim.path}:{claim.offset}: the storage lost a write that it had acknowledged")
