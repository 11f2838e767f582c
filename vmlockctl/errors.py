"""Every condition that vmlockctl reports, cut by what the caller can do about it.

A leaf carries fields, builds its message once, and names its ``exit_code`` (the table of
``EXIT_CODES``), its stable ``code`` and, where sanlock has a number for the same condition,
``sanlk_rv`` (sanlock-format.md section 7). Conditions have no suffix; the bases end in ``Error``:

``OnDiskError``      stop and look
``ContentionError``  wait
``StorageError``     retry, here or elsewhere; a timed-out write has an unknown outcome
``ProcessError``     act on the process
``SetupError``       join, create or configure first

Only ``cli/main.py`` turns one of these into text and an exit.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Optional

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_NO_SUCH = 66
EXIT_NOT_JOINED = 69
EXIT_BUG = 70
EXIT_EXISTS = 73
EXIT_STORAGE = 74
EXIT_BUSY = 75
EXIT_LOST = 76
EXIT_PERMISSION = 77
EXIT_CONFIG = 78
EXIT_GAVE_UP = 124
EXIT_CANNOT_EXECUTE = 126
EXIT_COMMAND_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

EXIT_CODES = {
    EXIT_OK: "done, or nothing to report",
    EXIT_FINDINGS: "findings, or the question is answered no",
    EXIT_USAGE: "usage",
    EXIT_DATA: "on-disk data corrupt, unsupported or not matching",
    EXIT_NO_SUCH: "no such lockspace, lease or disk; or the lease is not held by us",
    EXIT_NOT_JOINED: "host not joined, or its daemon is not running",
    EXIT_BUG: "unexpected: our bug",
    EXIT_EXISTS: "exists already, cannot create",
    EXIT_STORAGE: "storage error, or an I/O timed out (outcome unknown)",
    EXIT_BUSY: "busy: a live or not yet dead owner holds it, or a race was lost",
    EXIT_LOST: "the lease or the host lease was lost while held",
    EXIT_PERMISSION: "permission denied, or refused by a safety check",
    EXIT_CONFIG: "configuration",
    EXIT_GAVE_UP: "gave up waiting",
    EXIT_CANNOT_EXECUTE: "run: the command cannot be executed",
    EXIT_COMMAND_NOT_FOUND: "run: the command is not found",
    EXIT_INTERRUPTED: "interrupted",
}


class VmlockctlError(Exception):
    """A condition of the world, told in one line, with what to do next."""

    code = "error"
    exit_code = EXIT_BUG
    sanlk_rv: Optional[int] = None
    hint: Optional[str] = None

    def __init__(
        self, message: str, *, hint: Optional[str] = None, details: Optional[Mapping[str, Any]] = None
    ) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    def name_disk(self, resource: str, disk: str) -> None:
        """Put a disk's path before a message that names only its lease, which is a digest."""
        if resource in self.message and disk not in self.message:
            self.message = f"{disk}: {self.message}"
            self.args = (self.message,)


class UsageError(VmlockctlError):
    code = "usage"
    exit_code = EXIT_USAGE
    hint = "see 'vmlockctl --help'"


class ConfigError(VmlockctlError):
    code = "config"
    exit_code = EXIT_CONFIG
    hint = "mend that file, or name another one with VMLOCKCTL_CONFIG"


# -- what is on the disk ------------------------------------------------------------------------


