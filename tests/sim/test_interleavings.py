"""Small scenes under every order of their I/Os: never two owners, and the lease can always be had afterwards.

The state of a scene is the sectors and what every procedure has been told; the explorer follows each
state once. What it cannot show (slow writes, crashes in mid-air, many rounds) is in ``test_simulation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import pytest

from tests.sim.scene import NOW, NUM_HOSTS, Scene, seen_live, seen_silent
from tests.support.memory import (
    CRASH,
    CRASH_AFTER,
    ERROR,
    ERROR_LANDED,
    Fault,
    Host,
    Simulation,
    Task,
    explore,
    fail_at,
)
from vmlockctl.errors import ContentionError, LeaseLost, OnDiskError, StorageError, VmlockctlError
from vmlockctl.lease import ballot
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.resource import Claimant
from vmlockctl.lease.steps import Wait, WriteSector
from vmlockctl.ondisk.dblock import MAX_MBAL, Dblock

pytestmark = pytest.mark.busy

LIVE = {host_id: seen_live(host_id, NOW) for host_id in range(1, NUM_HOSTS + 1)}
EXCLUSIVE, SHARED = "EX", "SH"


class _Half:
    """A back-off that is always the same: the state of a scene then says what comes next."""

    def random(self) -> float:
        return 0.5


class Contest:
    """Hosts that acquire and release the same lease; two owners at once end it."""

    def __init__(self, choose: Any) -> None:
        self.scene = Scene(choose=choose)
        self.scene.sim.random = _Half()  # type: ignore[assignment]
        for host_id in range(1, NUM_HOSTS + 1):
            self.scene.put_delta(host_id)
        self.holders: dict[int, str] = {}
        self.grants: list[tuple[int, int]] = []  # (host id, lver)
        self.refusals: list[VmlockctlError] = []

    def enter(self, host_id: int, *rounds: str, **options: Any) -> None:
        self.scene.start(host_id, self.contender(host_id, rounds), **options)

    def contender(self, host_id: int, rounds: tuple[str, ...]) -> Any:
        scene, claimant = self.scene, self.scene.claimant(host_id, observations=LIVE)
        for mode in rounds:
            try:
                held = yield from acquire(claimant, scene.resource, shared=mode == SHARED)
            except VmlockctlError as error:
                self.refusals.append(error)
                yield from self.giving_back(retract(claimant, scene.resource), claimant)
                continue
            self.grant(host_id, mode, held.leader.lver)
            yield Wait(0.25, "the VM runs")
            del self.holders[host_id]
            yield from self.giving_back(
                release(claimant, scene.resource, lver=held.leader.lver, shared=held.shared), claimant
            )

    def giving_back(self, procedure: Any, claimant: Claimant) -> Any:
        """What fails half way is retracted, again and again until the storage answers."""
        try:
            yield from procedure
        except StorageError:
            yield from self.giving_back(retract(claimant, self.scene.resource), claimant)

    def grant(self, host_id: int, mode: str, lver: int) -> None:
        together = {**self.holders, host_id: mode}
        assert len(together) == 1 or set(together.values()) == {SHARED}, f"held by {together}"
        self.holders = together
        if mode == EXCLUSIVE:
            assert all(lver > earlier for _, earlier in self.grants), f"version {lver} after {self.grants}"
        self.grants.append((host_id, lver))

    def check(self, *, damage: bool = False) -> None:
        """At the end: records verify, nothing unexpected was raised, and a host alone gets the lease."""
        for task in self.scene.sim.tasks:
            assert task.done
            if task.error is not None:
                raise task.error
        for error in self.refusals:
            assert isinstance(error, ContentionError), f"{type(error).__name__}: {error}"
        self.scene.verify_area()
        self.alone(4)

    def alone(self, host_id: int, attempts: int = 3, rows: Optional[dict[int, Any]] = None) -> None:
        """A host acquires within a bound when nobody else acts (first a void value may have to go)."""
        claimant = self.scene.claimant(host_id, observations=rows or LIVE)
        before = len(self.scene.sim.ios)
        for _ in range(attempts):
            try:
                held = self.scene.run(host_id, acquire(claimant, self.scene.resource))
            except ContentionError:
                self.scene.run(host_id, retract(claimant, self.scene.resource))
                continue
            assert held.leader.owner == (host_id, 1)
            assert len(self.scene.sim.ios) - before <= 40
            return
        raise AssertionError(f"nobody holds the lease, and host {host_id} cannot acquire it")


def every_order(enter: Callable[[Contest], object]) -> tuple[int, set[int]]:
    """Explore a contest; return the count of runs, and who was granted the lease in any of them."""
    contests: list[Contest] = []
    granted: set[int] = set()

    def scene(choose: Any) -> Simulation:
        contests[:] = [Contest(choose)]
        enter(contests[-1])
        return contests[-1].scene.sim

    def check(sim: Simulation) -> None:
        granted.update(host_id for host_id, _ in contests[-1].grants)
        contests[-1].check()

    return explore(scene, check), granted


@pytest.mark.parametrize(
    "modes",
    [
        ((EXCLUSIVE,), (EXCLUSIVE,)),
        ((EXCLUSIVE,), (SHARED,)),
        ((EXCLUSIVE, EXCLUSIVE), (EXCLUSIVE,)),
        pytest.param(((SHARED,), (SHARED,)), marks=pytest.mark.long),
    ],
    ids=lambda modes: " ".join("+".join(rounds) for rounds in modes),
)
def test_all_orders(modes: tuple[tuple[str, ...], ...]) -> None:
    def enter(contest: Contest) -> None:
        for host_id, rounds in enumerate(modes, start=1):
            contest.enter(host_id, *rounds)

    runs, granted = every_order(enter)
    assert runs > 50
    assert granted == set(range(1, len(modes) + 1)), "each of them wins in some order"


# Of an exclusive acquire: 3 and 5 are the writes of the ballot, 7 is the leader, 8 looks at it again.
HALF_DONE = [
    (3, Fault(CRASH_AFTER)),
    (5, Fault(CRASH_AFTER)),
    (7, Fault(CRASH_AFTER)),
    (5, Fault(ERROR_LANDED)),
    (7, Fault(ERROR)),
    (7, Fault(ERROR_LANDED)),
    (8, Fault(ERROR)),
]


@pytest.mark.parametrize(
    ("number", "fault"), HALF_DONE, ids=[f"{fault.kind} {number}" for number, fault in HALF_DONE]
)
def test_one_of_two_hosts_fails_half_way(number: int, fault: Fault) -> None:
    """It crashes, or its storage fails and it retracts, while another acquires: all orders."""
    contests: list[Contest] = []

    def scene(choose: Any) -> Simulation:
        contest = Contest(choose)
        contests[:] = [contest]
        contest.enter(1, EXCLUSIVE, faults=fail_at(number, fault))
        contest.enter(2, EXCLUSIVE)
        return contest.scene.sim

    def check(sim: Simulation) -> None:
        contest = contests[-1]
        contest.refusals = [e for e in contest.refusals if not isinstance(e, StorageError)]
        if contest.scene.hosts[1].crashed:
            dead = {**LIVE, 1: seen_silent(1, NOW, 69)}
            contest.scene.verify_area()
            contest.alone(3, rows=dead)
        else:
            contest.check()

    explore(scene, check)


# -- one after the other -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED, CRASH, CRASH_AFTER])
def test_failure_at_every_step(mode: str, kind: str) -> None:
    """Fail I/O 1, 2, 3, ... until the acquire completes; the area stays valid and the lease to be had."""
    number = 0
    while True:
        number += 1
        contest = Contest(None)
        scene, claimant = contest.scene, contest.scene.claimant(1, observations=LIVE)
        task = scene.start(
            1,
            acquire(claimant, scene.resource, shared=mode == SHARED),
            faults=fail_at(number, Fault(kind)),
        )
        scene.sim.run()
        scene.verify_area()
        if len(task.ios) < number:
            break
        rows = dict(LIVE)
        if scene.hosts[1].crashed:
            rows[1] = seen_silent(1, NOW, 69)
            scene.may_clear.add(1)
        else:
            assert isinstance(task.error, StorageError)
            scene.run(1, retract(claimant, scene.resource))
            scene.verify_area()
        contest.alone(2, rows=rows)
        scene.verify_area()
        assert not scene.mode(1).is_shared
    assert number == {EXCLUSIVE: 9, SHARED: 13}[mode]


@pytest.mark.parametrize("step", ["release", "shared release", "retract"])
@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED, CRASH, CRASH_AFTER])
def test_failure_at_every_step_of_giving_back(step: str, kind: str) -> None:
    number = 0
    while True:
        number += 1
        contest = Contest(None)
        scene, claimant = contest.scene, contest.scene.claimant(1, observations=LIVE)
        held = scene.acquire(1, shared=step == "shared release", observations=LIVE)
        procedure = (
            retract(claimant, scene.resource)
            if step == "retract"
            else release(claimant, scene.resource, lver=held.leader.lver, shared=held.shared)
        )
        task = scene.start(1, procedure, faults=fail_at(number, Fault(kind)))
        scene.sim.run()
        scene.verify_area()
        if len(task.ios) < number:
            break
        rows = dict(LIVE)
        if scene.hosts[1].crashed:
            rows[1] = seen_silent(1, NOW, 69)
            scene.may_clear.add(1)
        else:
            scene.run(1, retract(claimant, scene.resource))
        contest.alone(2, rows=rows)
    assert number == {"release": 6, "shared release": 4, "retract": 7}[step]


# -- slow co-committers (12.1-5) ----------------------------------------------------------------------


class SlowCoCommitter:
    """Host 1 wins version 1. Host 2 comes to the same result, and its leader write takes 9.5 s.

    With io_timeout 10 that is no error. Meanwhile host 1 releases, and others may come and go.
    """

    def __init__(self, later_owners: int, *, last_stays: bool) -> None:
        self.scene = Scene(io_timeout=10, choose=lambda options: 0, latency=self.latency)
        for host_id in range(1, NUM_HOSTS + 1):
            self.scene.put_delta(host_id)
        self.scene.sim._on_write = self.end_of_co_committer
        self.start(1, "first", 0.0, hold=1.0)
        self.co_committer = self.start(2, "slow", 0.5, hold=0.0)
        self.later = [
            self.start(3 + number % 2, f"later{number}", 3.0 + number,
                       hold=100.0 if last_stays and number == later_owners - 1 else 0.5)
            for number in range(later_owners)
        ]  # fmt: skip
        self.scene.sim.run(until=NOW + 30)
        assert self.scene.hosts[2] is not self.co_committer.host, "it committed host 1's value"

    @staticmethod
    def latency(task: Task, step: Any) -> float:
        if isinstance(step, WriteSector) and step.what.startswith("commit lver 1 "):
            return {"first": 1.0, "slow": 9.5}[task.name]
        return 0.0

    def end_of_co_committer(self, host: Host, step: WriteSector) -> None:
        """Its program ends with its slow write; the host goes on."""
        self.scene.check_write(host, step)
        if host is self.co_committer.host and step.what == "commit lver 1 owner 1:1":
            self.scene.sim.crash(host)
            self.scene.hosts[2] = Host(2)

    def start(self, host_id: int, name: str, delay: float, *, hold: float) -> Task:
        scene, claimant = self.scene, self.scene.claimant(host_id, observations=LIVE)

        def owner() -> Any:
            held = yield from acquire(claimant, scene.resource)
            yield Wait(hold, "the VM runs")
            yield from release(claimant, scene.resource, lver=held.leader.lver)
            return held.leader.lver

        return scene.start(host_id, owner(), name=name, delay=delay)

    def attempt(self, host_id: int) -> Optional[int]:
        claimant = self.scene.claimant(host_id, observations=LIVE)
        try:
            return int(self.scene.run(host_id, acquire(claimant, self.scene.resource)).leader.lver)
        except VmlockctlError:
            return None


def test_a_release_survives_a_slow_co_committer() -> None:
    late = SlowCoCommitter(0, last_stays=False)
    leader = late.scene.leader()
    assert (leader.owner, leader.lver, leader.is_free, leader.write_id) == ((1, 1), 1, False, 2)
    assert late.scene.dblock(1).is_released
    assert late.attempt(3) == 2


def test_the_next_owner_survives_a_slow_co_committer() -> None:
    """Its leader is overwritten by an older one; its dblock keeps everybody else out."""
    late = SlowCoCommitter(1, last_stays=True)
    assert late.scene.leader().lver == 1, "the leader went back"
    assert [late.attempt(host_id) for host_id in (1, 2, 4)] == [None] * 3
    assert late.scene.leader().owner == (3, 1), "and was put right by the next ballot"
    assert late.scene.leader().lver == 2


def test_the_next_owner_can_give_it_back_after_a_slow_co_committer() -> None:
    """Its dblock says which version it holds; whatever the leader says, RELEASED there frees that version."""
    late = SlowCoCommitter(1, last_stays=True)
    late.scene.sim.run()
    [owner] = late.later
    assert owner.error is None or isinstance(owner.error, LeaseLost)
    attempts = [late.attempt(host_id) for host_id in (1, 2, 4, 1, 2, 4)]
    assert any(attempts), f"nobody holds it, and nobody can have it: {owner.error!r}"


@pytest.mark.parametrize("later_owners", [2, 3])
def test_later_owners_survive_a_slow_co_committer(later_owners: int) -> None:
    late = SlowCoCommitter(later_owners, last_stays=True)
    assert late.scene.leader().lver == 1, "the leader went back"
    last = 3 + (later_owners - 1) % 2
    others = [host_id for host_id in range(1, NUM_HOSTS + 1) if host_id != last]
    assert [late.attempt(host_id) for host_id in others] == [None] * 3


@pytest.mark.parametrize("later_owners", [2, 3])
def test_the_lease_can_be_had_after_a_slow_co_committer(later_owners: int) -> None:
    """faults.md 3b: from every final state a host alone acquires in a bounded number of I/Os."""
    late = SlowCoCommitter(later_owners, last_stays=False)
    attempts = [late.attempt(host_id) for host_id in (1, 2, 3, 4, 1, 2)]
    assert any(attempts)


# -- numbers near the end of their range ---------------------------------------------------------------


@pytest.mark.parametrize("mbal", [MAX_MBAL, MAX_MBAL - 1000, MAX_MBAL - 4000, MAX_MBAL - 50_000])
def test_two_hosts_never_win_together_whatever_the_ballot_numbers(mbal: int) -> None:
    """Each must see the other's dblock, or both must refuse."""
    contests: list[Contest] = []

    def scene(choose: Any) -> Simulation:
        contest = Contest(choose)
        contests[:] = [contest]
        contest.scene.put_own(3, Dblock(mbal=mbal, lver=0).sealed())
        for host_id in (1, 2):
            contest.enter(host_id, EXCLUSIVE)
        return contest.scene.sim

    def check(sim: Simulation) -> None:
        for task in sim.tasks:
            if task.error is not None:
                assert isinstance(task.error, OnDiskError), repr(task.error)
        for error in contests[-1].refusals:
            assert isinstance(error, (ContentionError, OnDiskError)), repr(error)

    explore(scene, check)


# -- the explorer has teeth ----------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", ["no abort", "no value adopted", "no second read"])
def test_a_broken_protocol_is_found(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """Each of these lets two hosts in at once in some order; that order must be found."""
    if mutant == "no abort":
        monkeypatch.setattr(ballot, "_aborted_by", lambda *arguments: None)
    elif mutant == "no value adopted":
        real = ballot.Dblock

        def proposing(*values: Any, **fields: Any) -> Dblock:
            if len(values) == 5:  # phase 2: always our own value, whatever was read
                values = (*values[:2], 1 + values[0] % 2, 1, values[4])
            return real(*values, **fields)

        monkeypatch.setattr(ballot, "Dblock", proposing)
    else:
        original = ballot.read_dblocks
        reads: dict[int, bytes] = {}

        def once(proposer: Any) -> Any:
            key = proposer.host_id
            if key in reads:
                return reads.pop(key)
            reads[key] = yield from original(proposer)
            return reads[key]

        monkeypatch.setattr(ballot, "read_dblocks", once)
    with pytest.raises(AssertionError, match="interleaving"):
        every_order(lambda contest: [contest.enter(host_id, EXCLUSIVE) for host_id in (1, 2)])
