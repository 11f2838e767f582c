"""A ``Status`` as a look would give it, for tests of what is shown."""

from __future__ import annotations

from typing import Any, Optional

from vmlockctl.daemon.claims import HELD, Claim
from vmlockctl.host.process import Process
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.steps import Area
from vmlockctl.lease.timeouts import host_dead_seconds, host_fail_seconds, id_renewal_warn_seconds
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ops.status import Host, Lease, Status
from vmlockctl.specs import resource_name

NOON = 1_764_072_000.0  # 2025-11-25T12:00:00Z


def host(
    host_id: int,
    state: str,
    age: Optional[float],
    *,
    name: str = "",
    ours: bool = False,
    io_timeout: int = 10,
) -> Host:
    dead_after = host_dead_seconds(io_timeout)
    dead_in = None if age is None else max(0.0, dead_after - age)
    thresholds = (id_renewal_warn_seconds(io_timeout), host_fail_seconds(io_timeout), dead_after)
    return Host(
        host_id, name or f"host{host_id}", 1, state, io_timeout, 5000, age, dead_in, ours, *thresholds
    )


def lease(
    disk: Optional[str],
    *owners: Host,
    vm: str = "",
    pid: Optional[int] = None,
    mode: str = "exclusive",
    damage: str = "",
) -> Lease:
    resource = resource_name(disk or "unknown")
    found = [_owner(owner, vm, pid) for owner in owners]
    waits = [owner["takeover_in"] for owner in found]
    damages = [{"offset": 0, "code": "wrong-checksum", "sanlk_rv": -229, "text": damage}] if damage else []
    return Lease(
        resource,
        f"/leases/{resource}",
        0,
        disk,
        mode if owners else "free",
        7,
        found,
        max(waits, default=0.0),
        damages,
        "owner note" if disk else None,
    )


def _owner(host: Host, vm: str, pid: Optional[int]) -> dict[str, Any]:
    return {
        "host_id": host.host_id,
        "host_name": host.host_name,
        "generation": host.generation,
        "state": host.state,
        "io_timeout": host.io_timeout,
        "age": host.age,
        "dead_in": host.dead_in,
        "pid": pid,
        "vm": vm or None,
        "uuid": None,
        "this_host": host.this_host,
        "takeover_in": 0.0 if host.state in ("free", "dead") else host.dead_in,
    }


def claim(disk: str, process: Process, *, vm: str = "", host_id: int = 1) -> Claim:
    resource = resource_name(disk)
    return Claim(
        resource, f"/leases/{resource}", 0, disk, None, "exclusive", HELD, host_id, 1, 7, (process,), None, vm
    )  # fmt: skip


def this_host(**changed: Any) -> dict[str, Any]:
    return {
        "host_id": 1, "host_name": "host1", "generation": 1, "state": "live", "expires_in": 78.0,
        "daemon_pid": 4711, "standby_pid": 4712, "watchdog": None, "level": 1, "problem": "",
        "warn_after": 60, "fail_after": 80, **changed,
    }  # fmt: skip


def seen(
    hosts: list[Host],
    leases: Optional[list[Lease]] = None,
    claims: Optional[list[Claim]] = None,
    ours: Optional[dict[str, Any]] = None,
    observed_by: str = "daemon",
) -> Status:
    space = Lockspace(Area("/leases/__LIBVIRT__DISKS__", 0, DEFAULT_GEOMETRY), "__LIBVIRT__DISKS__", 10)
    return Status(NOON, observed_by, space, ours, hosts, leases or [], claims or [])
