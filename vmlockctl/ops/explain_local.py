"""Who has a disk on this machine: byte locks, openers, what the kernel holds, and locks of nobody here."""

from __future__ import annotations

import os

from vmlockctl import clock
from vmlockctl.daemon.claims import Claim
from vmlockctl.host.blockusers import BlockUse, block_users
from vmlockctl.host.imagelocks import (
    VIRTLOCKD_BYTE,
    ByteLock,
    byte_ranges,
    describe_use,
    foreign_bytes,
    image_use,
    interesting_bytes,
    kernel_locks,
    locks_of_process,
)
from vmlockctl.host.libvirt import Domain, lockd_directory
from vmlockctl.host.openers import Identity, Opener, find_openers, has_writer
from vmlockctl.host.process import started_at
from vmlockctl.ops.explain_target import qemu_of
from vmlockctl.ops.explanation import LOCKD, OPEN, QEMU, Holder
from vmlockctl.records import NamedTuple
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class LocalUse(NamedTuple):
    holders: list[Holder]
    unseen: list[str]


def local_use(path: str, identity: Identity, claims: Sequence[Claim], domains: Sequence[Domain]) -> LocalUse:
    """Every use of the disk that this machine can show, and what it cannot."""
    found = find_openers([identity], skip={os.getpid()})
    openers = found.openers.get(identity, [])
    unseen = []
    hidden = bool(found.unreadable) and not (os.geteuid() == 0 and has_writer(path) is False)
    if hidden:
        count = f"{found.unreadable} process{'es' if found.unreadable > 1 else ''} that we may not look into"
        unseen.append(count if os.geteuid() == 0 else f"{count}: run as root")
    holders: list[Holder] = []
    accounted: list[ByteLock] = []
    for opener in openers:
        try:
            locks = locks_of_process(opener.pid, identity)
        except PermissionError:
            locks = []
        accounted += locks
        holders.append(_opener(path, opener, locks, claims, domains))
    holders += [_kernel_user(use) for use in block_users(identity)]
    holders += _locks_of_nobody(path, accounted, unseen, hidden=hidden)
    holders += _lockd_file(path, domains)
    return LocalUse(holders, unseen)


def _opener(
    path: str, opener: Opener, locks: Sequence[ByteLock], claims: Sequence[Claim], domains: Sequence[Domain]
) -> Holder:
    use = image_use(locks)
    qemu = qemu_of(opener.pid)
    domain = next((d for d in domains if d.pid == opener.pid), None)
    claim = next((c for c in claims if any(p.pid == opener.pid for p in c.processes)), None)
    vm = (domain.name if domain else "") or (qemu.name if qemu else "") or (claim.vm if claim else "")
    since = started_at(opener.start_time)
    who = f"process {opener.pid} ({opener.comm})" + (f", VM {vm!r}," if vm else "")
    as_backing = qemu is not None and not _names(qemu.disks, path)
    role = " as an image below one of its disks" if as_backing else ""
    about: dict[str, Any] = {
        "pid": opener.pid,
        "process": opener.comm,
        "since": since,
        "bytes": byte_ranges(locks),
    }
    ago = f"since {format_seconds(clock.wall() - since)}"
    if use:
        text = f"{who} {describe_use(use)}{role}, {ago}"
        blocks = use.writes or use.forbids_writers
        uuid = domain.uuid if domain else ""
        mode = "write" if use.writes else "read"
        return Holder(QEMU, mode, text, blocks=blocks, vm=vm, uuid=uuid, **about)
    by_lockd = [lock for lock in locks if lock.kind == "POSIX" and lock.covers(VIRTLOCKD_BYTE)]
    if by_lockd:
        vms = _vms(domains, path)
        text = f"virtlockd (process {opener.pid}) holds the image for VM {vms}"
        return Holder(LOCKD, _lockd_mode(by_lockd), text, vm=vms, **about)
    does = "has it open for writing" if opener.writable else "has it open for reading"
    text = f"{who} {does}, without a lock{role}, {ago}"
    mode = "write" if opener.writable else "read"
    return Holder(OPEN, mode, text, blocks=opener.writable, vm=vm, **about)


def _lockd_mode(locks: Sequence[ByteLock]) -> str:
    return "exclusive" if any(lock.mode == "WRITE" for lock in locks) else "shared"


def _names(disks: Sequence[object], path: str) -> bool:
    wanted = os.path.realpath(path)
    return any(os.path.realpath(str(getattr(disk, "path", ""))) == wanted for disk in disks)


def _kernel_user(use: BlockUse) -> Holder:
    how = "for writing" if use.writable else "read-only"
    where = ""
    if use.namespace_pid:
        where = f" in the mount namespace of process {use.namespace_pid} ({use.namespace_comm})"
    if use.kind == "mount":
        text = f"it is mounted {how} at {use.name}{where}"
    elif use.kind == "loop":
        text = f"the loop device {use.name} is on it, {how}"
    else:
        text = f"the device {use.name} is on it, {how}"
    mode = "write" if use.writable else "read"
    return Holder(OPEN, mode, text, blocks=use.writable, process=use.name)


def _locks_of_nobody(
    path: str, accounted: Sequence[ByteLock], unseen: list[str], *, hidden: bool
) -> list[Holder]:
    """Locks that the kernel, or the file's server, knows and no process that we see holds."""
    try:
        here = [lock for lock, _pid in kernel_locks(path) if lock.kind != "FLOCK" and lock not in accounted]
        elsewhere = foreign_bytes(path, interesting_bytes())
    except OSError as error:
        unseen.append(f"the locks of {path}: {error.strerror}")
        return []
    left = [b for b in elsewhere if not any(lock.covers(b) for lock in (*accounted, *here))]
    locks = here + [ByteLock("REMOTE", "READ", byte, byte) for byte in left]
    if not locks:
        return []
    use = image_use(locks)
    whose = "a process that this user may not look into"
    if not (hidden and here):
        whose = "nobody on this machine: another client of the file's server, or a lock that was never let go"
    what = describe_use(use) if use else "holds a lock that is not QEMU's"
    mode = "write" if use.writes else "read"
    return [Holder(QEMU, mode, f"{whose}: it {what}", bytes=byte_ranges(locks))]


def _lockd_file(path: str, domains: Sequence[Domain]) -> list[Holder]:
    """The file of virtlockd for the disk, named by the SHA-256 of its path, where it keeps them so."""
    directory = lockd_directory()
    if directory is None:
        return []
    import hashlib

    file = os.path.join(directory, hashlib.sha256(os.fsencode(path)).hexdigest())
    try:
        locks = [(lock, pid) for lock, pid in kernel_locks(file) if lock.kind == "POSIX"]
    except OSError:
        return []
    vms = _vms(domains, path)
    return [
        Holder(
            LOCKD,
            _lockd_mode([lock]),
            f"virtlockd (process {pid}) holds {file} for VM {vms}",
            pid=pid,
            process="virtlockd",
            vm=vms,
            bytes=byte_ranges([lock]),
        )
        for lock, pid in locks
    ]


def _vms(domains: Sequence[Domain], path: str) -> str:
    return ", ".join(d.name for d in domains if d.is_running and _names(d.disks, path)) or "unknown"
