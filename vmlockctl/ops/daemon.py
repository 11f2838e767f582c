"""daemon: the renewing and watching process. Next: ``daemon/main.py``."""

from __future__ import annotations

from vmlockctl import log
from vmlockctl.config import load
from vmlockctl.daemon import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlockctl.ops.session import Session


def run_daemon(session: Session, *, foreground: bool) -> None:
    """Run until told to stop. In the foreground it logs to stderr, else to syslog."""
    if foreground:
        log.to_stderr()
    main.run(session.run_dir, grace_seconds=load().grace, foreground=foreground)
