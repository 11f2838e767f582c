"""run: acquire the leases of a command's disks, and become the command.

The same process throughout: the claim names our pid, and exec keeps it. There is no parent left to
crash; the daemon releases the leases when the process is gone.
"""

from __future__ import annotations

import os
import signal

from vmlockctl.errors import CannotExecute, CommandNotFound, UsageError, VmlockctlError
from vmlockctl.host.qemu import find_disks, vm_name, vm_uuid
from vmlockctl.log import WARNING, log
from vmlockctl.ops.acquire import Acquired, DiskRequest, Options, acquire
from vmlockctl.ops.release import release
from vmlockctl.records import NamedTuple
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Optional

    from vmlockctl.ops.session import Session


class Plan(NamedTuple):
    """What will be run, and the disks that it needs."""

    program: str
    command: list[str]
    disks: list[DiskRequest]
    vm: str
    uuid: str


def plan(command: Sequence[str], disks: Sequence[DiskRequest], *, auto_disks: bool) -> Plan:
    """Find the program and its disks. Raises ``CommandNotFound``, ``CannotExecute``, ``UsageError``."""
    program = _find_program(command[0])
    wanted = {disk.path: disk for disk in disks}
    vm = uuid = ""
    if auto_disks:
        for found in find_disks(command):
            named = wanted.get(found.path)
            if named is None or (named.shared and not found.shared and named not in disks):
                wanted[found.path] = DiskRequest(found.path, found.shared)
        vm, uuid = vm_name(command) or "", vm_uuid(command) or ""
    if not wanted:
        raise UsageError(
            f"{safe(command[0])}: no disk found on its command line",
            hint="name its disks with --disk DISK[,shared]",
        )
    return Plan(program, list(command), list(wanted.values()), vm, uuid)


def run(
    session: Session,
    planned: Plan,
    *,
    options: Options,
    before_exec: Callable[[Acquired], None],
    on_wait: Callable[[str, Optional[float]], None],
) -> None:
    """Acquire and become the command: returns only by raising."""
    options = options._replace(vm=options.vm or planned.vm, uuid=options.uuid or planned.uuid)
    acquired = acquire(session, planned.disks, pid=os.getpid(), options=options, on_wait=on_wait)
    first = acquired.grants[0]
    environment = {
        **os.environ,
        "VMLOCKCTL_HELD": "1",
        "VMLOCKCTL_RESOURCES": " ".join(grant.resource for grant in acquired.grants),
        "VMLOCKCTL_HOST_ID": str(first.host_id),
        "VMLOCKCTL_GENERATION": str(first.generation),
    }
    before_exec(acquired)
    # Python ignores these; a command expects to find them as the shell would leave them.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(planned.program, planned.command, environment)
    except OSError as error:
        _undo(session, acquired)
        raise CannotExecute(f"{safe(planned.program)}: cannot be executed: {error.strerror}") from None


def _undo(session: Session, acquired: Acquired) -> None:
    try:
        release(session._replace(lockspace=acquired.membership.target), [], pid=os.getpid())
    except VmlockctlError as error:
        log(f"not released after a failed exec: {error.message}", WARNING)


def _find_program(name: str) -> str:
    if "/" in name:
        candidates = [name]
    else:
        candidates = [
            os.path.join(directory or ".", name)
            for directory in os.environ.get("PATH", os.defpath).split(os.pathsep)
        ]
    present = [path for path in candidates if os.path.exists(path)]
    for path in present:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    if present:
        raise CannotExecute(f"{safe(present[0])}: cannot be executed")
    raise CommandNotFound(f"{safe(name)}: command not found")
