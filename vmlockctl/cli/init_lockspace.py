"""``vmlockctl init-lockspace``. Next: ``ops/init_lockspace.py``."""

from __future__ import annotations

from typing import Optional

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import Progress, print_json, say
from vmlockctl.errors import UsageError
from vmlockctl.ops.init_lockspace import Format, Initialised, init_lockspace
from vmlockctl.ops.session import open_session
from vmlockctl.specs import check_host_name, check_name, parse_host_id
from vmlockctl.text import safe
from vmlockctl.units import parse_size


@click.command("init-lockspace", context_settings=CONTEXT_SETTINGS)
@click.argument("target", required=False)
@click.option("--name", help="Lockspace name; default: libvirt's.")
@click.option("--io-timeout", type=int, help="Seconds; every other duration follows from it. Default 10.")
@click.option("--sector-size", help="512 or 4096; default: what is there, or what the storage takes.")
@click.option("--align", help="1M, 2M, 4M or 8M; default: 1M with 512, 8M with 4096.")
@click.option("--owner", help="User that owns the file.")
@click.option("--group", help="Group that owns the file.")
@click.option("--mode", help="Permissions, octal; default 0600, or 0660 with a group.")
@click.option("--force", is_flag=True, help="Format again, once every host was observed dead or free.")
@click.option("--host-id", help="Join at once as this host id: no wait, nobody else can be there yet.")
@click.option("--host-name", help="This host's name; default: kept in the state directory.")
@common_options
@click.pass_context
def command(ctx: click.Context, /, target: Optional[str], **values: Optional[str]) -> int:
    """Format a lockspace, creating its directory. TARGET: a lease directory, or NAME:0:PATH:OFFSET."""
    context = context_of(ctx)
    with Progress(quiet=context.quiet) as progress:
        made = init_lockspace(
            open_session(run_dir=context.run_dir, lockspace=context.lockspace),
            target,
            _format(values),
            on_wait=progress.wait,
        )
    if context.json:
        print_json(_as_json(made))
    elif not made.created:
        what = f"the lockspace {safe(made.name)!r} is there already; nothing was written"
        say(f"{made.path}:{made.offset}: {what}", quiet=context.quiet)
    else:
        print(
            f"{made.path}:{made.offset}: lockspace {safe(made.name)!r}, {made.geometry.max_hosts} hosts, "
            f"io_timeout {made.io_timeout} s"
        )
        if made.joined_as is not None:
            print(f"joined as host id {made.joined_as.host_id} ({safe(made.joined_as.host_name)})")
    return 0


def _format(values: dict[str, Optional[str]]) -> Format:
    name, host_id, host_name = values["name"], values["host_id"], values["host_name"]
    timeout = values["io_timeout"]
    return Format(
        name=None if name is None else check_name(name, "lockspace name"),
        io_timeout=None if timeout is None else _io_timeout(int(timeout)),
        sector_size=None if values["sector_size"] is None else parse_size(values["sector_size"]),
        align_size=None if values["align"] is None else parse_size(values["align"]),
        owner=values["owner"],
        group=values["group"],
        mode=None if values["mode"] is None else _mode(values["mode"]),
        force=bool(values["force"]),
        host_id=None if host_id is None else parse_host_id(host_id),
        host_name=None if host_name is None else check_host_name(host_name),
    )


def _io_timeout(value: int) -> int:
    if not 1 <= value <= 255:
        raise UsageError(f"io_timeout {value} is out of range, expected 1 to 255")
    return value


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        raise UsageError(f"mode {text!r} is not an octal number") from None
    if mode & ~0o770 or mode & 0o600 != 0o600:
        raise UsageError(f"mode {text} would let others write leases or us not read them; use 0600 or 0660")
    return mode


def _as_json(made: Initialised) -> dict[str, object]:
    return {
        "created": made.created,
        "lockspace": {
            "name": made.name,
            "path": made.path,
            "offset": made.offset,
            "sector_size": made.geometry.sector_size,
            "align_size": made.geometry.align_size,
            "io_timeout": made.io_timeout,
        },
        "max_hosts": made.geometry.max_hosts,
        "host_id": made.joined_as.host_id if made.joined_as else None,
        "host_name": made.joined_as.host_name if made.joined_as else None,
    }
