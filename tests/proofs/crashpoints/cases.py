"""One point of one command: a prepared state, the command under the fault, and what must hold after it.

After a crash at any call: what is under its final name is whole and real sanlock reads it, the same command
run again succeeds (or says that its effect is there already, which is looked up on the disk), and another
host acquires within the bound without repair; in one order and in the other. After an error: the exit
code of the table, one line and a hint, no traceback, and all of the above.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.proofs.crashpoints.faults import BUSY, LEASE, NO_SUCH, RUN, Fault, Point
from tests.proofs.crashpoints.world import SETTLE_BOUND_SECONDS, World, check_resource
from tests.support.disk import (
    SECTOR,
    lease_is_free,
    lease_leader,
    lease_owner,
    read_direct,
    resource_name,
    resource_path,
    shared_hosts,
)
from tests.support.programs import Child
from tests.support.systemcalls import Call, Run, run_supervised
from tests.support.vmhost import OUR_COMMAND, VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk.request import Request as OnDiskRequest

_FINDINGS = 1


class Case:
    """What every point does; a command fills in the rest."""

    name: ClassVar[str]
    codes: ClassVar[frozenset[int]] = frozenset()  # that this command also ends with when a call fails
    done: ClassVar[frozenset[int]] = frozenset({0})  # that it ends with when it did what it should
    is_message: ClassVar[bool] = False  # lost, it is heeded by nobody, and is sent again; nothing rests on it
    outlives_faults: ClassVar[bool] = False  # it goes on after an error, so one that lasts has no end for it
    host: VmHost
    slowest_seconds = 0.0

    @staticmethod
    def counts(_call: Call) -> bool:
        """Which calls are the points: all of them."""
        return True

    @property
    def arguments(self) -> list[str]:
        raise NotImplementedError

    @property
    def places(self) -> Mapping[str, str]:
        assert self.host.lease_dir is not None
        return {LEASE: str(self.host.lease_dir), RUN: str(self.host.run_dir)}

    def prepare(self) -> None:
        raise NotImplementedError

    def has_effect(self) -> bool:
        """Whether the disk shows what exit 0 promises."""
        raise NotImplementedError

    def check_area(self) -> None:
        raise NotImplementedError

    def recover(self, *, again_first: bool) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def meet(self, point: Point) -> Run:
        """Run the command under the fault and judge how it ended."""
        run = run_supervised(
            [*OUR_COMMAND, *self.arguments],
            environment=self.host.environment,
            places=self.places,
            decide=point,
        )
        self.judge(run, point)
        self.check_area()
        return run

    def judge(self, run: Run, point: Point) -> None:
        assert "Traceback" not in run.stderr, run.stderr
        if point.hit is None or run.returncode == 0:
            assert run.returncode in self.done, f"exit {run.returncode} without a fault: {run.stderr}"
            told = self.is_message and point.hit is not None and point.fault.name == "lost"
            assert told or self.has_effect(), f"exit 0, and no effect on the disk: {run.stdout}{run.stderr}"
        elif point.fault.name == "kill":
            assert run.returncode == -9, f"exit {run.returncode}, expected to be killed: {run.stderr}"
        else:
            self.judge_error(run, point.fault)

    def judge_error(self, run: Run, fault: Fault) -> None:
        expected = fault.codes | self.codes
        assert run.returncode in expected, f"exit {run.returncode}, expected {sorted(expected)}: {run.stderr}"
        lines = run.stderr.splitlines()
        told = [line for line in lines if line.startswith("vmlockctl: ")]
        assert len(told) == 1 or run.returncode in self.codes, run.stderr

    def note_seconds(self, seconds: float) -> None:
        self.slowest_seconds = max(self.slowest_seconds, seconds)


class LeaseCase(Case):
    """A command on one disk of its own, in a lockspace whose hosts all live."""

    shared: ClassVar[bool] = False

    def __init__(self, world: World, number: int) -> None:
        self.world, self.host, self.number = world, world.host, number
        # A name of its own: what a daemon remembers of the last point's lease is not about this one.
        self.disk = world.directory / f"{self.name}.{number:04}.img"
        self.holder = Child(["sleep", "infinity"])

    def prepare(self) -> None:
        self.disk.write_bytes(bytes(4096))

    def check_area(self) -> None:
        check_resource(self.world.lease_dir, self.disk)

    def is_ours(self) -> bool:
        if self.shared:
            return 1 in shared_hosts(self.world.lease_dir, self.disk)
        return lease_owner(self.world.lease_dir, self.disk) == 1

    def is_free(self) -> bool:
        return lease_is_free(self.world.lease_dir, self.disk)

    def is_settled(self) -> bool:
        return self.is_free() and not self._claim.exists()

    @property
    def _claim(self) -> Path:
        return self.host.claims_dir / f"{resource_name(self.disk)}.json"

    def _acquire(self) -> None:
        options = ["--shared"] if self.shared else []
        result = self.host.acquire(self.holder.pid, self.disk, options=options)
        assert result.returncode == 0, result
        assert self.is_ours()

    def run_again(self) -> None:
        result = self.host.call(*self.arguments)
        assert result.returncode in self.done, f"run again: {result}"
        assert self.has_effect(), f"run again, and no effect: {result}"

    def end_holder(self) -> None:
        """The VM ends: the daemon gives back whatever there is."""
        self.holder.kill()

    def recover(self, *, again_first: bool) -> None:
        if again_first:
            self.run_again()
        self.end_holder()
        with_sanlock = self.number % 4 < 2
        self.note_seconds(self.world.other_acquires(self.disk, with_sanlock=with_sanlock))
        if not again_first:
            self.holder = Child(["sleep", "infinity"])
            self.run_again()
            self.end_holder()
        wait_for("the claim to be settled", self.is_settled, within=SETTLE_BOUND_SECONDS)

    def close(self) -> None:
        self.holder.kill()
        with contextlib.suppress(AssertionError):
            wait_for("the claim to be settled", self.is_settled, within=SETTLE_BOUND_SECONDS)
        self.disk.unlink(missing_ok=True)
        resource_path(self.world.lease_dir, self.disk).unlink(missing_ok=True)
        for left in self.world.lease_dir.glob(f".{resource_name(self.disk)}.*"):
            left.unlink()
        for left in self.host.claims_dir.glob(f"{resource_name(self.disk)}.*"):
            left.unlink(missing_ok=True)


class Acquire(LeaseCase):
    name = "acquire"

    @property
    def arguments(self) -> list[str]:
        options = ["--shared"] if self.shared else []
        return ["acquire", "--pid", str(self.holder.pid), *options, str(self.disk)]

    def has_effect(self) -> bool:
        return self.is_ours()

    def run_again(self) -> None:
        super().run_again()
        with contextlib.closing(_Standing()) as other:
            result = self.world.other.acquire(other.pid, self.disk)
            assert result.returncode == BUSY, f"held by host 1, and another host gets: {result}"


class AcquireShared(Acquire):
    name = "acquire-shared"
    shared = True


class Release(LeaseCase):
    name = "release"

    def prepare(self) -> None:
        super().prepare()
        self._acquire()

    @property
    def arguments(self) -> list[str]:
        return ["release", "--pid", str(self.holder.pid), str(self.disk)]

    def has_effect(self) -> bool:
        return self.is_free()

    def run_again(self) -> None:
        result = self.host.call(*self.arguments)
        assert result.returncode in (0, NO_SUCH), f"run again: {result}"
        assert self.is_free(), f"run again: {result.returncode}, and the lease is not free: {result}"


class ReleaseShared(Release):
    name = "release-shared"
    shared = True


class ReleaseToShared(LeaseCase):
    name = "release-to-shared"

    def prepare(self) -> None:
        super().prepare()
        self._acquire()

    @property
    def arguments(self) -> list[str]:
        return ["release", "--to-shared", "--pid", str(self.holder.pid), str(self.disk)]

    def has_effect(self) -> bool:
        return shared_hosts(self.world.lease_dir, self.disk) == [1] and not lease_owner(
            self.world.lease_dir, self.disk
        )

    def run_again(self) -> None:
        """After another host had it, it is not ours to convert; not before."""
        result = self.host.call(*self.arguments)
        if result.returncode == 0:
            assert self.has_effect(), f"run again, exit 0 and no effect: {result}"
        else:
            assert result.returncode == NO_SUCH, f"run again: {result}"
            assert self.is_free(), f"run again: {result}"


class AcquireConverts(Acquire):
    """From shared to exclusive."""

    name = "acquire-from-shared"

    def prepare(self) -> None:
        super().prepare()
        result = self.host.acquire(self.holder.pid, self.disk, options=["--shared"])
        assert result.returncode == 0, result


class Request(LeaseCase):
    """Asked of host 2, whose daemon asks the holder to end."""

    name = "request"
    is_message = True
    force: ClassVar[bool] = False

    def prepare(self) -> None:
        super().prepare()
        result = self.world.other.acquire(self.holder.pid, self.disk)
        assert result.returncode == 0, result

    @property
    def arguments(self) -> list[str]:
        return ["request", *(["--force"] if self.force else []), str(self.disk)]

    def has_effect(self) -> bool:
        """The request stands, or it was heeded."""
        record = OnDiskRequest.from_bytes(
            read_direct(resource_path(self.world.lease_dir, self.disk), SECTOR, SECTOR)
        )
        leader = lease_leader(self.world.lease_dir, self.disk)
        assert leader is not None
        return record.lver > 0 or leader.is_free

    def recover(self, *, again_first: bool) -> None:
        if again_first:
            self.run_again()
            wait_for("the request to be heeded", lambda: not self.holder.running, within=SETTLE_BOUND_SECONDS)
        self.end_holder()
        self.note_seconds(self.world.other_acquires(self.disk, with_sanlock=self.number % 4 < 2))
        if not again_first:
            assert self.host.call(*self.arguments).returncode == 0, "run again"
        wait_for("the claim to be settled", self.is_settled, within=SETTLE_BOUND_SECONDS)


class RequestForce(Request):
    name = "request-force"
    force = True


class RunCommand(LeaseCase):
    name = "run"

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.evidence = world.directory / "ran"

    @property
    def arguments(self) -> list[str]:
        return ["run", "--disk", str(self.disk), "--", "/bin/sh", "-c", f"echo ran > {self.evidence}"]

    def prepare(self) -> None:
        super().prepare()
        self.evidence.unlink(missing_ok=True)

    def has_effect(self) -> bool:
        """The command ran, and the lease had been ours by then: its version has gone on."""
        leader = lease_leader(self.world.lease_dir, self.disk)
        return self.evidence.exists() and leader is not None and leader.lver >= 1 and leader.owner_id == 1

    def judge_error(self, run: Run, fault: Fault) -> None:
        super().judge_error(run, fault)
        assert not self.evidence.exists(), f"exit {run.returncode}, and the command ran"

    def run_again(self) -> None:
        self.evidence.unlink(missing_ok=True)
        super().run_again()


class CheckOrphans(LeaseCase):
    """A lease of our own generation whose process ended, and whose claim was lost before."""

    name = "check-orphans-fix"
    codes = frozenset({_FINDINGS})
    done = frozenset({0, _FINDINGS})  # it may have found a QEMU that is not of this proof
    again: ClassVar[frozenset[int]] = frozenset()  # that it ends with, too, where it is run again

    def prepare(self) -> None:
        super().prepare()
        self._acquire()
        self._claim.unlink()
        self.end_holder()

    @property
    def arguments(self) -> list[str]:
        return ["check-orphans", "--fix", "--yes"]

    def has_effect(self) -> bool:
        return self.is_free()

    def recover(self, *, again_first: bool) -> None:
        super().recover(again_first=True)  # before it is run again it is an orphan, that is the point

    def run_again(self) -> None:
        """What the dead command claimed for itself it leaves to the daemon, and says so: then once more."""
        deadline = time.monotonic() + SETTLE_BOUND_SECONDS
        while True:
            result = self.host.call(*self.arguments)
            assert result.returncode in self.done | self.again, f"run again: {result}"
            if self.is_free():
                return
            assert time.monotonic() < deadline, f"run again, and the lease is not free: {result}"
            time.sleep(0.2)


class CheckOrphansDead(CheckOrphans):
    """A lease of a host that is gone: the protocol takes it over, and it is released."""

    name = "check-orphans-fix-dead"

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.disk = world.dead_disk

    def prepare(self) -> None:
        self.world.put_dead_owners_lease()
        self.disk.write_bytes(bytes(4096))

    def recover(self, *, again_first: bool) -> None:
        LeaseCase.recover(self, again_first=again_first)


class ReleaseEvidence(CheckOrphansDead):
    """The same by name. Again, it is nobody's any more, or still what the dead command claimed."""

    name = "release-evidence"
    codes = frozenset()
    done = frozenset({0})
    again = frozenset({NO_SUCH, BUSY})

    @property
    def arguments(self) -> list[str]:
        return ["release", "--evidence", str(self.disk)]


