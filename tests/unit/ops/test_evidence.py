"""The judgement on an owner: never a promise that the protocol does not keep, and what a vouch is worth."""

from __future__ import annotations

from itertools import product
from typing import Any, Optional

import pytest

from tests.sim.scene import NOW, Scene, seen_live, seen_silent
from vmlockctl.errors import ContentionError, UsageError
from vmlockctl.lease.liveness import DEAD, FAIL, FREE, LIVE, UNKNOWN, Instance, Observation
from vmlockctl.ondisk.dblock import FLAG_RELEASED, Dblock, ModeBlock
from vmlockctl.ops.evidence import Judgement, Vouch, judge, parse_vouch

OWNER = Instance(2, 1)

# What this host's daemon has seen of host id 2. Its record says NOW - 5 in generation 1, unless it changes.
ROWS: dict[str, Optional[Observation]] = {
    "never": None,
    "once": seen_silent(2, NOW, 3, first_check=NOW - 3),
    "once, long ago": seen_silent(2, NOW, 90, first_check=NOW - 90),
    "live": seen_live(2, NOW),
    **{f"silent {seconds}": seen_silent(2, NOW, seconds) for seconds in (8, 9, 68, 69)},
    "silent 69, not looked at": seen_silent(2, NOW, 69, last_check=NOW - 69),
    "earlier generation": seen_silent(2, NOW, 500, generation=0),
    "later generation": seen_silent(2, NOW, 500, generation=2),
    "free": seen_silent(2, NOW, 500, timestamp=0),
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "the same": {},
    "changed": {"timestamp": NOW - 1},
    "free": {"timestamp": 0},
    "later generation": {"owner_generation": 2},
    "later and free": {"owner_generation": 2, "timestamp": 0},
    "earlier generation": {"owner_generation": 0, "timestamp": NOW - 1},
    "never acquired": {"owner_id": 0, "owner_generation": 0, "timestamp": 0},
    "another io_timeout": {"io_timeout": 10},
}
VOUCHED = (None, OWNER, Instance(2, 2), Instance(3, 1))


def held(record: dict[str, Any], *, shared: bool) -> Scene:
    """Host id 2, generation 1, holds the lease; its delta record is as given."""
    scene = Scene()
    for host_id in (1, 3):
        scene.put_delta(host_id)
    scene.put_delta(2, **record)
    if shared:
        dblock = Dblock(2, 2, 2, 1, 900, 1).sealed()._replace(flags=FLAG_RELEASED)
        scene.put_own(2, dblock, ModeBlock.shared(1))
        scene.may_clear.add(2)
    else:
        scene.put_leader(owner_id=2, owner_generation=1, lver=4, timestamp=900, write_id=2)
    return scene


def judged(
    scene: Scene, row: Optional[Observation], *, shared: bool, vouched: Optional[Instance] = None
) -> Judgement:
    claimant = scene.claimant(1, observations={} if row is None else {2: row})
    return judge(claimant, OWNER, scene.delta(2), NOW, shared=shared, vouched=vouched == OWNER)


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("row", ROWS)
def test_the_protocol_grants_what_is_proven(row: str, record: str, shared: bool) -> None:
    for vouched in VOUCHED:
        scene = held(RECORDS[record], shared=shared)
        verdict = judged(scene, ROWS[row], shared=shared, vouched=vouched)
        rows = {} if ROWS[row] is None else {2: ROWS[row]}
        try:
            scene.acquire(1, observations=rows, vouched=vouched)
        except ContentionError:
            granted = False
        else:
            granted = True
        if verdict.proof:
            assert granted, (vouched, verdict)
            assert verdict.takeover_in == 0
        elif not shared:
            assert not granted, (vouched, verdict)  # a shared mark is judged by the table, the record unread


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_a_vouch_never_proves_what_renewed_lately_or_was_not_watched(shared: bool) -> None:
    """It proves one thing more than what is proven without it: a silence of 8 to 68 seconds."""
    proven = set()
    for row, record in product(ROWS, RECORDS):
        scene = held(RECORDS[record], shared=shared)
        alone = judged(scene, ROWS[row], shared=shared)
        vouched = judged(scene, ROWS[row], shared=shared, vouched=OWNER)
        if "a person vouches" in vouched.proof:
            assert not alone.proof
            proven.add((row, record))
        elif not shared:
            assert vouched.proof == alone.proof
    # With an io_timeout of 10 s, 90 s of silence are such a one.
    expected = {("silent 9", "the same"), ("silent 68", "the same")}
    assert proven == {*expected, ("once, long ago", "another io_timeout")}


