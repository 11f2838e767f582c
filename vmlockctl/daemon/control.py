"""What commands ask of a daemon: does it run, who is it, start it. Light: every acquire loads this."""

from __future__ import annotations

from vmlockctl import clock
from vmlockctl.host.rundir import RunDir, is_locked, read_pid
from vmlockctl.host.spawn import spawn_daemon

DAEMON_LOCK = "daemon.lock"
DAEMON_PID = "daemon.pid"
STANDBY_LOCK = "standby.lock"
STANDBY_PID = "standby.pid"


def is_running(run_dir: RunDir) -> bool:
    return is_locked(run_dir.file(DAEMON_LOCK))


def daemon_pid(run_dir: RunDir) -> int:
    """The running daemon's pid, or 0."""
    return read_pid(run_dir.file(DAEMON_PID)) if is_running(run_dir) else 0


def standby_pid(run_dir: RunDir) -> int:
    return read_pid(run_dir.file(STANDBY_PID)) if is_locked(run_dir.file(STANDBY_LOCK)) else 0


def ensure_running(run_dir: RunDir, *, within_seconds: float = 10.0) -> bool:
    """Start the daemon in the background if none runs; True when one does."""
    run_dir.create()
    if is_running(run_dir):
        return True
    spawn_daemon(run_dir.path if run_dir.is_moved else None, detached=True)
    deadline = clock.monotonic() + within_seconds
    while not is_running(run_dir):
        if clock.monotonic() > deadline:
            return False
        clock.sleep(0.02)
    return True
