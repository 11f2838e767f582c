"""``vmlockctl status``. Next: ``ops/status.py``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from vmlockctl import clock
from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import is_terminal, print_json, print_table
from vmlockctl.errors import UsageError
from vmlockctl.ops.overview import Problem, problems, vms
from vmlockctl.ops.session import open_session
from vmlockctl.ops.status import Lease, Lookout, Status
from vmlockctl.text import format_seconds, safe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from rich.console import Console, RenderableType

    from vmlockctl.cli.params import Context
    from vmlockctl.cli.watching import Sight
    from vmlockctl.errors import VmlockctlError

_LEVELS = {1: "this daemon and its standby stop the VMs in time; a host that is frozen whole is not covered"}
_WATCH_SECONDS = 2.0


@click.command("status", context_settings=CONTEXT_SETTINGS)
@click.argument("disks", nargs=-1, metavar="[DISK]...")
@click.option(
    "--observe", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Watch the hosts so long."
)
@click.option("--watch", is_flag=True, help="Look again and again, until q or Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    help="With --watch: look so often; default 2.",
)
@click.option(
    "--images", multiple=True, metavar="DIR", help="Look for the disks of unnamed leases there too."
)
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    disks: tuple[str, ...],
    *,
    observe: float,
    watch: bool,
    interval: Optional[float],
    images: tuple[str, ...],
) -> int:
    """Hosts and their state, leases, and the VMs and processes behind them."""
    if interval is not None and not watch:
        raise UsageError("--interval has no meaning without --watch", hint="say --watch too")
    context = context_of(ctx)
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    with Lookout(session, disks, image_directories=images, again=watch) as lookout:
        first = lookout.look(observe_seconds=observe)
        if watch:
            _watch(context, first, lookout, interval or _WATCH_SECONDS)
        else:
            _show(context, first)
    return 0


def _watch(context: Context, first: Status, lookout: Lookout, interval: float) -> None:
    from vmlockctl.cli.watching import watch_in_blocks, watch_on_screen

    if context.json or not is_terminal():

        def complain(error: VmlockctlError) -> None:
            from vmlockctl.cli.main import report

            _show_time(context)
            report(error, as_json=context.json)

        def show(seen: Status) -> None:
            _show_time(context)
            _show(context, seen)

        watch_in_blocks(first, lookout.look, show, complain, interval)
        return
    from vmlockctl.cli.statusscreen import open_console, screen

    program = _program(context)

    def draw(sight: Sight[Status], console: Console) -> RenderableType:
        if sight.trouble:
            sight.seen = lookout.with_own_state(sight.seen)
        return screen(sight, console=console, height=console.height, program=program)

    watch_on_screen(first, lookout.look, draw, interval, open_console())


def _show_time(context: Context) -> None:
    """The line between two blocks; JSON has one object a line, which tells its time."""
    if not context.json:
        print(f"--- {clock.rfc3339(clock.wall())}", flush=True)


def _program(context: Context) -> str:
    """How the commands begin that lead to the same lockspace and host."""
    options = [("-L", context.lockspace), ("--run-dir", context.run_dir)]
    return shlex.join(["vmlockctl", *(word for flag, value in options if value for word in (flag, value))])


def _show(context: Context, seen: Status) -> None:
    if context.json:
        print_json(as_json(seen, _program(context)))
        return
    if is_terminal():
        from vmlockctl.cli.statusscreen import open_console, screen
        from vmlockctl.cli.watching import Sight

        console = open_console()
        console.print(screen(Sight(seen, 0.0), console=console, program=_program(context)))
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
    _show_problems(problems(seen, _program(context)))
    print()
    _show_hosts(seen)
    print()
    _show_leases(seen.leases)
    _show_vms(seen)


def _show_problems(found: Sequence[Problem]) -> None:
    for problem in found:
        print(f"{problem.severity}: {safe(problem.text)}: see '{safe(problem.command)}'")


def _show_vms(seen: Status) -> None:
    found = vms(seen)
    if found:
        print()
        print_table(
            ("VM", "PID", "MODE", "LEASE", "DISK"),
            [
                (
                    vm.name or "-",
                    ",".join(map(str, vm.pids)) or "-",
                    disk.mode,
                    {True: "ours", False: "not ours", None: "-"}[disk.lease_is_ours],
                    disk.disk,
                )
                for vm in found
                for disk in vm.disks
            ],
        )


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


def as_json(seen: Status, program: str = "vmlockctl") -> dict[str, Any]:
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
        "problems": [problem._asdict() for problem in problems(seen, program)],
        "vms": [{**vm._asdict(), "disks": [disk._asdict() for disk in vm.disks]} for vm in vms(seen)],
    }
