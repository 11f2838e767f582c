"""The daemon process and its standby.

One daemon per run directory holds ``daemon.lock``. The next one is its standby: it waits on that lock,
and whatever kills the daemon hands it over within milliseconds. The standby also watches the daemon's
sign of life, and replaces one that is alive but stuck (stopped, swapped out) before the VMs pay for it.
"""

from __future__ import annotations

import os
import signal
import threading

from vmlockctl import clock
from vmlockctl.daemon.control import (
    DAEMON_LOCK,
    DAEMON_PID,
    STANDBY_LOCK,
    STANDBY_PID,
    daemon_pid,
    standby_pid,
)
from vmlockctl.daemon.supervisor import TICK_SECONDS, Supervisor
from vmlockctl.host.process import identify, is_doomed, name_ourselves, read_stat, stop
from vmlockctl.host.rundir import FileLock, is_locked, read_pid, remove, write_pid
from vmlockctl.host.spawn import reap_children, spawn_daemon
from vmlockctl.log import ERROR, WARNING, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Optional

    from vmlockctl.host.rundir import RunDir

_STUCK_TICKS = 5  # of the standby's own clock: a machine that was paused as a whole is not a stuck daemon
_DEAD_TICKS = 2  # a killed daemon whose lock we do not get at once hangs in the kernel
_STANDBY_RESTART_SECONDS = 2.0
_STANDBY_START_SECONDS = 3.0


def run(run_dir: RunDir, *, grace_seconds: float, foreground: bool) -> None:
    """Be the daemon of ``run_dir``, or its standby until the daemon is gone. Returns when told to stop."""
    run_dir.create()
    os.umask(0o077)
    os.chdir("/")
    name_ourselves("vmlockctl")
    lock = FileLock(run_dir.file(DAEMON_LOCK))
    if not lock.try_acquire() and not _stand_by(run_dir, lock):
        return
    if not lock.is_held or not lock.is_current():
        lock = FileLock(lock.path)
        lock.acquire()
    _Daemon(run_dir, lock, grace_seconds=grace_seconds, foreground=foreground).run()


class _Daemon:
    def __init__(self, run_dir: RunDir, lock: FileLock, *, grace_seconds: float, foreground: bool) -> None:
        self._run_dir = run_dir
        self._lock = lock
        self._foreground = foreground
        self._supervisor = Supervisor(run_dir, grace_seconds=grace_seconds)
        self._stop_asked = False
        self._stop_refused = False
        self._standby_checked = 0.0
        self._standby_spawned = float("-inf")

    def run(self) -> None:
        pid_path = self._run_dir.file(DAEMON_PID)
        write_pid(pid_path, os.getpid())
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        signal.signal(signal.SIGINT, self._on_stop_signal)
        log(f"daemon {os.getpid()} of {self._run_dir.path} runs")
        while self._lock.is_current():
            os.utime(pid_path)  # our sign of life for the standby
            self._keep_standby()
            self._supervisor.tick()
            reap_children()
            if self._stop_asked and self._stopped():
                break
        else:
            log(f"{self._run_dir.path} was removed: the daemon ends", WARNING)
            self._stop_standby()
        log(f"daemon {os.getpid()} ends")
        # A thread that hangs in storage must not keep the process, and with it the lock.
        os._exit(0)

    def _on_stop_signal(self, _number: int, _frame: Optional[FrameType]) -> None:
        self._stop_asked = True
        self._supervisor.watches.wake()

    def _stopped(self) -> bool:
        """Never while a VM relies on us: nobody would renew its lease."""
        if not self._supervisor.has_claims():
            self._stop_standby()
            if self._supervisor.stop():
                return True
        if not self._stop_refused:
            log("asked to stop, but leases are held: stop their VMs first; the daemon stays", WARNING)
        self._stop_refused, self._stop_asked = True, False
        return False

    def _keep_standby(self) -> None:
        if clock.monotonic() - self._standby_checked < _STANDBY_RESTART_SECONDS:
            return
        self._standby_checked = clock.monotonic()
        if not is_locked(self._run_dir.file(STANDBY_LOCK)):
            self._standby_spawned = clock.monotonic()
            spawn_daemon(
                self._run_dir.path if self._run_dir.is_moved else None, detached=not self._foreground
            )

    def _stop_standby(self) -> None:
        # One that is just starting would find our lock free in a moment, and go on without us.
        while clock.monotonic() - self._standby_spawned < _STANDBY_START_SECONDS and not standby_pid(
            self._run_dir
        ):
            clock.sleep(0.02)
        pid = standby_pid(self._run_dir)
        process = identify(pid) if pid else None
        if process is not None:
            stop(process, grace_seconds=0)


def _stand_by(run_dir: RunDir, lock: FileLock) -> bool:
    """Wait until the daemon's lock is ours. False: another standby waits already, or the host is gone."""
    standby = FileLock(run_dir.file(STANDBY_LOCK))
    if not standby.try_acquire():
        log(f"{run_dir.path}: a daemon and its standby run already")
        return False
    write_pid(run_dir.file(STANDBY_PID), os.getpid())
    log(f"standby {os.getpid()} of {run_dir.path} waits")
    waiter = threading.Thread(target=lock.acquire, daemon=True)
    waiter.start()
    seen, unchanged_ticks, dead_ticks = 0, 0, 0
    while not lock.is_held:
        waiter.join(TICK_SECONDS)
        if lock.is_held or not os.path.exists(lock.path):
            break
        sign = _sign_of_life(run_dir)
        unchanged_ticks = unchanged_ticks + 1 if sign == seen else 0
        seen = sign
        if unchanged_ticks >= _STUCK_TICKS:
            _replace_stuck_daemon(run_dir)
            unchanged_ticks = 0
        dead_ticks = dead_ticks + 1 if not lock.is_held and _is_dead_in_the_kernel(run_dir) else 0
        if dead_ticks >= _DEAD_TICKS and not lock.is_held:
            # Killed, but a thread of it hangs in storage, or it is frozen, and it keeps its locks.
            # It will run no instruction of ours again; what it may still write stays protected by
            # the locks of its lockspace and claims, which we wait for. The VMs must not wait.
            remove(lock.path)
    if not os.path.exists(os.path.dirname(lock.path)):
        return False
    log(f"standby {os.getpid()} takes over", WARNING)
    standby.release()
    return True


def _sign_of_life(run_dir: RunDir) -> int:
    try:
        return os.stat(run_dir.file(DAEMON_PID)).st_mtime_ns
    except FileNotFoundError:
        return 0


def _replace_stuck_daemon(run_dir: RunDir) -> None:
    """Kill a daemon that shows no sign of life: its VMs are safer with us than with nobody."""
    pid = daemon_pid(run_dir)
    process = identify(pid) if pid else None
    if process is None:
        return
    log(f"the daemon {pid} shows no sign of life for {_STUCK_TICKS} s: it is replaced", ERROR)
    if not stop(process, grace_seconds=0):
        log(f"the daemon {pid} survives SIGKILL, stuck in the kernel", ERROR)


def _is_dead_in_the_kernel(run_dir: RunDir) -> bool:
    pid = read_pid(run_dir.file(DAEMON_PID))
    stat = read_stat(pid) if pid else None
    if stat is None or not is_locked(run_dir.file(DAEMON_LOCK)):
        return False
    return stat.is_zombie or is_doomed(pid)
