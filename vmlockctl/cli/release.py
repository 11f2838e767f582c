"""``vmlockctl release``. Next: ``ops/release.py``; with ``--evidence``: ``cli/release_evidence.py``."""

from __future__ import annotations

from vmlockctl.cli.output import print_json
from vmlockctl.errors import UsageError
from vmlockctl.ops.release import release, release_to_shared
from vmlockctl.ops.session import open_session
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlockctl.cli.params import Context


def execute(context: Context, values: dict[str, Any], words: list[str]) -> int:
    if values["evidence"]:
        from vmlockctl.cli import release_evidence

        return release_evidence.execute(context, values, words)
    if values["i_know"] is not None or values["wait"] is not None:
        raise UsageError("--i-know and --wait belong to --evidence", hint="say --evidence, too")
    session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
    to_shared = values["to_shared"]
    claims = (release_to_shared if to_shared else release)(session, words, pid=values["pid"])
    if context.json:
        key = "shared" if to_shared else "released"
        print_json({key: [{"resource": c.resource, "disk": c.disk, "lver": c.lver} for c in claims]})
    else:
        for claim in claims:
            print(f"{safe(claim.disk)}: {'shared' if to_shared else 'released'}")
    return 0
