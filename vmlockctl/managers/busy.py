"""What to say when a disk is in use on this host."""

from __future__ import annotations

from vmlockctl.daemon.claims import Claim
from vmlockctl.errors import HeldLocally
from vmlockctl.host.openers import Opener
from vmlockctl.host.process import Process, boot_id, comm
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def held_by_claim(host_name: str, claim: Claim, disk: str, users: Sequence[Process]) -> HeldLocally:
    """Busy on this host: name the host, the process, and the VM where it is known."""
    pid = users[0].pid if users else 0
    who_has_it = f"process {pid} ({safe(comm(pid))})" if pid else "a process that is just ending"
    if claim.vm:
        who_has_it += f", VM {safe(claim.vm)!r},"
    other_name = f", as {safe(claim.disk)}" if claim.disk != disk else ""
    return HeldLocally(
        f"{safe(disk)} is in use {claim.mode} by {who_has_it} of this host {safe(host_name)!r} "
        f"(host id {claim.host_id}, generation {claim.generation}, live){other_name}",
        hint="stop that VM first; the lease is released when its process ends",
        details={
            "disk": disk,
            "owners": [
                {
                    "host_id": claim.host_id,
                    "host_name": host_name,
                    "generation": claim.generation,
                    "pid": pid,
                    "vm": claim.vm,
                    "uuid": claim.uuid,
                    "this_host": True,
                }
            ],
            "mode": claim.mode,
            "state": "live",
        },
    )


def open_without_lease(disk: str, opener: Opener) -> HeldLocally:
    return HeldLocally(
        f"{safe(disk)} is open for writing by process {opener.pid} ({safe(opener.comm)}) of this host, "
        "which holds no lease for it",
        hint="stop that process, or run 'vmlockctl acquire --pid "
        f"{opener.pid}' for it if the VM is to be protected as it runs",
        details={"disk": disk, "pid": opener.pid, "start_time": opener.start_time, "boot_id": boot_id()},
    )
