"""``vmlockctl add-host``. Next: ``ops/add_host.py``."""

from __future__ import annotations

from typing import Optional

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import Progress, print_json, say
from vmlockctl.config import load
from vmlockctl.errors import UsageError
from vmlockctl.ops.add_host import add_host
from vmlockctl.ops.daemon import run_daemon
from vmlockctl.ops.session import open_session
from vmlockctl.specs import check_host_name, parse_host_id
from vmlockctl.text import safe


@click.command("add-host", context_settings=CONTEXT_SETTINGS)
@click.argument("target", required=False)
@click.option("--host-id", help="1 to 2000, or 'auto' for this host's own from before, else a free one.")
@click.option(
    "--host-name", help="This host's name, unique and at most 47 bytes; default: kept over reboots."
)
@click.option("--io-timeout", type=click.IntRange(1, 255), help="Seconds; default: the lockspace's.")
@click.option("--foreground", is_flag=True, help="Become the daemon after joining.")
@common_options
@click.pass_context
def command(
    ctx: click.Context,
    target: Optional[str],
    host_id: Optional[str],
    host_name: Optional[str],
    io_timeout: Optional[int],
    foreground: bool,  # noqa: FBT001 - click passes options by name
) -> int:
    """Claim a host id in a lockspace and renew it. TARGET: a lease directory, or NAME:0:PATH:OFFSET."""
    context = context_of(ctx)
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    configured = load().host_id
    if host_id is None and configured is None:
        raise UsageError("no host id", hint="say --host-id N, or --host-id auto for a free one")
    chosen = configured if host_id is None else (None if host_id == "auto" else parse_host_id(host_id))
    with Progress(quiet=context.quiet) as progress:
        joined = add_host(
            session,
            target,
            host_id=chosen,
            host_name=None if host_name is None else check_host_name(host_name),
            io_timeout=io_timeout,
            on_wait=progress.wait,
        )
    member = joined.membership
    if context.json:
        print_json({**member._asdict(), "generation": joined.generation, "already": joined.already})
    else:
        how = "had joined already" if joined.already else "joined"
        print(
            f"{member.target}: {how} as host id {member.host_id} ({safe(member.host_name)}), "
            f"generation {joined.generation}"
        )
    if foreground:
        say("renewing; Ctrl-C leaves when no lease is held", quiet=context.quiet)
        run_daemon(session, foreground=True)
    return 0
