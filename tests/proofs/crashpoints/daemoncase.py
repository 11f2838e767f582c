"""The daemon itself under fault: its renewals, and its settling of what others left.

It finds three claims: one of a process that runs, one of a process that ended, and one of a command that died
when the lease was its own on the disk and the claim did not say so yet. It starts no standby, which would be
under the filter too: this proof holds ``standby.lock``, as a standby would.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Optional

from tests.proofs.crashpoints.faults import BUSY, LEASE, Point, changes
from tests.proofs.crashpoints.hostcases import HostCase
from tests.proofs.crashpoints.world import SETTLE_BOUND_SECONDS, check_resource
from tests.support.disk import LOCKSPACE_NAME, lease_is_free, lease_owner, read_delta, resource_name
from tests.support.programs import Child, kill_together
from tests.support.systemcalls import KILL, Call, Decision, Run, run_supervised
from tests.support.vmhost import OUR_COMMAND
from tests.support.waiting import wait_for
from vmlockctl.host.rundir import FileLock
from vmlockctl.lease.timeouts import id_renewal_fail_seconds

# Time enough to renew twice and to settle, on a busy machine.
_GOAL_SECONDS = 30.0
_IO_TIMEOUT = 2
_FAIL_SECONDS = id_renewal_fail_seconds(_IO_TIMEOUT)
_RECORDS_OF_A_CLAIM = 2  # acquiring, held


class DaemonCase(HostCase):
    name = "daemon"
    outlives_faults = True

    @staticmethod
    def counts(call: Call) -> bool:
        """What it does as long as it runs has no end: looking at its records, touching its pid file."""
        return (call.place == LEASE or changes(call)) and call.name != "utimensat"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.torn, self.ended, self.kept = self.disk, directory / "ended.img", directory / "kept.img"
        for disk in (self.ended, self.kept):
            disk.write_bytes(bytes(4096))
        self.holder = Child(["sleep", "infinity"])
        self._standby_lock = FileLock(str(self.host.run_dir / "standby.lock"))
        self._run: Optional[Run] = None
        self._failure: Optional[BaseException] = None
        self._joining = threading.Thread(target=self.other.join, args=(self.lease_dir, 2))

    @property
    def arguments(self) -> list[str]:
        return ["daemon"]

    def prepare(self) -> None:
        """A daemon that renews until everything is there, and is killed with its standby then.

        The other host has joined when it is needed; until then its waiting costs no time.
        """
        self.host.lease_dir, self.host.host_id = self.lease_dir, 1
        self.host.succeed(
            "init-lockspace", self.lease_dir, "--io-timeout", str(_IO_TIMEOUT), "--host-id", "1",
            "--host-name", self.host.name,
        )  # fmt: skip
        self._joining.start()
        ended = Child(["sleep", "infinity"])
        for disk, holder in ((self.kept, self.holder), (self.ended, ended)):
            result = self.host.acquire(holder.pid, disk)
            assert result.returncode == 0, result
        self.host.crash()
        lock = FileLock(str(self.host.run_dir / "daemon.lock"))
        lock.acquire()
        try:
            self._tear()
            ended.kill()
        finally:
            lock.release(unlink=True)
        assert self._standby_lock.try_acquire(), "somebody holds standby.lock"

    def _tear(self) -> None:
        """A command that dies between its commit on the disk and its claim that says so."""
        renamed = 0

        def decide(_number: int, call: Call) -> Decision:
            nonlocal renamed
            renamed += call.name == "rename"
            return KILL if renamed == _RECORDS_OF_A_CLAIM else None

        run = run_supervised(
            [*OUR_COMMAND, "acquire", "--pid", str(self.holder.pid), str(self.torn)],
            environment=self.host.environment, places=self.places, decide=decide,
        )  # fmt: skip
        assert lease_owner(self.lease_dir, self.torn) == 1, run
        assert self._claim(self.torn).exists(), run

    def _claim(self, disk: Path) -> Path:
        return self.host.claims_dir / f"{resource_name(disk)}.json"

    def has_effect(self) -> bool:
        return self._is_settled()

    def _is_settled(self) -> bool:
        """What nobody uses is free, on the disk first and then in our records."""
        return not any(
            self._claim(disk).exists() or not lease_is_free(self.lease_dir, disk)
            for disk in (self.torn, self.ended)
        )

    def meet(self, point: Point) -> Run:
        """Run the daemon until it is killed, or has settled everything and renewed once more."""
        thread = threading.Thread(target=self._supervise, args=(point,))
        thread.start()
        try:
            self._wait_for_goal(thread, point)
        finally:
            if self.host.daemon_pid:
                kill_together([self.host.daemon_pid])
            thread.join()
        self._raise_failure()
        assert self._run is not None
        assert "Traceback" not in self._run.stderr, self._run.stderr
        assert "internal error" not in self._run.stderr, self._run.stderr
        self.check_area()
        for disk in (self.torn, self.ended, self.kept):
            assert check_resource(self.lease_dir, disk)
        return self._run

    def _supervise(self, point: Point) -> None:
        try:
            self._run = run_supervised(
                [*OUR_COMMAND, *self.arguments],
                environment=self.host.environment,
                places=self.places,
                decide=point,
                timeout_seconds=_GOAL_SECONDS * 2,
            )
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wait_for_goal(self, thread: threading.Thread, point: Point) -> None:
        wait_for(
            f"a daemon that settles after {point.hit}",
            lambda: not thread.is_alive() or self._is_settled(),
            within=_GOAL_SECONDS,
            every_seconds=0.05,
        )
        before = read_delta(self.lease_dir, 1)
        wait_for(
            f"a renewal after {point.hit}",
            lambda: not thread.is_alive() or read_delta(self.lease_dir, 1) != before,
            within=_GOAL_SECONDS,
            every_seconds=0.05,
        )
        if not thread.is_alive() and point.fault.name != "kill":
            # One that cannot begin says why; one that runs goes on. Here it has ended, so it is the former.
            thread.join()
            self._raise_failure()
            assert self._run is not None
            self.judge_error(self._run, point.fault)

    def recover(self, *, again_first: bool) -> None:
        """A daemon that is started in time goes on: same generation, no process stopped."""
        del again_first  # there is no other host before there is a daemon: it is the lockspace's first
        self._standby_lock.release(unlink=True)
        record = json.loads((self.host.run_dir / LOCKSPACE_NAME / "host.json").read_text())
        daemon = self.host.start("daemon", log="daemon.log")
        try:
            started = time.monotonic()
            wait_for("the daemon", lambda: self.host.daemon_pid, within=SETTLE_BOUND_SECONDS)
            in_time = time.clock_gettime(time.CLOCK_BOOTTIME) - record["renewed_at"] < _FAIL_SECONDS - 1
            wait_for("the claims to be settled", self._is_settled, within=SETTLE_BOUND_SECONDS)
            self.note_seconds(time.monotonic() - started)
            if in_time:
                self._check_continued()
            self._joining.join()
            self.acquire_elsewhere()
            if in_time:
                assert self.other.acquire(self.holder.pid, self.kept).returncode == BUSY, "two owners"
        finally:
            daemon.kill()

    def _check_continued(self) -> None:
        log = (self.host.run_dir / "daemon.log").read_text()
        assert self.host.generation == 1, f"another generation: {log}"
        assert self.holder.running, f"a process with a good lease was stopped: {log}"
        assert lease_owner(self.lease_dir, self.kept) == 1, log

    def close(self) -> None:
        self._standby_lock.release()
        self.holder.kill()
        if self._joining.is_alive():
            self._joining.join()
        super().close()
