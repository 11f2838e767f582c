"""Whatever a person has in hand, as the disks that it means: any path, a lease file, a VM, a process.

The order resolves doubt as an operator would: a process id that runs a VM or holds a lease, a file that is
there, the name of a VM, and last a path that is not there: its lease may be all that is left of it.
"""

from __future__ import annotations

import os

from vmlockctl.daemon.claims import Claim
from vmlockctl.errors import UsageError
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.process import cmdline, working_directory
from vmlockctl.host.qemu import find_disks, is_qemu, vm_name, vm_uuid
from vmlockctl.host.qemus import RunningQemu, running_qemus
from vmlockctl.ops.explain_disk import is_lease_file
from vmlockctl.ops.explain_locks import lockd_name
from vmlockctl.storage.patience import is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Optional

_LOCKD_NAME_LEN = 64


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
        disks = _disks_of_process(int(text), claims, domains)
        if disks:
            return disks
    path = os.path.join(os.getcwd(), text)
    name = os.path.basename(path)
    if is_lease_file(path):
        return [disk_of_lease(path) or path]
    if is_there(path):
        return [os.path.normpath(path) if not text.startswith("/") else path]
    named = _disks_of_vm(text, claims, domains) or _disks_of_lockd(name, domains)
    if named:
        return named
    return [path] if "/" in text else []


def _disks_of_lockd(name: str, domains: Iterable[Domain]) -> list[str]:
    """The disks for which virtlockd keeps a file of this name; its errors say no more than the name."""
    if len(name) != _LOCKD_NAME_LEN:
        return []
    paths = [disk.path for domain in domains for disk in domain.disks]
    return [path for path in dict.fromkeys(paths) if lockd_name(path) == name]


def _disks_of_process(pid: int, claims: Iterable[Claim], domains: Iterable[Domain]) -> list[str]:
    claimed = [claim.disk for claim in claims if any(process.pid == pid for process in claim.processes)]
    claimed += [disk.path for domain in domains if domain.pid == pid for disk in domain.disks]
    qemu = qemu_of(pid)
    if qemu is not None:
        claimed += [disk.path for disk in qemu.disks]
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
    try:
        disks = [disk._replace(path=os.path.join(directory, disk.path)) for disk in find_disks(argv)]
    except UsageError:  # more than we understand: its open files tell
        disks = []
    return RunningQemu(pid, vm_name(argv) or "", disks, vm_uuid(argv) or "")
