"""Who has a disk on this machine: processes with it open, with their byte locks, and what the kernel holds.

``explain_locks`` has the locks that belong to no such process.
"""

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
    image_use,
    locks_of_process,
)
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.libvirt_qemus import Forgotten, forgotten_by_libvirt
from vmlockctl.host.openers import Identity, Opener, find_openers, has_writer
from vmlockctl.host.process import cmdline, started_at
from vmlockctl.host.qemus import RunningQemu
from vmlockctl.ops.explain_disk import Disk
from vmlockctl.ops.explain_locks import VIRTLOCKD, lockd_file, lockd_mode, locks_of_nobody, vms_with
from vmlockctl.ops.explain_search import Begun
from vmlockctl.ops.explain_target import qemu_of
from vmlockctl.ops.explanation import LOCKD, OPEN, QEMU, Holder
from vmlockctl.records import NamedTuple
from vmlockctl.text import format_seconds, shell_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

_MAX_COMMAND = 70  # characters of a command line that are shown of a program which is no QEMU


class LocalUse(NamedTuple):
    holders: list[Holder]
    unseen: list[str]
    forgotten: dict[str, int]  # uuid of a domain to the process of it that libvirt does not know to run


class User(NamedTuple):
    """A process with the disk open, and all that is known of it."""

    opener: Opener
    argv: list[str]
    locks: list[ByteLock]
    qemu: Optional[RunningQemu]
    domain: Optional[Domain]
    forgotten: Optional[Forgotten]
    claim: Optional[Claim]

    @property
    def waits_for_migration(self) -> bool:
        """Whether it may be about to take the disk over: it takes its locks when the migration ends."""
        return self.qemu is not None and any(word in ("-incoming", "--incoming") for word in self.argv)

    @property
    def vm(self) -> str:
        names = (self.domain and self.domain.name, self.qemu and self.qemu.name, self.claim and self.claim.vm)
        return next(filter(None, names), "")

    @property
    def uuid(self) -> str:
        uuids = (
            self.domain and self.domain.uuid,
            self.qemu and self.qemu.uuid,
            self.claim and self.claim.uuid,
        )
        return next(filter(None, uuids), "")


def local_use(
    disk: Disk,
    identity: Identity,
    claims: Sequence[Claim],
    domains: Sequence[Domain],
    begun: Optional[Begun],
) -> LocalUse:
    """Every use of the disk that this machine can show, and what it cannot."""
    if begun is not None and begun.search.is_for(identity):
        found = begun.search.result()
    else:
        found = find_openers([identity], skip={os.getpid()})
    users = [_user(opener, identity, claims, domains) for opener in found.openers.get(identity, [])]
    unseen = []
    hidden = bool(found.unreadable) and not (os.geteuid() == 0 and has_writer(disk.path) is False)
    if hidden:
        count = f"{found.unreadable} process{'es' if found.unreadable > 1 else ''} that we may not look into"
        unseen.append(count if os.geteuid() == 0 else f"{count}: run as root")
    holders = [_holder(user, disk, domains) for user in users]
    holders += [_kernel_user(use) for use in block_users(identity)]
    accounted = [lock for user in users for lock in user.locks]
    table = begun.locks.content() if begun is not None else None
    holders += locks_of_nobody(disk, accounted, unseen, hidden=hidden, table=table)
    holders += lockd_file(disk, domains)
    forgotten = {user.forgotten.uuid: user.opener.pid for user in users if user.forgotten is not None}
    return LocalUse(holders, unseen, forgotten)


def _user(opener: Opener, identity: Identity, claims: Sequence[Claim], domains: Sequence[Domain]) -> User:
    try:
        locks = locks_of_process(opener.pid, identity)
    except PermissionError:
        locks = []
    domain = next((domain for domain in domains if domain.pid == opener.pid), None)
    return User(
        opener,
        cmdline(opener.pid),
        locks,
        qemu_of(opener.pid),
        domain,
        forgotten_by_libvirt(opener.pid) if domain is None else None,
        next((claim for claim in claims if any(p.pid == opener.pid for p in claim.processes)), None),
    )


def _holder(user: User, disk: Disk, domains: Sequence[Domain]) -> Holder:
    opener, use = user.opener, image_use(user.locks)
    since = started_at(opener.start_time)
    about: dict[str, Any] = {
        "pid": opener.pid,
        "process": opener.comm,
        "command": " ".join(map(shell_word, user.argv)),
        "since": since,
        "bytes": byte_ranges(user.locks),
        "forgotten": user.forgotten is not None,
    }
    by_lockd = [lock for lock in user.locks if lock.kind == "POSIX" and lock.covers(VIRTLOCKD_BYTE)]
    if by_lockd and opener.comm == VIRTLOCKD:
        vms = vms_with(domains, disk)
        text = f"virtlockd (process {opener.pid}) holds byte 0 of the image for VM {vms or 'unknown'}"
        return Holder(LOCKD, lockd_mode(by_lockd), text, vm=vms, **about)
    who = f"process {opener.pid} ({opener.comm})" + (f", VM {user.vm!r}," if user.vm else "")
    if use:
        does, layer, mode = describe_use(use), QEMU, "write" if use.writes else "read"
        blocks = use.writes or use.forbids_writers
    else:
        blocks = opener.writable or user.waits_for_migration
        layer, mode = OPEN, "write" if blocks else "read"
        does = f"has it open for {'writing' if opener.writable else 'reading'}, "
        does += "with a lock that is not QEMU's" if user.locks else "without a lock"
        does += ", and waits for a migration to come in" if user.waits_for_migration else ""
    text = f"{who} {does}{_role(user, disk, mode)}, started {format_seconds(clock.wall() - since)} ago"
    return Holder(layer, mode, text + _more(user), blocks=blocks, vm=user.vm, uuid=user.uuid, **about)


def _role(user: User, disk: Disk, mode: str) -> str:
    """Whether a VM has the disk only because one of its own disks stands on it."""
    own = user.domain.disks if user.domain is not None else user.qemu.disks if user.qemu is not None else ()
    if mode == "write" or not own or any(disk.is_at(each.path) for each in own):
        return ""
    return " as an image below one of its disks"


def _more(user: User) -> str:
    if user.forgotten is not None:
        return f"; libvirt started it as domain {user.forgotten.name!r}, and no longer knows that it runs"
    if user.domain is not None:
        reason = f" ({user.domain.reason})" if user.domain.reason else ""
        return f"; libvirt: {user.domain.state}{reason}"
    if user.qemu is None and user.argv:
        command = " ".join(map(shell_word, user.argv))
        return f": {command if len(command) <= _MAX_COMMAND else command[: _MAX_COMMAND - 3] + '...'}"
    return ""


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
    return Holder(OPEN, mode, text, blocks=use.writable, process=use.name, kind=use.kind)
