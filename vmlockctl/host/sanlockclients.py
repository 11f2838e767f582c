"""Whose leases the sanlock daemon of this machine holds, told by ``sanlock client status``.

On the disk sanlock leaves the host id only; which process has a lease, and under which name it registered
(libvirt registers a VM's QEMU under the domain's name), the daemon alone knows. Lines of its answer
(sanlock-format.md section 9):

    p PID NAME
    r LOCKSPACE:RESOURCE:PATH:OFFSET:LVER p PID
"""

from __future__ import annotations

import os
import re
import subprocess

from vmlockctl.records import NamedTuple

_SECONDS = 3.0
_PROCESS = re.compile(r"^p (\d+) (.*)$", re.MULTILINE)
_RESOURCE = re.compile(r"^r ([^:\n]+):([^:\n]+):.* p (\d+)(?: .*)?$", re.MULTILINE)


class SanlockClient(NamedTuple):
    """A process of this machine that holds a lease through sanlock."""

    lockspace: str
    resource: str
    pid: int
    name: str  # as it registered; sanlock takes the pid where it gave none


def sanlock_clients() -> list[SanlockClient]:
    """Every lease that is held through the local daemon; nothing where none answers, or not to us."""
    command = ["sanlock", "client", "status"]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_status(done.stdout.decode("utf-8", "surrogateescape"))


def parse_status(text: str) -> list[SanlockClient]:
    """The ``r`` lines, each with the name from its process's ``p`` line."""
    names = {int(pid): name for pid, name in _PROCESS.findall(text)}
    return [
        SanlockClient(lockspace, resource, int(pid), names.get(int(pid), ""))
        for lockspace, resource, pid in _RESOURCE.findall(text)
    ]
