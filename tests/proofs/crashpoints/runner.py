"""Goes through every point of every command: the fault befalls call 1, 2, 3 ... until there is no such call.

Points are shared out among threads. A worker for commands on a lease has a lockspace with three hosts of its
own and works on one point at a time, so that the calls of a command are the same each time; a command that
joins or leaves has a lockspace for each point, and waits most of the time.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

from tests.proofs.crashpoints.cases import LEASE_CASES, Case, LeaseCase
from tests.proofs.crashpoints.daemoncase import DaemonCase
from tests.proofs.crashpoints.faults import FAULTS, Fault, Point
from tests.proofs.crashpoints.hostcases import HOST_CASES, HostCase
from tests.proofs.crashpoints.world import World
from tests.support.systemcalls import Call

AnyCase = Union[type[LeaseCase], type[HostCase]]

CASES: dict[str, AnyCase] = {case.name: case for case in (*LEASE_CASES, *HOST_CASES, DaemonCase)}

# Workers for commands that wait, for each that does not.
WAITING_WORKERS = 3


class Violation(NamedTuple):
    command: str
    fault: str
    number: int
    call: Optional[Call]
    text: str

    def __str__(self) -> str:
        return f"{self.command}: {self.fault} at point {self.number} ({self.call}): {self.text}"


class Enumeration:
    """The points of one command and one fault: handed out in order until one is not reached."""

    def __init__(self, case: AnyCase, fault: Fault, *, both_orders: bool) -> None:
        self.case, self.fault = case, fault
        self.violations: list[Violation] = []
        self.slowest_seconds = 0.0
        self.reached: set[int] = set()
        self._both_orders = both_orders
        self._handed_out = 0
        self._end: Optional[int] = None
        self._mutex = threading.Lock()

    def next(self) -> Optional[tuple[int, list[bool]]]:
        """A point, and the orders of recovery that are to be tried after it."""
        with self._mutex:
            if self._end is not None and self._handed_out + 1 >= self._end:
                return None
            self._handed_out += 1
            number = self._handed_out
        return number, [True, False] if self._both_orders else [number % 2 == 0]

    def note(self, point: Point, case: Case, failure: Optional[str]) -> None:
        with self._mutex:
            if failure is not None:
                name = self.case.name
                self.violations.append(Violation(name, self.fault.name, point.number, point.hit, failure))
            self.slowest_seconds = max(self.slowest_seconds, case.slowest_seconds)
            if point.hit is not None:
                self.reached.add(point.number)
            elif failure is None:
                self._end = min(point.number, self._end or point.number)

    @property
    def count(self) -> Optional[int]:
        """How many points there are; None until the one after the last was tried."""
        return None if self._end is None else self._end - 1

    @property
    def is_complete(self) -> bool:
        """Every call up to the last was met: the point after it was tried and not reached."""
        return self._end is not None and self.reached >= set(range(1, self._end))


class Runner:
    """Runs enumerations; ``on_point`` is told after each point."""

    def __init__(
        self, directory: Path, *, jobs: int, on_point: Callable[[Enumeration], None] = lambda _done: None
    ) -> None:
        self._directory, self._jobs, self._on_point = directory, jobs, on_point
        self._failures: list[str] = []

    def run(self, enumerations: Sequence[Enumeration]) -> None:
        leases = [each for each in enumerations if issubclass(each.case, LeaseCase)]
        hosts = [each for each in enumerations if issubclass(each.case, HostCase)]
        threads = [
            threading.Thread(target=self._guarded, args=(work, todo, index))
            for work, todo, count in (
                (self._work_on_leases, leases, self._jobs),
                (self._work_on_hosts, hosts, self._jobs * WAITING_WORKERS),
            )
            for index in range(count if todo else 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise AssertionError("\n".join(self._failures))

    def _guarded(self, work: Callable[..., None], todo: list[Enumeration], index: int) -> None:
        try:
            work(todo, index)
        except Exception:  # noqa: BLE001 - told by the thread that waits for this one
            self._failures.append(traceback.format_exc())

    def _work_on_leases(self, todo: list[Enumeration], index: int) -> None:
        directory = self._directory / f"world{index}"
        directory.mkdir()
        world = World(directory)
        try:
            world.start()
            for enumeration in todo:
                self._enumerate(enumeration, lambda number, case=enumeration.case: case(world, number))
        finally:
            world.close()

    def _work_on_hosts(self, todo: list[Enumeration], index: int) -> None:
        for enumeration in todo:
            place = f"{enumeration.case.__name__}.{enumeration.fault.name}.{index}"

            def make(number: int, case: AnyCase = enumeration.case, place: str = place) -> Case:
                directory = self._directory / f"{place}.{number}"
                directory.mkdir()
                return case(directory)  # type: ignore[call-arg,arg-type]

            self._enumerate(enumeration, make)

    def _enumerate(self, enumeration: Enumeration, make: Callable[[int], Case]) -> None:
        while (handed := enumeration.next()) is not None:
            number, orders = handed
            for again_first in orders:
                self._meet(enumeration, make(number), number, again_first=again_first)
            self._on_point(enumeration)

    @staticmethod
    def _meet(enumeration: Enumeration, case: Case, number: int, *, again_first: bool) -> None:
        point = Point(enumeration.fault, number, only=enumeration.case.counts)
        failure = None
        try:
            case.prepare()
            case.meet(point)
            case.recover(again_first=again_first)
        except AssertionError as error:
            failure = str(error)
        except Exception:  # noqa: BLE001 - a finding like any other
            failure = traceback.format_exc()
        finally:
            case.close()
        enumeration.note(point, case, failure)


def enumerations(commands: Sequence[str], faults: Sequence[str], *, both_orders: bool) -> list[Enumeration]:
    """For every command and every fault that is meant for it."""
    return [
        Enumeration(CASES[command], FAULTS[fault], both_orders=both_orders)
        for command in commands
        for fault in faults
        if not (FAULTS[fault].lasts and CASES[command].outlives_faults)
    ]
