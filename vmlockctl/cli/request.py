"""``vmlockctl request``. Next: ``ops/request.py``."""

from __future__ import annotations

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import print_json
from vmlockctl.errors import UsageError
from vmlockctl.ops.request import Requested, clear_request, request
from vmlockctl.ops.session import open_session
from vmlockctl.text import safe


@click.command("request", context_settings=CONTEXT_SETTINGS)
@click.argument("disk", metavar="DISK")
@click.option("--force", is_flag=True, help="Have the holder killed, not asked to end.")
@click.option("--clear", is_flag=True, help="Take back the request that stands.")
@common_options
@click.pass_context
def command(ctx: click.Context, disk: str, *, force: bool, clear: bool) -> int:
    """Ask the owner of DISK's lease to let it go.

    The owner's host sends SIGTERM to the process that holds it, or SIGKILL with --force, and releases
    the lease when that has ended. Acquire it then, with --wait.
    """
    if force and clear:
        raise UsageError("--force and --clear contradict each other", hint="say one of them")
    context = context_of(ctx)
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    if clear:
        cleared = clear_request(session, disk)
        if context.json:
            print_json({"disk": disk, "cleared": cleared})
        else:
            print(f"{safe(disk)}: {'the request is taken back' if cleared else 'there is no request'}")
        return 0
    requested = request(session, disk, force=force)
    if context.json:
        print_json(requested._asdict())
    else:
        print(_described(requested))
    return 0


def _described(requested: Requested) -> str:
    """One line: who was asked for what, and when to expect an answer."""
    disk, owner = safe(requested.disk), requested.owner
    if owner is None:
        return f"{disk}: nobody holds the lease exclusively: there is nobody to ask"
    who = (
        f"host {safe(str(owner['host_name'] or 'unknown'))!r} (host id {owner['host_id']}, {owner['state']})"
    )
    how = "kills the holder" if requested.force else "asks the holder to end"
    when = f"within {requested.heeded_within} s" if owner["state"] == "live" else "if it is alive"
    return f"{disk}: requested version {requested.lver} of {who}: it {how} {when}"
