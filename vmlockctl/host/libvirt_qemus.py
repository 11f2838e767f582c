"""QEMU processes that libvirt started, and whether it still knows them (libvirt-and-qemu.md section 7).

libvirt's record of a running domain is ``/run/libvirt/qemu/NAME.xml`` with its pid, or the same of a user's
own libvirtd below ``/run/user/UID``. Where it is gone libvirt lists the domain as shut off while its QEMU, a
child of init, runs on.
"""

from __future__ import annotations

import os

from vmlockctl.host.libvirt import RUNNING_DIR, read_domain
from vmlockctl.host.process import cmdline, read_proc
from vmlockctl.host.qemu import vm_name, vm_uuid
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class Forgotten(NamedTuple):
    """A QEMU of libvirt that libvirt does not list."""

    name: str
    uuid: str
    records: str  # where libvirt would have it
    parent: int


def forgotten_by_libvirt(pid: int) -> Optional[Forgotten]:
    """What libvirt no longer knows about a QEMU; None for one that it lists, or that it did not start."""
    argv = cmdline(pid)
    name, uuid = vm_name(argv), vm_uuid(argv)
    if not name or not uuid or not any(word.startswith("guest=") for word in argv):
        return None
    parent = _parent(pid)
    is_detached = parent == 1 and os.path.isdir(RUNNING_DIR)
    if not is_detached and not any("charmonitor" in word for word in argv):  # libvirt's own name
        return None
    directories = [RUNNING_DIR, f"/run/user/{_uid(pid)}/libvirt/qemu/run"]
    if any(_may_list(os.path.join(directory, f"{name}.xml"), pid) for directory in directories):
        return None
    return Forgotten(name, uuid, os.path.join(RUNNING_DIR, f"{name}.xml"), parent)


def _may_list(path: str, pid: int) -> bool:
    """Whether a status file names the process, or cannot be read and so may."""
    if not os.path.lexists(path):
        return False
    domain = read_domain(path)
    return domain is None or domain.pid == pid


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return os.getuid()


def _parent(pid: int) -> int:
    try:
        for line in read_proc(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"PPid:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
