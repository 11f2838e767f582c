"""``vmlockctl remove-host``. Next: ``ops/remove_host.py``."""

from __future__ import annotations

from typing import Optional

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import print_json
from vmlockctl.ops.remove_host import remove_host
from vmlockctl.ops.session import open_session


@click.command("remove-host", context_settings=CONTEXT_SETTINGS)
@click.argument("target", required=False)
@common_options
@click.pass_context
def command(ctx: click.Context, target: Optional[str]) -> int:
    """Give this host's id back; refused while leases are held."""
    context = context_of(ctx)
    member = remove_host(open_session(run_dir=context.run_dir, lockspace=context.lockspace), target)
    if context.json:
        print_json(dict(member._asdict()))
    else:
        print(f"{member.target}: host id {member.host_id} is free again")
    return 0