class CheckOrphansPrune(CheckOrphans):
    """The lease file of a disk that is gone; when the disk comes back, whoever is first makes a new one."""

    name = "check-orphans-prune"

    def prepare(self) -> None:
        LeaseCase.prepare(self)
        self._acquire()
        assert self.host.release(self.holder.pid, self.disk).returncode == 0
        self.disk.unlink()

    @property
    def arguments(self) -> list[str]:
        return ["check-orphans", "--prune", "--yes"]

    def has_effect(self) -> bool:
        return not resource_path(self.world.lease_dir, self.disk).exists()

    def recover(self, *, again_first: bool) -> None:
        if again_first:
            self.run_again()
        self.disk.write_bytes(bytes(4096))
        LeaseCase.recover(self, again_first=False)

    def run_again(self) -> None:
        """What the dead command claimed the daemon settles first."""
        self.disk.unlink(missing_ok=True)
        wait_for("the claim to be settled", lambda: not self._claim.exists(), within=SETTLE_BOUND_SECONDS)
        LeaseCase.run_again(self)


class _Standing(Child):
    def __init__(self) -> None:
        super().__init__(["sleep", "infinity"])

    def close(self) -> None:
        self.kill()


LEASE_CASES: tuple[type[LeaseCase], ...] = (
    Acquire, AcquireShared, AcquireConverts, Release, ReleaseShared, ReleaseToShared, RunCommand,
    CheckOrphans, CheckOrphansDead, CheckOrphansPrune, ReleaseEvidence, Request, RequestForce,
)  # fmt: skip