@pytest.mark.parametrize(
    ("row", "record", "state", "takeover_in"),
    [
        ("never", "the same", UNKNOWN, 68),
        ("once", "the same", UNKNOWN, 65),
        ("live", "the same", LIVE, None),
        ("live", "changed", LIVE, None),
        ("silent 69", "changed", LIVE, None),
        ("silent 9", "the same", FAIL, 59),
        ("silent 68", "the same", FAIL, 1),
        ("silent 69", "the same", DEAD, 0),
        ("silent 69", "another io_timeout", DEAD, 71),
        ("live", "free", FREE, 0),
        ("live", "later generation", LIVE, 0),
        ("never", "earlier generation", UNKNOWN, None),
    ],
)
def test_the_verdicts(row: str, record: str, state: str, takeover_in: Optional[float]) -> None:
    verdict = judged(held(RECORDS[record], shared=False), ROWS[row], shared=False)
    assert (verdict.state, verdict.takeover_in) == (state, takeover_in)
    assert bool(verdict.proof) == (takeover_in == 0)


def test_a_shared_holder_that_left_waits_for_the_table() -> None:
    """The protocol asks the table alone, which the next renewal of this host brings up to date."""
    verdict = judged(held(RECORDS["free"], shared=True), ROWS["live"], shared=True)
    assert (verdict.proof, verdict.takeover_in) == ("", 2)
    assert judged(held(RECORDS["free"], shared=True), ROWS["free"], shared=True).proof


def test_this_host_itself() -> None:
    scene = held({}, shared=False)
    scene.put_delta(1, owner_generation=3)
    claimant = scene.claimant(1, generation=3)
    ours = judge(claimant, Instance(1, 3), scene.delta(1), NOW, shared=False, vouched=True)
    assert (ours.state, ours.proof, ours.takeover_in) == (LIVE, "", None)
    stolen = scene.put_delta(1, owner_generation=4)
    assert not judge(claimant, Instance(1, 3), stolen, NOW, shared=False, vouched=True).proof
    scene.put_delta(1, owner_generation=3)
    for shared in (False, True):
        earlier = judge(claimant, Instance(1, 2), scene.delta(1), NOW, shared=shared, vouched=False)
        assert "generation 2 is over" in earlier.proof
    later = judge(claimant, Instance(1, 4), scene.delta(1), NOW, shared=False, vouched=True)
    assert (later.proof, later.takeover_in) == ("", None)


# -- whom a person means -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "owner", "name", "means"),
    [
        ("2:1", (2, 1), "hostB", True),
        ("hostB:1", (2, 1), "hostB", True),
        ("2:2", (2, 1), "hostB", False),
        ("hostB:2", (2, 1), "hostB", False),
        ("1:2", (2, 1), "hostB", False),
        ("hostA:1", (2, 1), "hostB", False),
        ("2:1", (3, 1), "2", False),  # digits are a host id, whatever a host calls itself
        ("::1:7", (2, 7), "::1", True),
    ],
)
def test_whom_a_vouch_means(text: str, owner: tuple[int, int], name: str, means: bool) -> None:
    assert parse_vouch(text).means(Instance(*owner), name) == means


def test_a_vouch_by_name_never_means_a_host_whose_name_is_unknown() -> None:
    assert not Vouch("hostB", 1).means(OWNER, "")


@pytest.mark.parametrize("text", ["", "2", "2:", ":1", "2:0", "2:x", "2:-1", "2:1.0", "2:²", "2:" + "9" * 21])
def test_what_is_no_vouch(text: str) -> None:
    with pytest.raises(UsageError):
        parse_vouch(text)
