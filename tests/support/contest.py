"""Real hosts around one lease: sanlock daemons and hosts of ours in one lockspace, a contender on each."""

from __future__ import annotations

import selectors
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Optional, Union

from tests.support.contender import ANSWER_SECONDS, Contender, Outcome, Turn
from tests.support.counter import Counter
from tests.support.disk import (
    lease_is_free,
    lockspace_path,
    read_delta,
    resource_name,
    resource_path,
)
from tests.support.leases import Setup
from tests.support.sanlockhost import SanlockHost, direct_init_lockspace, direct_init_resource
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for

MIB = 1024 * 1024


class Contest:
    """``sanlock`` daemons have the first host ids, ``ours`` the next. A context manager."""

    def __init__(self, directory: Path, *, sanlock: int, ours: int, none: int = 0) -> None:
        self.directory = directory
        self.lease_dir = directory / "leases"
        self.disk = directory / "disk.img"
        self.counter = directory / "counter"
        self.contenders: list[Contender] = []
        self.grants: Tally[str] = Tally()  # exclusive, by name
        self.shared: Tally[str] = Tally()
        self.handovers = self.refusals = self.turns = 0
        self.longest_wait = 0.0
        self.findings: list[str] = []
        self._counts = (sanlock, ours, none)
        self._exit = ExitStack()

    # -- beginning and end -------------------------------------------------------------------------

    def __enter__(self) -> Contest:
        try:
            self._begin(*self._counts)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    def _begin(self, sanlock: int, ours: int, none: int) -> None:
        self.disk.parent.mkdir(parents=True, exist_ok=True)
        self.disk.write_bytes(bytes(MIB))
        Counter.create(self.counter)
        theirs = [SanlockHost(self.directory / f"sanlock{n}", f"sanlock{n}") for n in range(1, sanlock + 1)]
        mine = [VmHost(self.directory / f"vmhost{n}", f"vmhost{n}") for n in range(1, ours + 1)]
        hosts: list[Union[SanlockHost, VmHost]] = [*theirs, *mine]
        for host in hosts:
            self._exit.callback(host.close)
        for daemon in theirs:
            daemon.start()
        if theirs:
            self._format_with_sanlock()
        elif mine:
            mine[0].create(self.lease_dir)
        joining = [(number, host) for number, host in enumerate(hosts, start=1) if theirs or number > 1]
        with ThreadPoolExecutor(max(1, len(joining))) as pool:
            for done in [pool.submit(host.join, self.lease_dir, number) for number, host in joining]:
                done.result()
        self._wait_until_all_see_all(theirs, mine)
        for host in hosts:
            self._add("sanlock" if isinstance(host, SanlockHost) else "ours", host.name, host.run_dir)
        for number in range(1, none + 1):
            self._add("none", f"none{number}", self.directory)

    def _format_with_sanlock(self) -> None:
        self.lease_dir.mkdir()
        for path in (lockspace_path(self.lease_dir), resource_path(self.lease_dir, self.disk)):
            path.write_bytes(bytes(MIB))
            path.chmod(0o600)
        direct_init_lockspace(lockspace_path(self.lease_dir), io_timeout=1)
        direct_init_resource(resource_path(self.lease_dir, self.disk), resource=resource_name(self.disk))

    def _wait_until_all_see_all(self, theirs: Sequence[SanlockHost], mine: Sequence[VmHost]) -> None:
        """Before its first look at another host, a daemon cannot say "live", and waits instead."""
        everybody = set(range(1, len(theirs) + len(mine) + 1))

        def seen_by_sanlock(daemon: SanlockHost) -> bool:
            return {host for host, seen in daemon.hosts().items() if seen.state == "LIVE"} >= everybody

        def seen_by_us(host: VmHost) -> bool:
            return {h["host_id"] for h in host.status()["hosts"] if h["state"] == "live"} >= everybody

        for daemon in theirs:
            what = f"{daemon.name} to see all hosts live"
            wait_for(what, partial(seen_by_sanlock, daemon), within=30, every_seconds=0.2)
        for host in mine:
            what = f"{host.name} to see all hosts live"
            wait_for(what, partial(seen_by_us, host), within=30, every_seconds=0.2)

    def _add(self, kind: str, name: str, run_dir: Path) -> None:
        places = (run_dir, self.lease_dir, self.disk, self.counter)
        contender = Contender(Setup(kind, name, *map(str, places)), self.directory / f"{name}.log")
        self._exit.callback(contender.close)
        self.contenders.append(contender)

    # -- turns ---------------------------------------------------------------------------------------

    def one(self, contender: Contender, turn: Turn) -> Outcome:
        """One turn while nobody else has one."""
        contender.begin(turn)
        [done] = self._ready([contender])
        return self._taken(done)

    def all_at_once(
        self, next_turn: Callable[[Contender], Optional[Turn]], on_outcome: Callable[[Outcome], None]
    ) -> None:
        """Everybody at once, each again as soon as its turn is over, until ``next_turn`` says None."""
        busy: list[Contender] = []

        def begin(contender: Contender) -> None:
            if (turn := next_turn(contender)) is not None:
                contender.begin(turn)
                busy.append(contender)

        for contender in self.contenders:
            begin(contender)
        while busy:
            for contender in self._ready(busy):
                busy.remove(contender)
                on_outcome(self._taken(contender))
                begin(contender)

    def _ready(self, busy: Sequence[Contender]) -> list[Contender]:
        with selectors.DefaultSelector() as selector:
            for contender in busy:
                selector.register(contender.fileno(), selectors.EVENT_READ, contender)
            ready = [key.data for key, _ in selector.select(ANSWER_SECONDS)]
        names = ", ".join(contender.name for contender in busy)
        assert ready, f"no answer within {ANSWER_SECONDS:.0f} s from {names}; see {self.directory}"
        return ready

    def _taken(self, contender: Contender) -> Outcome:
        outcome, name = contender.outcome(), contender.name
        self.turns += 1
        self.grants[name] += outcome.exclusive
        self.shared[name] += outcome.shared
        self.handovers += outcome.handovers
        self.refusals += outcome.refusals
        self.longest_wait = max(self.longest_wait, outcome.waited_seconds)
        self.findings += outcome.wrong
        if outcome.error:
            self.findings.append(f"{name}: {outcome.error}")
        return outcome

    # -- the verdict -----------------------------------------------------------------------------------

    @property
    def lost_updates(self) -> int:
        """Exclusive grants that the counter does not show."""
        return sum(self.grants.values()) - Counter(self.counter, kind="", name="").read().value

    def check(self) -> None:
        """At the end, with nobody's turn: nothing was lost, and nobody holds anything."""
        if self.lost_updates:
            self.findings.append(f"{self.lost_updates} updates of the counter were lost")
        if resource_path(self.lease_dir, self.disk).exists() and not lease_is_free(self.lease_dir, self.disk):
            self.findings.append("the lease is not free at the end")
        for number in range(1, self._counts[0] + self._counts[1] + 1):
            if (generation := read_delta(self.lease_dir, number).owner_generation) != 1:
                self.findings.append(f"host id {number} lost its host lease: generation {generation}")
