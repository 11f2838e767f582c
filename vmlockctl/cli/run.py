"""``vmlockctl run``. Next: ``ops/run.py``."""

from __future__ import annotations

import sys

from vmlockctl.cli.acquire import LOCAL_NOTICE, lease_options
from vmlockctl.cli.output import HolderNotice, say
from vmlockctl.errors import EXIT_BUSY, UsageError, VmlockctlError
from vmlockctl.ops.acquire import Acquired, DiskRequest
from vmlockctl.ops.run import plan, run
from vmlockctl.ops.session import open_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlockctl.cli.params import Context

_SHARED_SUFFIX = ",shared"


def execute(context: Context, values: dict[str, Any], words: list[str]) -> int:
    disks = [_disk(text) for text in values["disk"]]
    conflict = values["conflict_exit_code"]
    if conflict is not None and not 0 <= conflict <= 255:
        raise UsageError(f"conflict exit code {conflict} is out of range, expected 0 to 255")
    planned = plan(words, disks, auto_disks=not values["no_auto_disks"])

    def before_exec(acquired: Acquired) -> None:
        if acquired.host_local:
            say(LOCAL_NOTICE, quiet=context.quiet)
        sys.stderr.flush()
        sys.stdout.flush()

    try:
        run(
            open_session(run_dir=context.run_dir, lockspace=context.lockspace),
            planned,
            options=lease_options(values),
            before_exec=before_exec,
            on_wait=HolderNotice(quiet=context.quiet),
        )
    except VmlockctlError as error:
        if conflict is not None and error.exit_code == EXIT_BUSY:
            error.exit_code = conflict
        raise
    raise AssertionError("run returns only by raising")


def _disk(text: str) -> DiskRequest:
    if text.endswith(_SHARED_SUFFIX):
        return DiskRequest(text[: -len(_SHARED_SUFFIX)], shared=True)
    return DiskRequest(text)
