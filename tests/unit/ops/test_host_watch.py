"""Two programs that renew one host record, and what one host alone does."""

from __future__ import annotations

import pytest

from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import Leader, name_field, new_delta
from vmlockctl.ops.orphans.hosts import HostWatch

FREE = new_delta(DEFAULT_GEOMETRY, space_name="space", io_timeout=10)
CYCLE = 20


def record(timestamp: int, *, generation: int = 1, name: str = "hostA", event: int = 0) -> Leader:
    return FREE._replace(
        owner_id=1,
        owner_generation=generation,
        resource_name=name_field(name),
        timestamp=timestamp,
        write_id=event,
    ).sealed()


def signs(*records: Leader, seconds: float = 60) -> list[str]:
    watch = HostWatch()
    for one in records:
        watch.look([(1, one)])
    return watch.signs(seconds).get(1, [])


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([record(100)] * 5, id="silent"),
        pytest.param([record(100 + CYCLE * n) for n in range(4)], id="renews"),
        pytest.param([record(100), record(101), record(102), record(122)], id="was late, then on time"),
        pytest.param([record(9000), record(5, generation=2)], id="rebooted"),
        pytest.param(
            [record(9000), record(0), record(5, generation=2, name="hostB")], id="left, another came"
        ),
        pytest.param([record(9000), record(0), record(9020)], id="free in between"),
        pytest.param([record(100, event=n) for n in range(9)], id="events"),
    ],
)
def test_one_host(records: list[Leader]) -> None:
    assert signs(*records) == []


@pytest.mark.parametrize(
    ("records", "sign"),
    [
        pytest.param([record(9000), record(70), record(9020)], "timestamp went back", id="two clocks"),
        pytest.param([record(100, generation=2), record(90)], "generation went back", id="generations"),
        pytest.param([record(100), record(110, name="hostB")], "host name changed", id="two names"),
        pytest.param([record(100 + n) for n in range(9)], "changed 8 times in 60 s", id="too often"),
    ],
)
def test_two_hosts(records: list[Leader], sign: str) -> None:
    [found] = signs(*records)
    assert sign in found


def test_a_sign_is_told_once() -> None:
    assert len(signs(record(9000), record(70), record(9010), record(80), seconds=1000)) == 1
