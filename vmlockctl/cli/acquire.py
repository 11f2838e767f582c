"""``vmlockctl acquire``. Next: ``ops/acquire.py``."""

from __future__ import annotations

from vmlockctl.cli.output import HolderNotice, print_json, say
from vmlockctl.ops.acquire import Acquired, DiskRequest, Options, acquire, parent_pid
from vmlockctl.ops.session import open_session
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlockctl.cli.params import Context

LOCAL_NOTICE = "these leases protect this host only: join a shared lockspace with 'vmlockctl add-host'"


def lease_options(values: dict[str, Any]) -> Options:
    return Options(
        wait_seconds=values["wait"],
        vm=values["vm"] or "",
        uuid=values["uuid"] or "",
        expect_lver=values["lver"],
        allow_alias=values["allow_alias"],
        require_level=values["require_level"] or 0,
    )


def execute(context: Context, values: dict[str, Any], words: list[str]) -> int:
    pid = parent_pid() if values["pid"] is None else values["pid"]
    acquired = acquire(
        open_session(run_dir=context.run_dir, lockspace=context.lockspace),
        [DiskRequest(disk, values["shared"]) for disk in words],
        pid=pid,
        options=lease_options(values),
        on_wait=HolderNotice(quiet=context.quiet),
    )
    if acquired.host_local:
        say(LOCAL_NOTICE, quiet=context.quiet)
    show(acquired, as_json=context.json, pid=pid)
    return 0


def show(acquired: Acquired, *, as_json: bool, pid: int) -> None:
    if as_json:
        print_json({"pid": pid, "leases": [grant._asdict() for grant in acquired.grants]})
        return
    for grant in acquired.grants:
        print(f"{safe(grant.disk)}: {grant.mode} lease {grant.resource} lver {grant.lver} for process {pid}")
