"""What each check of a record says: what is wrong, found and expected (STYLE 6), word by word.

Operators search for these words, and scripts read ``found`` and ``expected`` from the details.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vmlockctl.errors import OnDiskError, UsageError
from vmlockctl.ondisk.dblock import MAX_MBAL, Dblock, verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, choose, from_leader_fields
from vmlockctl.ondisk.leader import (
    PAXOS_CLEARED_MAGIC,
    Leader,
    first_record,
    new_delta,
    new_paxos,
    verify_delta,
    verify_paxos,
)
from vmlockctl.ondisk.request import Request, verify_request
from vmlockctl.units import MIB

DELTA = new_delta(DEFAULT_GEOMETRY, space_name="ls", io_timeout=10)
PAXOS = new_paxos(DEFAULT_GEOMETRY, space_name="ls", resource_name="res", num_hosts=8)
OTHER = b"other".ljust(48, b"\0")


def delta(**fields: Any) -> Callable[[], object]:
    return lambda: verify_delta(DELTA._replace(**fields).sealed().sector(512), space_name="ls")


def first(**fields: Any) -> Callable[[], object]:
    return lambda: first_record(DELTA._replace(**fields).sector(512), space_name="ls")


def paxos(host_id: int = 2, **fields: Any) -> Callable[[], object]:
    data = PAXOS._replace(**fields).sealed().sector(512)
    return lambda: verify_paxos(data, space_name="ls", resource_name="res", host_id=host_id)


def dblock(num_hosts: int = 0, **fields: Any) -> Callable[[], object]:
    data = Dblock(**{"mbal": 1, **fields}).sealed().to_bytes().ljust(512, b"\0")
    return lambda: verify_dblock(data, host_id=3, num_hosts=num_hosts)


def request(**fields: Any) -> Callable[[], object]:
    return lambda: verify_request(Request(**fields).to_bytes())


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (delta(magic=7), "no lockspace record (wrong magic), found 0x00000007, expected 0x12212010"),
        (delta(version=0x00020004), "unsupported major version, found 2, expected 3"),
        (delta(space_name=OTHER), "wrong lockspace name, found 'other', expected 'ls'"),
        (first(magic=7), "no lockspace record (wrong magic), found 0x00000007, expected 0x12212010"),
        (first(version=0x00020004), "unsupported major version, found 2, expected 3"),
        (first(space_name=OTHER), "wrong lockspace name, found 'other', expected 'ls'"),
        (paxos(magic=PAXOS_CLEARED_MAGIC), "the resource was cleared, found 0x11282016, expected 0x06152010"),
        (paxos(magic=7), "no resource record (wrong magic), found 0x00000007, expected 0x06152010"),
        (paxos(version=0x00070000), "unsupported major version, found 7, expected 6"),
        (paxos(space_name=OTHER), "wrong lockspace name, found 'other', expected 'ls'"),
        (paxos(resource_name=OTHER), "wrong resource name, found 'other', expected 'res'"),
        (paxos(host_id=9), "num_hosts leaves no dblock for host id 9, found 8, expected at least 9"),
        (paxos(sector_size=1024), "wrong sector size in the leader, found 1024, expected 512 or 4096"),
        (paxos(max_hosts=9), "wrong max_hosts, found 9, expected 2000"),
        (paxos(num_hosts=2001), "wrong num_hosts, found 2001, expected 1 to 2000"),
        (
            lambda: verify_paxos(
                PAXOS._replace(num_hosts=0).sealed().sector(512), space_name="ls", resource_name="res"
            ),
            "wrong num_hosts, found 0, expected 1 to 2000",
        ),
        (paxos(timestamp=5), "owned by nobody, found owner_id 0, expected 1 to 2000"),
        (paxos(owner_id=2001), "owner_id beyond max_hosts, found 2001, expected at most 2000"),
        (
            dblock(mbal=MAX_MBAL + 1),
            (
                f"the dblock of host id 3 has an absurd ballot number, found {MAX_MBAL + 1}, "
                f"expected at most {MAX_MBAL}"
            ),
        ),
        (
            dblock(num_hosts=4, inp=5),
            "the dblock of host id 3 proposes an owner that cannot be, found 5, expected at most 4",
        ),
        (request(magic=7), "wrong request magic, found 0x00000007, expected 0x08292011"),
        (
            request(version=0x00020001),
            "unsupported major version of the request record, found 2, expected 1",
        ),
        (
            lambda: from_leader_fields(512, 0x20),
            (
                "sector size and align size do not go together, found 512/2M, "
                "expected 512/1M or 4096/1M, 2M, 4M, 8M"
            ),
        ),
    ],
)
def test_what_a_check_says(check: Callable[[], object], message: str) -> None:
    with pytest.raises(OnDiskError) as caught:
        check()
    assert str(caught.value) == message
    assert message.endswith(f", found {caught.value.details['found']}, "
                            f"expected {caught.value.details['expected']}")  # fmt: skip


def test_what_a_wrong_checksum_says() -> None:
    damaged = PAXOS._replace(checksum=1)
    with pytest.raises(OnDiskError) as caught:
        verify_paxos(damaged.sector(512), space_name="ls", resource_name="res")
    assert str(caught.value) == f"wrong checksum, found 0x00000001, expected {PAXOS.checksum:#010x}"
    ballot = Dblock(mbal=1).sealed()
    with pytest.raises(OnDiskError) as caught:
        verify_dblock(ballot._replace(checksum=1).to_bytes(), host_id=3)
    assert str(caught.value) == (
        f"the dblock of host id 3 has a wrong checksum, found 0x00000001, expected {ballot.checksum:#010x}"
    )


def test_what_an_invalid_choice_says() -> None:
    with pytest.raises(UsageError) as caught:
        choose(512, 2 * MIB)
    assert str(caught.value) == (
        "sector size 512 with align size 2M is not a valid geometry, "
        "expected one of 512/1M, 4096/1M, 4096/2M, 4096/4M, 4096/8M"
    )


def test_the_last_host_may_be_proposed() -> None:
    """``num_hosts`` hosts there are, and the last of them is one."""
    assert verify_dblock(Dblock(mbal=1, inp=4).sealed().to_bytes(), host_id=3, num_hosts=4).inp == 4


def test_the_first_record_states_sizes_and_name_whatever_its_sum() -> None:
    """Section 1.7: it is host 1's own record, and damage to it keeps nobody else out."""
    damaged: Leader = DELTA._replace(checksum=1, owner_id=9)
    assert first_record(damaged.sector(512), space_name="ls") == damaged
    assert first_record(damaged._replace(space_name=OTHER).sector(512), space_name=None).space == "other"
