"""Where the program tells what it did: syslog, or stderr for a daemon in the foreground.

Every on-disk write leaves one line, whoever makes it (the commands too), so that the history of a
lease can be read afterwards. Names from the disk are escaped by ``text.safe``.
"""

from __future__ import annotations

import os
import sys
import syslog

from vmlockctl import clock
from vmlockctl.text import safe

DEBUG = syslog.LOG_DEBUG
INFO = syslog.LOG_INFO
WARNING = syslog.LOG_WARNING
ERROR = syslog.LOG_ERR

_to_stderr = False
_opened = False


def to_stderr() -> None:
    """Log to stderr from now on: a daemon in the foreground."""
    global _to_stderr  # noqa: PLW0603 - one process, one log
    _to_stderr = True


def log(message: str, priority: int = INFO) -> None:
    """Write one line. A log that cannot be written never stops the work."""
    global _opened  # noqa: PLW0603 - as above
    message = safe(message)
    if _to_stderr:
        stamp = clock.rfc3339(clock.wall())
        try:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{stamp} {message}\n".encode())
        except OSError:
            pass
        return
    if not _opened:
        syslog.openlog("vmlockctl", syslog.LOG_PID, syslog.LOG_DAEMON)
        _opened = True
    syslog.syslog(priority, message)


def who() -> str:
    """The person behind this process, for lines that a command writes."""
    user = os.environ.get("SUDO_USER")
    return f"uid {os.getuid()} ({safe(user)})" if user else f"uid {os.getuid()}"
