"""The interface of a lock manager, libvirt's word for how leases are held on a host.

Found by name through the entry-point group ``vmlockctl.lock_managers``; the one that is built in is imported
directly, because reading entry points takes longer than an acquire.
"""

from __future__ import annotations

from vmlockctl.errors import ConfigError
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional, Protocol

    from vmlockctl.daemon.hoststate import LockspaceDir
    from vmlockctl.errors import ContentionError
    from vmlockctl.host.openers import Identity
    from vmlockctl.host.process import Process
    from vmlockctl.lease.liveness import Instance
    from vmlockctl.lease.request import Asked

    class LockManager(Protocol):
        """Holds leases for processes. One instance serves one lockspace."""

        def acquire(self, wants: Sequence[Want], user: User, *, terms: Terms = ...) -> list[Grant]:
            """All of the leases or none, for a running process."""

        def wait_until_free(self, wants: Sequence[Want], seconds: float, why: ContentionError) -> None:
            """Let time pass until another attempt is worth it, at most so long."""

        def release(self, resource: str, *, pid: Optional[int]) -> None:
            """Give a lease back."""

        def to_shared(self, resource: str) -> int:
            """Turn an exclusive lease into a shared one; return its version."""

        def request(self, want: Want, *, force: bool) -> Optional[Asked]:
            """Ask whoever holds the lease exclusively to let it go; None: nobody does."""

        def clear_request(self, want: Want) -> bool:
            """Take a request back; whether there was one."""


ENTRY_POINT_GROUP = "vmlockctl.lock_managers"


class Want(NamedTuple):
    """One lease to acquire."""

    resource: str
    path: str
    offset: int
    disk: str
    identity: Optional[Identity]
    shared: bool


class User(NamedTuple):
    """For whom: a process, and the VM that it runs."""

    process: Process
    vm: str = ""
    uuid: str = ""


class Terms(NamedTuple):
    """When an acquire may succeed: ``lease.paxos.acquire`` says what each of them means."""

    expect_lver: Optional[int] = None
    vouched: Optional[Instance] = None


NO_TERMS = Terms()


class Grant(NamedTuple):
    """A lease that is held now."""

    resource: str
    path: str
    offset: int
    disk: str
    mode: str
    host_id: int
    generation: int
    lver: int


def lock_manager(name: str, directory: LockspaceDir) -> LockManager:
    """The lock manager of that name. Raises ``ConfigError`` for an unknown one."""
    if name in ("auto", "embedded"):
        from vmlockctl.managers.embedded import EmbeddedManager

        return EmbeddedManager(directory)
    from importlib.metadata import entry_points

    found = entry_points()
    group = found.select(group=ENTRY_POINT_GROUP) if hasattr(found, "select") else found[ENTRY_POINT_GROUP]
    for entry in group:
        if entry.name == name:
            manager: LockManager = entry.load()(directory)
            return manager
    raise ConfigError(
        f"lock_manager {name!r} is not installed", hint="use 'auto' or 'embedded', or install its package"
    )
