"""The QEMU processes of this machine, and the disks that their command lines name."""

from __future__ import annotations

import os

from vmlockctl.errors import UsageError
from vmlockctl.host.process import cmdline
from vmlockctl.host.qemu import QemuDisk, find_disks, is_qemu, vm_name, vm_uuid
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class RunningQemu(NamedTuple):
    pid: int
    name: str  # of the guest; "" where it has none
    disks: list[QemuDisk]  # with absolute paths
    uuid: str = ""


def running_qemus() -> Iterator[RunningQemu]:
    """Every QEMU of this machine whose command line we may read, by pid."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        argv = cmdline(pid)
        if not argv or not is_qemu(argv[0]):
            continue
        try:
            directory = os.readlink(f"/proc/{pid}/cwd")
            disks = [disk._replace(path=os.path.join(directory, disk.path)) for disk in find_disks(argv)]
        except (OSError, UsageError):
            continue  # gone meanwhile, or not ours to look at
        yield RunningQemu(pid, vm_name(argv) or "", disks, vm_uuid(argv) or "")
