"""``vmlockctl daemon``. Next: ``ops/daemon.py``, ``daemon/main.py``."""

from __future__ import annotations

from vmlockctl.ops.daemon import run_daemon
from vmlockctl.ops.session import open_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlockctl.cli.params import Context


def execute(context: Context, values: dict[str, Any], _words: list[str]) -> int:
    run_daemon(open_session(run_dir=context.run_dir), foreground=not values["background"])
    return 0
