"""Locks that none of a disk's openers holds: virtlockd's files, other clients, and leftovers."""

from __future__ import annotations

import os

from vmlockctl.host.filesystems import filesystem_of
from vmlockctl.host.imagelocks import (
    ByteLock,
    byte_ranges,
    describe_use,
    foreign_bytes,
    image_use,
    interesting_bytes,
    kernel_locks,
)
from vmlockctl.host.libvirt import Domain, lockd_directory
from vmlockctl.host.process import comm
from vmlockctl.ops.explain_disk import Disk
from vmlockctl.ops.explanation import LOCKD, QEMU, Holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

VIRTLOCKD = "virtlockd"


def lockd_mode(locks: Sequence[ByteLock]) -> str:
    return "exclusive" if any(lock.mode == "WRITE" for lock in locks) else "shared"


def vms_with(domains: Sequence[Domain], disk: Disk) -> str:
    """The running domains that have the disk; virtlockd itself does not say for which it holds a lock."""
    return ", ".join(domain.name for domain in domains if domain.is_running and disk.is_disk_of(domain))


def locks_of_nobody(
    disk: Disk,
    accounted: Sequence[ByteLock],
    unseen: list[str],
    *,
    hidden: bool,
    table: Optional[bytes] = None,
) -> list[Holder]:
    """Locks that the kernel, or the file's server, knows and no process that we see holds.

    ``table``: /proc/locks of a moment before the processes were looked at. A lock that is there belongs to
    nobody only if it is still there.
    """
    path = disk.path
    try:
        here = _left_over(path, accounted, table)
        if here and table is not None:
            here = _left_over(path, accounted, None)
        elsewhere = foreign_bytes(path, interesting_bytes())
    except OSError as error:
        unseen.append(f"the locks of {path}: {error.strerror}")
        return []
    left = [b for b in elsewhere if not any(lock.covers(b) for lock in (*accounted, *here))]
    locks = here + [ByteLock("REMOTE", "READ", byte, byte) for byte in left]
    if not locks:
        return []
    use = image_use(locks)
    filesystem = filesystem_of(path)
    if hidden and here:
        whose = "a process that this user may not look into"
    else:
        whose = "no process of this machine: another client of the file's server, or a lock never let go"
    what = describe_use(use) if use else "holds a lock that is not QEMU's"
    text = f"{whose}: it {what}"
    if filesystem is not None:
        text += f" (on {filesystem.type}, {filesystem.source} at {filesystem.point})"
    mode = "write" if use.writes else "read"
    return [
        Holder(
            QEMU,
            mode,
            text,
            blocks=not use or use.writes or use.forbids_writers,
            bytes=byte_ranges(locks),
            filesystem=filesystem.type if filesystem else "",
            server=filesystem.server if filesystem else "",
        )
    ]


def _left_over(path: str, accounted: Sequence[ByteLock], table: Optional[bytes]) -> list[ByteLock]:
    locks = kernel_locks(path, table=table)
    return [lock for lock, _pid in locks if lock.kind != "FLOCK" and lock not in accounted]


def lockd_file(disk: Disk, domains: Sequence[Domain]) -> list[Holder]:
    """The file of virtlockd for the disk, where it keeps them so: named by the SHA-256 of the disk's path."""
    directory = lockd_directory()
    if directory is None:
        return []
    named = {each.path for domain in domains for each in domain.disks if disk.is_at(each.path)}
    found = []
    for name in dict.fromkeys((*disk.names, *sorted(named))):
        file = os.path.join(directory, lockd_name(name))
        try:
            locks = [(lock, pid) for lock, pid in kernel_locks(file) if lock.kind == "POSIX"]
        except OSError:
            continue
        vms = vms_with(domains, disk)
        for lock, pid in locks:
            found.append(
                Holder(
                    LOCKD,
                    lockd_mode([lock]),
                    f"virtlockd (process {pid}) holds {file} for VM {vms or 'unknown'}",
                    pid=pid,
                    process=comm(pid) or VIRTLOCKD,
                    vm=vms,
                    bytes=byte_ranges([lock]),
                )
            )
    return found


def lockd_name(path: str) -> str:
    """The name of virtlockd's file for a disk."""
    import hashlib

    return hashlib.sha256(os.fsencode(path)).hexdigest()
