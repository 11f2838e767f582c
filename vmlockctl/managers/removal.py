"""Removing the lease file of a disk that is gone, while its lease is held: so nobody else can hold it.

The order makes every crash recoverable, and every race harmless:

1. The lease is acquired exclusively, under a claim whose process is this command. Whoever holds it, anywhere,
   makes that fail. A command that dies from here on leaves a claim that the daemon settles: it releases the
   lease, or finds the file gone.
2. The file is unlinked, if the path still leads to the one in which the lease was won. Only its holder may
   remove it, so no other host puts another file there in between; who looks now makes a new one.
3. The removed file is cleared, for whoever has it open (``lease/removal.py``). A host of ours that won the
   lease there in the moment before finds out before it is granted (``embedded.py``).
"""

from __future__ import annotations

from vmlockctl.daemon.claims import HELD
from vmlockctl.errors import StorageRefused, VmlockctlError
from vmlockctl.lease.removal import void_removed
from vmlockctl.lease.timeouts import write_timeout_seconds
from vmlockctl.log import WARNING, log, who
from vmlockctl.managers.base import Terms, User, Want
from vmlockctl.managers.busy import held_by_claim
from vmlockctl.managers.embedded import EmbeddedManager


class LeaseRemover(EmbeddedManager):
    """An embedded lock manager that can also remove a lease."""

    def remove(self, want: Want, user: User) -> None:
        """Remove the lease file of ``want``; ``user`` is this command.

        Raises what an acquire raises, and then nothing was removed.
        """
        state = self._directory.require_live()
        self._generation = state.generation
        lock = self._locked(want.resource, want.disk)
        try:
            existing = self._current_claim(state, want.resource)
            if existing is not None:
                raise held_by_claim(self._checks.host_name(), existing, want.disk, existing.processes)
            claim = self._new_claim(state, want, user)
            self._store.write(claim)
            grant = self._acquire_claimed(state, claim, None, Terms())
            claimant = self._directory.claimant(state)
            try:
                self._driver.unlink(want.path, write_timeout_seconds(claimant.io_timeout))
            except StorageRefused:  # any other error leaves it to the daemon: the outcome is unknown
                self._release_claim(state, claim._replace(state=HELD, lver=grant.lver))
                raise
            log(f"unlink {want.path}: the disk {want.disk} is gone, by {who()}")
            try:
                self._driver.run(void_removed(claimant, claim.lease, lver=grant.lver))
            except VmlockctlError as error:
                log(f"{want.path}: removed, but not cleared: {error.message}", WARNING)
            self._store.remove(want.resource)
        finally:
            self._unlock(lock, want.resource)
            self._driver.close()
