"""One ballot of Disk Paxos, phase by phase, against crafted dblocks of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.scene import NOW, Scene
from tests.support.memory import ERROR, ERROR_LANDED, LOST, Fault, fail_at
from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.errors import StorageError
from vmlockctl.lease.ballot import (
    Aborted,
    Decided,
    Proposer,
    dblocks_in,
    first_mbal,
    read_shared_holders,
    run_ballot,
)
from vmlockctl.lease.steps import WriteSector
from vmlockctl.ondisk.dblock import FLAG_RELEASED, Dblock, ModeBlock
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.units import MIB

V = 5  # the version that is voted on


def proposer(scene: Scene, host_id: int = 1, generation: int = 3) -> Proposer:
    return Proposer(scene.area, host_id, generation, 1, scene.num_hosts)


NOTHING = Dblock()


def ballot(scene: Scene, *, own: Dblock = NOTHING, mbal: int = 4001, **options: Any) -> Any:
    return scene.run(1, run_ballot(proposer(scene), own, lver=V, mbal=mbal), **options)


def rival(host_id: int = 2, **fields: Any) -> Dblock:
    """Another host's dblock in phase 2 of a lower ballot for the same version."""
    values = {"mbal": 2002, "bal": 2002, "inp": host_id, "inp2": 7, "inp3": 77, "lver": V, **fields}
    return Dblock(**values).sealed()


# -- ballot numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "host_id", "max_hosts", "expected"),
    [
        (0, 1, 2000, 1),
        (0, 2000, 2000, 2000),
        (1, 2, 2000, 2002),
        (1, 1, 2000, 2001),
        (2000, 1, 2000, 4001),
        (2000, 2000, 2000, 6000),
        (4002, 7, 2000, 6007),
        (3, 250, 250, 500),
    ],
)
def test_first_mbal(highest: int, host_id: int, max_hosts: int, expected: int) -> None:
    mbal = first_mbal(highest, host_id, max_hosts)
    assert mbal == expected
    assert mbal > highest
    assert mbal % max_hosts == host_id % max_hosts, "unique to the host"


# -- phases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_hosts", "count"), [(1, 4), (4, 8), (8, 16), (2000, 2048)], ids=str)
def test_alone(num_hosts: int, count: int) -> None:
    scene = Scene(num_hosts=num_hosts)
    result = ballot(scene)
    assert scene.last.sequence == f"w2 r0+{count} w2 r0+{count}"
    assert isinstance(result, Decided)
    assert result.mine == Dblock(4001, 4001, 1, 3, NOW, V).sealed() == scene.dblock(1)
    assert result.shared == {}


def test_phase_1_proposes_nothing() -> None:
    scene = Scene()
    written: list[bytes] = []
    scene.sim._on_write = lambda host, step: written.append(step.data[:56])
    ballot(scene)
    assert written[0] == Dblock(mbal=4001, lver=V).sealed().to_bytes()
    assert written[1] == scene.dblock(1).to_bytes()


@each_geometry
def test_the_own_sector_in_every_geometry(geometry: Geometry) -> None:
    scene = Scene(geometry=geometry, num_hosts=geometry.max_hosts)
    last = geometry.max_hosts
    result = scene.run(
        last, run_ballot(proposer(scene, last)._replace(num_hosts=last), Dblock(), lver=1, mbal=last)
    )
    assert isinstance(result, Decided)
    assert scene.dblock(last).inp == last
    assert scene.last.ios[0].sector == last + 1


def test_the_mode_is_kept_where_it_is_asked_for() -> None:
    scene = Scene()
    scene.run(1, run_ballot(proposer(scene), Dblock(), lver=V, mbal=1, mode=ModeBlock.shared(3)))
    assert scene.mode(1) == ModeBlock.shared(3)
    ballot(scene)
    assert scene.mode(1) == ModeBlock()


@pytest.mark.parametrize(
    "other",
    [
        rival(lver=V - 1, mbal=9_999_999),  # takes no part in this one
        rival(lver=0, mbal=9_999_999),
        rival(bal=0, inp=0, inp2=0, inp3=0),  # phase 1 of a lower ballot
        rival(inp=0),
        rival(bal=0),
        rival(mbal=4001, bal=0),
    ],
)
def test_dblocks_that_count_for_nothing(other: Dblock) -> None:
    scene = Scene()
    scene.put_own(2, other)
    result = ballot(scene)
    assert isinstance(result, Decided)
    assert (result.mine.inp, result.mine.inp2, result.mine.inp3) == (1, 3, NOW)


def test_a_value_of_ours_from_an_earlier_ballot_stays_in_phase_1() -> None:
    """It may have been chosen, and then only our own dblock knows."""
    scene = Scene()
    earlier = rival(1, mbal=2001, bal=2001, inp=4, inp2=9)
    scene.put_own(1, earlier)
    written: list[Dblock] = []
    scene.sim._on_write = lambda host, step: written.append(Dblock.from_bytes(step.data))
    result = ballot(scene, own=earlier)
    assert written[0] == earlier._replace(mbal=4001).sealed()
    assert isinstance(result, Decided)
    assert (result.mine.inp, result.mine.inp2) == (4, 9), "and is ours to decide"
    assert ballot(scene, own=earlier._replace(lver=V - 1), mbal=6001).mine.inp == 1, "of another version: no"
    assert written[2].bal == 0


