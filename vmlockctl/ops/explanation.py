"""The answer of ``explain DISK``: a verdict, who holds the disk on which layer, and what is safe to do."""

from __future__ import annotations

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

FREE, BUSY, STALE, NOBODY_KNOWS = "free", "busy", "stale", "unknown"

LEASE, QEMU, LOCKD, OPEN = "lease", "qemu", "lockd", "open"


class Holder(NamedTuple):
    """One thing that has the disk, on one layer. ``blocks``: it keeps a VM from starting with the disk."""

    layer: str
    mode: str  # exclusive, shared, write, read
    text: str  # the evidence, in one line
    blocks: bool = True
    host: Optional[dict[str, Any]] = None  # host_id, host_name, generation, state, age; None: this machine
    pid: Optional[int] = None
    process: str = ""
    command: str = ""  # its command line, as ps shows it
    vm: str = ""
    uuid: str = ""
    bytes: str = ""  # of byte locks
    since: Optional[float] = None  # seconds since the epoch: when the lease was taken, the process started
    takeover_in: Optional[float] = None  # seconds; 0: now; None: not by waiting
    forgotten: bool = False  # a QEMU of libvirt that libvirt does not know to run
    kind: str = ""  # of what the kernel has on it: loop, holder or mount
    filesystem: str = ""  # that keeps a lock of no process, and its server
    server: str = ""


class Advice(NamedTuple):
    """A next step: what, the exact command if there is one, and why it is safe."""

    text: str
    command: str = ""
    why: str = ""


class Explanation(NamedTuple):
    disk: str
    names: tuple[str, ...]
    resource: str
    verdict: str
    summary: str
    holders: list[Holder]
    free_in: Optional[float]
    advice: list[Advice]
    dont: list[str]
    facts: list[tuple[str, str]]  # heading and value, about the image itself
    unseen: list[str]  # what could not be looked at
    damaged: bool
