"""Whatever a person has in hand, as the disks that it means: any path, a lease file, a VM, a process.

The order resolves doubt as an operator would: a process id that runs a VM or holds a lease, a file that is
there, the name of a VM, and last a path that is not there: its lease may be all that is left of it.
"""

from __future__ import annotations

import os

from vmlockctl.daemon.claims import Claim
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.process import cmdline, working_directory
from vmlockctl.host.qemu import find_disks, is_qemu, vm_name
from vmlockctl.host.qemus import RunningQemu, running_qemus
from vmlockctl.specs import LIBVIRT_LOCKSPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Optional

_DIGEST_LEN = 32


def disks_meant(
    text: str,
    claims: Sequence[Claim],
    domains: Sequence[Domain],
    disk_of_lease: Callable[[str], Optional[str]],
) -> list[str]:
    """The absolute paths of the disks; empty where ``text`` names none.

    ``disk_of_lease``: the disk of a lease file, by any source that knows it.
    """
    if text.isdecimal():
        disks = _disks_of_process(int(text), claims)
        if disks:
            return disks
    path = os.path.join(os.getcwd(), text)
    name = os.path.basename(path)
    if _is_digest(name) and os.path.exists(os.path.join(os.path.dirname(path), LIBVIRT_LOCKSPACE)):
        return [disk_of_lease(path) or path]
    if os.path.lexists(path):
        return [os.path.normpath(path) if not text.startswith("/") else path]
    named = _disks_of_vm(text, claims, domains)
    if named:
        return named
    return [path] if "/" in text else []


def _is_digest(name: str) -> bool:
    return len(name) == _DIGEST_LEN and all(c in "0123456789abcdef" for c in name)


def _disks_of_process(pid: int, claims: Iterable[Claim]) -> list[str]:
    claimed = [claim.disk for claim in claims if any(process.pid == pid for process in claim.processes)]
    argv = cmdline(pid)
    if argv and is_qemu(argv[0]):
        directory = working_directory(pid)
        claimed += [os.path.join(directory, disk.path) for disk in find_disks(argv)]
    return list(dict.fromkeys(claimed))


def _disks_of_vm(name: str, claims: Iterable[Claim], domains: Iterable[Domain]) -> list[str]:
    found = [disk.path for domain in domains if name in (domain.name, domain.uuid) for disk in domain.disks]
    found += [claim.disk for claim in claims if name and name in (claim.vm, claim.uuid)]
    if not found:
        found = [disk.path for qemu in running_qemus() if qemu.name == name for disk in qemu.disks]
    return list(dict.fromkeys(found))


def qemu_of(pid: int) -> Optional[RunningQemu]:
    """What the command line of a QEMU says of its guest and its disks; None for another program."""
    argv = cmdline(pid)
    if not argv or not is_qemu(argv[0]):
        return None
    directory = working_directory(pid)
    disks = [disk._replace(path=os.path.join(directory, disk.path)) for disk in find_disks(argv)]
    return RunningQemu(pid, vm_name(argv) or "", disks)