def test_the_value_of_the_highest_ballot_is_adopted() -> None:
    scene = Scene()
    scene.put_own(2, rival(2, bal=2002, inp3=22))
    scene.put_own(3, rival(3, mbal=2003, bal=2003, inp=4, inp2=9, inp3=33))
    scene.put_own(4, rival(4, mbal=4, bal=4, inp3=44))
    result = ballot(scene)
    assert isinstance(result, Decided)
    assert result.mine == Dblock(4001, 4001, 4, 9, 33, V).sealed()


def test_a_released_value_is_a_value() -> None:
    """The flag says that its owner let go of it, not that it was never chosen (12.1-5)."""
    scene = Scene()
    scene.put_own(2, rival()._replace(flags=FLAG_RELEASED))
    result = ballot(scene)
    assert result.mine.inp == 2


@pytest.mark.parametrize(
    ("other", "newer"),
    [(rival(mbal=4002), False), (rival(lver=V + 1, mbal=1, bal=1), True), (rival(lver=2**63), True)],
)
def test_a_larger_ballot_in_phase_1(other: Dblock, newer: bool) -> None:
    scene = Scene()
    scene.put_own(3, other)
    result = ballot(scene)
    assert result == Aborted(scene.dblock(1), 3, other, newer)
    assert scene.last.sequence == "w2 r0+8"
    assert scene.dblock(1).bal == 0


@pytest.mark.parametrize(("other", "newer"), [(rival(mbal=4002), False), (rival(lver=V + 1), True)])
def test_a_larger_ballot_in_phase_2(other: Dblock, newer: bool) -> None:
    scene = Scene()

    def watch(host: object, step: WriteSector) -> None:
        if "phase 2" in step.what:
            scene.put_own(4, other)

    scene.sim._on_write = watch
    result = ballot(scene)
    assert result == Aborted(scene.dblock(1), 4, other, newer)
    assert scene.last.sequence == "w2 r0+8 w2 r0+8"
    assert scene.dblock(1).bal == 4001


def test_a_damaged_dblock_takes_no_part() -> None:
    """Its host cannot have written it; r1 of an acquire refuses, a ballot that has begun goes on."""
    scene = Scene()
    scene.put_own(2, rival(mbal=9_999_999)._replace(checksum=1))
    assert isinstance(ballot(scene), Decided)


def test_shared_marks_are_collected() -> None:
    scene = Scene()
    scene.put_own(2, Dblock(), ModeBlock.shared(7))
    scene.put_own(3, Dblock()._replace(checksum=9, mbal=1), ModeBlock.shared(8))  # a damaged dblock beside it
    scene.put_own(4, rival(lver=1), ModeBlock(1, 0))
    assert ballot(scene).shared == {2: 7, 3: 8}
    assert scene.run(1, read_shared_holders(proposer(scene))) == {2: 7, 3: 8}
    assert scene.last.sequence == "r0+8"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [ERROR, ERROR_LANDED])
def test_an_error_is_told(number: int, kind: str) -> None:
    scene = Scene()
    with pytest.raises(StorageError):
        ballot(scene, faults=fail_at(number, Fault(kind)))
    scene.verify_area()


@pytest.mark.parametrize("number", [1, 3])
def test_a_write_that_is_lost_is_seen_in_the_next_read(number: int) -> None:
    """Whoever ran the same ballot version meanwhile saw nothing of us, and may have won it."""
    scene = Scene()
    with pytest.raises(StorageError, match="lost a write") as failure:
        ballot(scene, faults=fail_at(number, Fault(LOST)))
    own = scene.area.byte_offset(scene.area.geometry.dblock_sector(1))
    assert failure.value.message.startswith(f"/disk:{own}: ballot 4001 for lver {V}: ")
    assert len(scene.last.ios) == number + 1


@pytest.mark.parametrize("mode", [ModeBlock(), ModeBlock.shared(9)])
def test_a_sector_of_ours_that_somebody_else_wrote_ends_the_ballot(mode: ModeBlock) -> None:
    scene = Scene()

    def watch(host: object, step: WriteSector) -> None:
        scene.sim._on_write = None
        scene.put_own(1, Dblock(lver=V - 1), mode)

    scene.sim._on_write = watch
    with pytest.raises(StorageError, match="lost a write"):
        ballot(scene)


def test_used_sectors_of_an_image() -> None:
    scene = Scene(geometry=Geometry(4096, MIB))
    scene.put_own(2, rival())
    scene.put_own(4, Dblock(), ModeBlock.shared(1))
    image = scene.storage.image(scene.area)
    assert [host_id for host_id, _ in dblocks_in(image, scene.area, 4)] == [2, 4]
    assert [host_id for host_id, _ in dblocks_in(image, scene.area, 3)] == [2]
