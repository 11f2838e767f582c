"""Two hosts want one host id: exactly one gets it, whatever the order and the pace of their I/Os."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.sim.scene import NOW, Scene
from tests.support.memory import Host, Script, Simulation, explore
from vmlockctl.errors import HostIdBusy, HostLeaseLost
from vmlockctl.lease import delta
from vmlockctl.lease.delta import join, renew
from vmlockctl.lease.steps import Wait
from vmlockctl.ondisk.leader import name_field

HOST_ID = 2
RENEWALS = 2


class Race:
    """Each racer joins and, if it may, renews a few times. ``granted`` in the order of the grants."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.granted: list[str] = []
        self.busy: list[str] = []
        self.lost: list[str] = []

    def start(self, name: str, *, io_timeout: int = 1, gone: bool = False, delay: float = 0.0) -> None:
        host = Host(HOST_ID)
        self.scene.sim.start(host, self.racer(name, io_timeout, gone), name=name, delay=delay)

    def racer(self, name: str, io_timeout: int, gone: bool) -> Any:
        try:
            lease = yield from join(
                self.scene.lockspace,
                host_id=HOST_ID,
                host_name=name,
                io_timeout=io_timeout,
                earlier_instance_gone=gone,
            )
        except HostIdBusy:
            self.busy.append(name)
            return
        self.granted.append(name)
        try:
            for _ in range(RENEWALS):
                yield Wait(2 * io_timeout, "the next renewal")
                lease, _ = yield from renew(lease, expected=[lease.record.to_bytes()])
        except HostLeaseLost:
            self.lost.append(name)

    def check_one_winner(self) -> None:
        assert len(self.granted) == 1, f"granted to {self.granted}"
        assert not self.lost
        assert self.scene.delta(HOST_ID).resource == self.granted[0]
        self.scene.storage.check_guards()


@pytest.mark.parametrize(
    ("state", "racers"), [("never used", 2), ("free", 2), ("held and dead", 2), ("free", 3)]
)
def test_every_interleaving(state: str, racers: int) -> None:
    """At small latency: all orders of all their I/Os."""
    races: list[Race] = []

    def scene(choose: Any) -> Simulation:
        world = Scene(choose=choose)
        if state != "never used":
            world.put_delta(HOST_ID, timestamp=0 if state == "free" else 5, resource_name=name_field("old"))
        races.append(Race(world))
        for number in range(racers):
            races[-1].start(f"racer{number}")
        return world.sim

    runs = explore(scene, lambda sim: races[-1].check_one_winner())
    assert runs > 10
    winners = {race.granted[0] for race in races if race.granted}
    assert len(winners) == racers, "each of them wins in some order"


def test_a_host_and_its_clone() -> None:
    """Same name, same machine, both sure that their earlier instance is gone: still one."""
    races: list[Race] = []

    def scene(choose: Any) -> Simulation:
        world = Scene(choose=choose)
        world.put_delta(HOST_ID, resource_name=name_field("twin"))
        races.append(Race(world))
        for number in range(2):
            host = Host(HOST_ID, clock_offset=100 * number)
            world.sim.start(host, races[-1].racer("twin", 1, True), name=f"twin{number}")
        return world.sim

    def check(sim: Simulation) -> None:
        assert len(races[-1].granted) - len(races[-1].lost) == 1
        assert len(races[-1].granted) == 1

    explore(scene, check)


def race_at_pace(
    latencies: tuple[float, ...], offset: float, *, io_timeout: int = 1, early: bool = False
) -> Race:
    """Two racers whose reads and claims take so long, the second so much later."""
    pace = dict(zip([("a", "r"), ("a", "w"), ("b", "r"), ("b", "w")], latencies))

    def latency(task: Any, step: Any) -> float:
        return pace[(task.name, "w" if hasattr(step, "data") else "r")]

    race = Race(Scene(io_timeout=io_timeout, choose=Script(), latency=latency, look_first=early))
    for name, delay in (("a", 0.0), ("b", offset)):
        race.start(name, delay=delay, io_timeout=io_timeout)
    race.scene.sim.run(until=NOW + 200)
    return race


PACES = (0.0, 0.45, 0.9)
OFFSETS = tuple(step * 0.3 for step in range(10))


@pytest.mark.parametrize("early", [False, True], ids=["reads look at the end", "at the beginning"])
def test_every_pace_within_the_io_timeout(early: bool) -> None:
    for latencies in product(PACES, repeat=4):
        for offset in OFFSETS:
            race = race_at_pace(latencies, offset, early=early)
            assert len(race.granted) == 1, f"{latencies} {offset}: granted to {race.granted}"
            assert not race.lost, f"{latencies} {offset}"


def test_half_the_settle_time_would_not_be_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race has teeth (faults.md finding 6: 2N is exactly tight)."""
    monkeypatch.setattr(delta, "join_settle_seconds", lambda io_timeout: io_timeout)
    found = [
        (latencies, offset)
        for latencies in product(PACES, repeat=4)
        for offset in OFFSETS
        if len(race_at_pace(latencies, offset, early=True).granted) != 1
    ]
    assert found