class OnDiskError(VmlockctlError):
    """A record that cannot be read, verified and understood; it is never overwritten."""

    code = "on-disk"
    exit_code = EXIT_DATA
    hint = "nothing was written; 'vmlockctl dump-leases' shows what is there"

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, hint: Optional[str] = None
    ) -> None:
        parts = [what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        super().__init__(", ".join(parts), hint=hint, details={"found": found, "expected": expected})

    def at(self, path: str, offset_bytes: int) -> OnDiskError:
        """Name the place, once: the codec does not know where its bytes came from."""
        if "path" not in self.details:
            self.details.update(path=path, offset=offset_bytes)
            self.message = f"{path}:{offset_bytes}: {self.message}"
            self.args = (self.message,)
        return self


class WrongMagic(OnDiskError):
    code = "wrong-magic"
    sanlk_rv = -223


class ClearedResource(WrongMagic):
    code = "cleared-resource"


class WrongVersion(OnDiskError):
    code = "wrong-version"
    sanlk_rv = -224


class WrongRequestMagic(WrongMagic):
    code = "wrong-request-magic"
    sanlk_rv = -270


class WrongRequestVersion(WrongVersion):
    code = "wrong-request-version"
    sanlk_rv = -271


class WrongSectorSize(OnDiskError):
    code = "wrong-sector-size"
    sanlk_rv = -225


class WrongLockspaceName(OnDiskError):
    code = "wrong-lockspace-name"
    sanlk_rv = -226


class WrongResourceName(OnDiskError):
    code = "wrong-resource-name"
    sanlk_rv = -227


class WrongNumHosts(OnDiskError):
    code = "wrong-num-hosts"
    sanlk_rv = -228


class WrongChecksum(OnDiskError):
    code = "wrong-checksum"
    sanlk_rv = -229


class WrongGeometry(OnDiskError):
    code = "wrong-geometry"
    sanlk_rv = -230


class WrongRindexMagic(WrongMagic):
    code = "wrong-rindex-magic"
    sanlk_rv = -274


class WrongRindexVersion(WrongVersion):
    code = "wrong-rindex-version"
    sanlk_rv = -275


class WrongRindexLockspace(WrongLockspaceName):
    code = "wrong-rindex-lockspace"
    sanlk_rv = -276


class WrongRindexOffset(OnDiskError):
    """A resource index that was copied from another place, or an offset that is none of its places."""

    code = "wrong-rindex-offset"
    sanlk_rv = -277


class WrongRindexEntry(OnDiskError):
    """An entry of the resource index differs from what it should be (sanlock's "diff")."""

    code = "wrong-rindex-entry"
    sanlk_rv = -278


class WrongDblock(OnDiskError):
    """One host's ballot record is damaged; sanlock lets it block everybody (-214)."""

    code = "wrong-dblock"
    sanlk_rv = -214


class WrongField(OnDiskError):
    """A field holds what no writer ever writes (owner_id beyond max_hosts, ...)."""

    code = "wrong-field"


class TruncatedArea(OnDiskError):
    code = "truncated-area"
    sanlk_rv = -90


# -- somebody else has it -----------------------------------------------------------------------


class ContentionError(VmlockctlError):
    code = "busy"
    exit_code = EXIT_BUSY
    hint = "wait with --wait, or see 'vmlockctl status' for who has it"


class LeaseHeld(ContentionError):
    """A live or not yet dead host holds the lease (-243; -247 while it expires)."""

    code = "lease-held"
    sanlk_rv = -243


class SharedLeaseHeld(LeaseHeld):
    """Live hosts hold the lease shared, and we want it exclusive (-11)."""

    code = "lease-held-shared"
    sanlk_rv = -11


class HeldLocally(LeaseHeld):
    """Another process of this host holds the lease (sanlock's -17)."""

    code = "lease-held-locally"
    sanlk_rv = -17


class RaceLost(ContentionError):
    """Another host won the ballot for this lease version (-244, -245)."""

    code = "race-lost"
    sanlk_rv = -244
    hint = "try again, or use --wait"


class LverMoved(ContentionError):
    """Somebody held the lease since the version that the caller expects (-240)."""

    code = "lver-moved"
    sanlk_rv = -240


class RequestPending(ContentionError):
    """Somebody asks for a later version of the lease already (-273)."""

    code = "request-pending"
    sanlk_rv = -273
    hint = "'vmlockctl request --clear' takes it back; who set it may be waiting"


class HostIdBusy(ContentionError):
    """The host id is being renewed by another host (-262)."""

    code = "host-id-busy"
    sanlk_rv = -262


class GaveUpWaiting(VmlockctlError):
    code = "gave-up-waiting"
    exit_code = EXIT_GAVE_UP
    hint = "'vmlockctl status' shows who has it"


# -- the storage --------------------------------------------------------------------------------


class StorageError(VmlockctlError):
    code = "storage"
    exit_code = EXIT_STORAGE
    hint = "look at the storage and the kernel log; nothing is assumed about what was written"


class IoTimeout(StorageError):
    """An I/O passed its deadline; it may still happen (-202)."""

    code = "io-timeout"
    sanlk_rv = -202
    hint = "the outcome is unknown; nothing is assumed about it, and it is settled when the storage answers"


class NoDirectIo(StorageError):
    code = "no-direct-io"
    hint = "leases need O_DIRECT: use a file system or a block device that has it"


class NoSuchArea(VmlockctlError):
    code = "no-such"
    exit_code = EXIT_NO_SUCH
    sanlk_rv = -2
    hint = "name an existing lease directory, or make one with 'vmlockctl init-lockspace'"


class StorageRefused(VmlockctlError):
    """Permission denied or a read-only mount."""

    code = "permission"
    exit_code = EXIT_PERMISSION
    sanlk_rv = -13
    hint = "run as root, or as the user that owns the leases"


class CannotCreate(VmlockctlError):
    code = "cannot-create"
    exit_code = EXIT_EXISTS
    hint = "name another place"


# -- this host ----------------------------------------------------------------------------------


class SetupError(VmlockctlError):
    code = "setup"
    exit_code = EXIT_NOT_JOINED
    hint = "see 'vmlockctl status'"


class NotJoined(SetupError):
    code = "not-joined"
    sanlk_rv = -241
    hint = "join it first: vmlockctl add-host TARGET --host-id N"


class DaemonNotRunning(SetupError):
    code = "daemon-not-running"
    hint = "start it: vmlockctl daemon"


class HostLeaseLost(VmlockctlError):
    """Our host lease expired or is no longer ours (-260, -261): nothing more may be written."""

    code = "host-lease-lost"
    exit_code = EXIT_LOST
    sanlk_rv = -260
    hint = "nothing more was written; the daemon joins again when its VMs are gone"


class LeaseLost(VmlockctlError):
    """The leader no longer names us as we last knew (-250, -251)."""

    code = "lease-lost"
    exit_code = EXIT_LOST
    sanlk_rv = -251
    hint = "another host may use the disk: see 'vmlockctl status'"


class NotHeld(VmlockctlError):
    code = "not-held"
    exit_code = EXIT_NO_SUCH
    sanlk_rv = -2
    hint = "'vmlockctl status' shows what this host holds"


class NoSuchDisk(VmlockctlError):
    code = "no-such-disk"
    exit_code = EXIT_NO_SUCH
    hint = "name an existing image file or block device"


class Refused(VmlockctlError):
    """A safety check says no; the message says which override exists, if any."""

    code = "refused"
    exit_code = EXIT_PERMISSION
    hint = "there is no override"


class ProcessError(VmlockctlError):
    code = "process"
    exit_code = EXIT_USAGE
    hint = "name a running process with --pid"


class CommandNotFound(VmlockctlError):
    code = "command-not-found"
    exit_code = EXIT_COMMAND_NOT_FOUND
    hint = "give its full path"


class CannotExecute(VmlockctlError):
    code = "cannot-execute"
    exit_code = EXIT_CANNOT_EXECUTE
    hint = "see that it is an executable file for this machine"


def join_names(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``: for messages."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


# -- from the system -------------------------------------------------------------------------------

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(error: OSError, path: str, doing: str) -> VmlockctlError:
    """The condition that an OSError of a lease area, or of our own records, stands for."""
    text = f"{path}: {doing}: {os.strerror(error.errno or errno.EIO)}"
    if error.errno in _ABSENT:
        return NoSuchArea(text, details={"path": path})
    if error.errno in _REFUSED:
        hint = "the file system is mounted read-only" if error.errno == errno.EROFS else None
        return StorageRefused(text, hint=hint, details={"path": path})
    if error.errno in _FULL:
        return CannotCreate(text, hint="make room on that file system", details={"path": path})
    return StorageError(text, details={"path": path, "errno": error.errno})
