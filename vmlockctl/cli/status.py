"""``vmlockctl status``. Next: ``ops/status.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmlockctl import clock
from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import print_json, print_table
from vmlockctl.ops.session import open_session
from vmlockctl.ops.status import Lease, Status, status
from vmlockctl.text import format_seconds, safe

if TYPE_CHECKING:
    from vmlockctl.cli.params import Context

_LEVELS = {1: "this daemon and its standby stop the VMs in time; a host that is frozen whole is not covered"}


@click.command("status", context_settings=CONTEXT_SETTINGS)
@click.argument("disks", nargs=-1, metavar="[DISK]...")
@click.option(
    "--observe", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Watch the hosts so long."
)
@click.option("--watch", is_flag=True, help="Look again every two seconds.")
@common_options
@click.pass_context
def command(ctx: click.Context, disks: tuple[str, ...], observe: float, watch: bool) -> int:  # noqa: FBT001
    """Hosts and their state, leases, and the VMs and processes behind them."""
    context = context_of(ctx)
    while True:
        seen = status(
            open_session(run_dir=context.run_dir, lockspace=context.lockspace), disks, observe_seconds=observe
        )
        if watch:
            click.clear()
        _show(context, seen)
        if not watch:
            return 0
        clock.sleep(2)


def _show(context: Context, seen: Status) -> None:
    if context.json:
        print_json(as_json(seen))
        return
    area = seen.lockspace.area
    print(
        f"lockspace {safe(seen.lockspace.space_name)} {safe(area.path)}:{area.offset}, "
        f"io_timeout {seen.lockspace.io_timeout} s"
    )
    if seen.this_host is None:
        print("this host: not joined")
    else:
        _show_this_host(seen.this_host)
    print()
    _show_hosts(seen)
    print()
    _show_leases(seen.leases)


def _show_this_host(host: dict[str, Any]) -> None:
    expiry = "" if host["expires_in"] is None else f", expires in {format_seconds(host['expires_in'])}"
    print(f"this host: host id {host['host_id']} {safe(host['host_name'])} generation {host['generation']}, "
          f"{host['state']}{expiry}")  # fmt: skip
    if host["problem"]:
        print(f"  problem: {safe(host['problem'])}")
    daemon = f"process {host['daemon_pid']}" if host["daemon_pid"] else "NOT RUNNING"
    standby = f"process {host['standby_pid']}" if host["standby_pid"] else "none"
    print(f"  daemon {daemon}, standby {standby}")
    print(f"  guarantee level L{host['level']}: {_LEVELS[host['level']]}")


def _show_hosts(seen: Status) -> None:
    if not seen.hosts:
        print("no host has ever joined")
        return
    print_table(
        ("HOST_ID", "HOST_NAME", "GENERATION", "STATE", "AGE", "DEAD_IN"),
        [
            (
                str(host.host_id),
                host.host_name,
                str(host.generation),
                host.state + (" (this host)" if host.this_host else ""),
                _seconds(host.age),
                _seconds(host.dead_in),
            )
            for host in seen.hosts
        ],
    )
    if seen.observed_by == "nobody":
        print("nobody observes these hosts here: --observe SECONDS watches them")


def _show_leases(leases: list[Lease]) -> None:
    if not leases:
        print("no leases")
        return
    print_table(
        ("DISK", "MODE", "LVER", "OWNER", "STATE", "PID", "VM", "FREE_IN"),
        [_lease_row(lease) for lease in leases],
    )
    for lease in leases:
        for finding in lease.damage:
            print(f"{safe(lease.path)}: damaged at {finding['offset']}: {safe(finding['text'])}")


def _lease_row(lease: Lease) -> tuple[str, ...]:
    owners = lease.owners
    return (
        lease.disk or lease.resource,
        lease.mode,
        "-" if lease.lver is None else str(lease.lver),
        ", ".join(f"{o['host_id']} {o['host_name'] or '?'}" for o in owners) or "-",
        ", ".join(o["state"] for o in owners) or "-",
        ", ".join(str(o["pid"]) for o in owners if o["pid"]) or "-",
        ", ".join(o["vm"] for o in owners if o["vm"]) or "-",
        _seconds(lease.takeover_in) if owners else "-",
    )


def _seconds(value: Any) -> str:
    return "-" if value is None else format_seconds(value)


def as_json(seen: Status) -> dict[str, Any]:
    area = seen.lockspace.area
    return {
        "observed_at": seen.observed_at,
        "observed_at_utc": clock.rfc3339(seen.observed_at),
        "observed_by": seen.observed_by,
        "lockspace": {
            "name": seen.lockspace.space_name,
            "path": area.path,
            "offset": area.offset,
            "sector_size": area.geometry.sector_size,
            "align_size": area.geometry.align_size,
            "io_timeout": seen.lockspace.io_timeout,
        },
        "this_host": seen.this_host,
        "hosts": [host._asdict() for host in seen.hosts],
        "leases": [lease._asdict() for lease in seen.leases],
    }
