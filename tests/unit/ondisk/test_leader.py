"""The reader's checks, in sanlock's order and with its numbers, then our own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmlockctl.errors import (
    ClearedResource,
    OnDiskError,
    WrongChecksum,
    WrongField,
    WrongGeometry,
    WrongLockspaceName,
    WrongMagic,
    WrongNumHosts,
    WrongResourceName,
    WrongSectorSize,
    WrongVersion,
)
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import (
    FLAG_SHORT_HOLD,
    PAXOS_CLEARED_MAGIC,
    Leader,
    name_field,
    new_delta,
    new_paxos,
    same_name,
    verify_delta,
    verify_paxos,
)
from vmlockctl.units import MIB

Damage = Callable[[Leader], Leader]

DELTA = new_delta(DEFAULT_GEOMETRY, space_name="ls", io_timeout=10)
PAXOS = new_paxos(DEFAULT_GEOMETRY, space_name="ls", resource_name="res", num_hosts=8)


def wrong(**fields: object) -> Damage:
    return lambda leader: leader._replace(**fields)


WRONG_MAGIC = wrong(magic=0x12345678)
WRONG_VERSION = wrong(version=0x00990004)
WRONG_SPACE = wrong(space_name=b"elsewhere".ljust(48, b"\0"))
WRONG_RESOURCE = wrong(resource_name=b"another".ljust(48, b"\0"))
FEW_HOSTS = wrong(num_hosts=1)

# In the order of section 1.7 and 2.3.
DELTA_CHECKS: list[tuple[Damage, type[OnDiskError], int]] = [
    (WRONG_MAGIC, WrongMagic, -223),
    (WRONG_VERSION, WrongVersion, -224),
    (WRONG_SPACE, WrongLockspaceName, -226),
]
PAXOS_CHECKS: list[tuple[Damage, type[OnDiskError], int]] = [
    (WRONG_MAGIC, WrongMagic, -223),
    (WRONG_VERSION, WrongVersion, -224),
    (WRONG_SPACE, WrongLockspaceName, -226),
    (WRONG_RESOURCE, WrongResourceName, -227),
    (FEW_HOSTS, WrongNumHosts, -228),
]


def sector(leader: Leader, *, sealed: bool = True) -> bytes:
    return (leader.sealed() if sealed else leader).sector(512)


@pytest.mark.parametrize("first", range(len(DELTA_CHECKS)))
def test_of_several_faults_of_a_delta_record_the_first_is_told(first: int) -> None:
    damaged = DELTA
    for damage, _, _ in DELTA_CHECKS[first:]:
        damaged = damage(damaged)
    with pytest.raises(DELTA_CHECKS[first][1]) as caught:
        verify_delta(sector(damaged, sealed=False), space_name="ls")
    assert type(caught.value) is DELTA_CHECKS[first][1]
    assert caught.value.sanlk_rv == DELTA_CHECKS[first][2]


def test_the_checksum_of_a_delta_record_comes_last() -> None:
    with pytest.raises(WrongChecksum) as caught:
        verify_delta(sector(DELTA._replace(owner_id=3), sealed=False), space_name="ls")
    assert caught.value.sanlk_rv == -229
    assert "found 0x" in str(caught.value)
    assert "expected 0x" in str(caught.value)


def test_nothing_else_of_a_delta_record_is_judged() -> None:
    odd = DELTA._replace(owner_id=77777, max_hosts=5, sector_size=1024, lver=9, flags=0xFFFF0000)
    assert verify_delta(sector(odd), space_name="ls") == odd.sealed()


@pytest.mark.parametrize("first", range(len(PAXOS_CHECKS)))
def test_of_several_faults_of_a_paxos_leader_the_first_is_told(first: int) -> None:
    damaged = PAXOS._replace(max_hosts=9)
    for damage, _, _ in PAXOS_CHECKS[first:]:
        damaged = damage(damaged)
    with pytest.raises(PAXOS_CHECKS[first][1]) as caught:
        verify_paxos(sector(damaged, sealed=False), space_name="ls", resource_name="res", host_id=2)
    assert type(caught.value) is PAXOS_CHECKS[first][1]
    assert caught.value.sanlk_rv == PAXOS_CHECKS[first][2]


def test_the_checksum_of_a_paxos_leader_comes_before_our_own_checks() -> None:
    with pytest.raises(WrongChecksum):
        verify_paxos(
            sector(PAXOS._replace(max_hosts=9), sealed=False), space_name="ls", resource_name="res", host_id=8
        )


def test_a_cleared_resource_is_told_before_everything_else() -> None:
    cleared = PAXOS._replace(magic=PAXOS_CLEARED_MAGIC, version=0, space_name=bytes(48), num_hosts=0)
    with pytest.raises(ClearedResource) as caught:
        verify_paxos(sector(cleared, sealed=False), space_name="ls", resource_name="res")
    assert caught.value.sanlk_rv == -223


def test_only_zeros_are_called_that() -> None:
    for verify in (
        lambda data: verify_delta(data, space_name="ls"),
        lambda data: verify_paxos(data, space_name="ls", resource_name="res"),
    ):
        with pytest.raises(WrongMagic, match="found only zeros"):
            verify(bytes(512))


def test_a_lockspace_is_no_resource_and_the_other_way_round() -> None:
    with pytest.raises(WrongMagic, match="0x12212010"):
        verify_paxos(sector(DELTA), space_name="ls", resource_name="res")
    with pytest.raises(WrongMagic, match="0x06152010"):
        verify_delta(sector(PAXOS), space_name="ls")


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (wrong(sector_size=1024), WrongSectorSize, "1024"),
        (wrong(sector_size=0), WrongSectorSize, "0"),
        (wrong(flags=0x20), WrongGeometry, "512/2M"),
        (wrong(max_hosts=250), WrongField, "250"),
        (wrong(max_hosts=2001), WrongField, "2001"),
        (wrong(num_hosts=2001), WrongNumHosts, "2001"),
        (wrong(num_hosts=2**64 - 1), WrongNumHosts, str(2**64 - 1)),
        (wrong(owner_id=2001), WrongField, "2001"),
        (wrong(owner_id=2**63), WrongField, str(2**63)),
    ],
)
def test_what_sanlock_accepts_and_misbehaves_on_is_refused(
    damage: Damage, error: type[OnDiskError], text: str
) -> None:
    """Sections 2.3 and 12.2-h, p."""
    with pytest.raises(error, match=f"found {text}"):
        verify_paxos(sector(damage(PAXOS)), space_name="ls", resource_name="res", host_id=8)


@pytest.mark.parametrize("value", [2**62 + 1, 2**63, 2**64 - 1])
def test_a_number_that_could_not_be_counted_on_is_refused(value: int) -> None:
    """The next lver or generation would not fit into its field one day; no writer ever gets there."""
    with pytest.raises(WrongField, match=str(value)):
        verify_paxos(PAXOS._replace(lver=value).sealed().sector(512), space_name="ls", resource_name="res")
    with pytest.raises(WrongField, match=str(value)):
        verify_delta(DELTA._replace(owner_generation=value).sealed().sector(512), space_name="ls")


def test_the_largest_numbers_are_read() -> None:
    leader = PAXOS._replace(lver=2**62, owner_id=1, owner_generation=2**64 - 1, timestamp=2**64 - 1).sealed()
    assert verify_paxos(leader.sector(512), space_name="ls", resource_name="res") == leader
    record = DELTA._replace(owner_generation=2**62, timestamp=2**64 - 1).sealed()
    assert verify_delta(record.sector(512), space_name="ls") == record


@pytest.mark.parametrize("owner_id", [0, 1, 8, 9, 2000])
def test_every_owner_id_up_to_max_hosts_is_read(owner_id: int) -> None:
    leader = PAXOS._replace(owner_id=owner_id).sealed()
    assert verify_paxos(sector(leader), space_name="ls", resource_name="res", host_id=8) == leader


def test_an_owned_leader_names_an_owner() -> None:
    """A timestamp with owner_id 0 is what no writer writes: no delta record belongs to it (section 2.3)."""
    with pytest.raises(WrongField):
        verify_paxos(
            sector(PAXOS._replace(owner_id=0, timestamp=5)), space_name="ls", resource_name="res", host_id=1
        )


def test_a_reader_without_a_host_id_needs_no_dblock() -> None:
    few = PAXOS._replace(num_hosts=1)
    assert verify_paxos(sector(few), space_name="ls", resource_name="res").num_hosts == 1
    with pytest.raises(WrongNumHosts):
        verify_paxos(sector(few), space_name="ls", resource_name="res", host_id=2)


def test_a_lease_that_no_host_may_use_is_refused() -> None:
    with pytest.raises(WrongNumHosts):
        verify_paxos(sector(PAXOS._replace(num_hosts=0)), space_name="ls", resource_name="res")


@pytest.mark.parametrize("minor", [0, 9, 0xFFFF])
def test_any_minor_version_is_read_and_kept(minor: int) -> None:
    """Only the upper 16 bits count (section 1.2)."""
    delta = DELTA._replace(version=0x00030000 | minor).sealed()
    assert verify_delta(sector(delta), space_name="ls").to_bytes() == delta.to_bytes()
    paxos = PAXOS._replace(version=0x00060000 | minor).sealed()
    found = verify_paxos(sector(paxos), space_name="ls", resource_name="res")
    assert found.to_bytes() == paxos.to_bytes()


def test_unknown_flags_and_unused_fields_are_kept() -> None:
    odd = PAXOS._replace(flags=0xFFFFFF10, unused1=2**64 - 1, unused2=0xFFFF, io_timeout=0xFFFF).sealed()
    found = verify_paxos(sector(odd), space_name="ls", resource_name="res")
    assert found == odd
    changed = found._replace(flags=found.flags | FLAG_SHORT_HOLD)
    assert changed.flags & ~FLAG_SHORT_HOLD == odd.flags
    assert found.to_bytes() == odd.to_bytes()


@pytest.mark.parametrize("covered", range(0, 168, 7))
def test_a_flipped_bit_that_the_checksum_covers_is_noticed(covered: int) -> None:
    data = bytearray(sector(PAXOS))
    data[covered] ^= 0x40
    with pytest.raises(OnDiskError):
        verify_paxos(bytes(data), space_name="ls", resource_name="res", host_id=1)


@pytest.mark.parametrize("uncovered", [172, 174, 176, 184, 192, 199, 200, 511])
def test_a_flipped_bit_that_it_does_not_cover_is_not(uncovered: int) -> None:
    """V in section 1.2: io_timeout and the write fields are not covered."""
    data = bytearray(sector(PAXOS))
    data[uncovered] ^= 0x40
    verify_paxos(bytes(data), space_name="ls", resource_name="res", host_id=1)


def test_names_of_48_bytes_have_no_nul() -> None:
    long, other = "n" * 48, "n" * 47 + "m"
    leader = new_paxos(DEFAULT_GEOMETRY, space_name=long, resource_name=other)
    assert (leader.space_name, leader.resource_name) == (long.encode(), other.encode())
    assert (leader.space, leader.resource) == (long, other)
    assert verify_paxos(sector(leader), space_name=long, resource_name=other) == leader
    with pytest.raises(WrongLockspaceName):
        verify_paxos(sector(leader), space_name=other, resource_name=other)
    with pytest.raises(WrongLockspaceName):
        verify_paxos(sector(leader), space_name="n" * 47, resource_name=other)
    with pytest.raises(WrongResourceName):
        verify_paxos(sector(leader), space_name=long, resource_name=long)


def test_names_end_at_the_first_nul() -> None:
    assert same_name(b"ls\0rubbish".ljust(48, b"x"), "ls")
    assert not same_name(b"ls".ljust(48, b"\0"), "l")
    assert not same_name(b"ls".ljust(48, b"\0"), "lsx")
    rubbish = DELTA._replace(space_name=b"ls\0rubbish".ljust(48, b"x")).sealed()
    assert verify_delta(sector(rubbish), space_name="ls").to_bytes() == rubbish.to_bytes()


def test_undecodable_names_survive() -> None:
    raw = b"\xff\xfe\x80name"
    leader = DELTA._replace(space_name=raw.ljust(48, b"\0")).sealed()
    assert name_field(leader.space) == leader.space_name
    assert verify_delta(sector(leader), space_name=leader.space) == leader


def test_a_hostile_name_is_escaped_in_the_message() -> None:
    leader = PAXOS._replace(resource_name=b"\x1b]0;pwn\x07\x9b31m".ljust(48, b"\0")).sealed()
    with pytest.raises(WrongResourceName) as caught:
        verify_paxos(sector(leader), space_name="ls", resource_name="res")
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 49, "é" * 25])
def test_a_name_that_does_not_fit_is_our_own_mistake(name: str) -> None:
    with pytest.raises(AssertionError):
        name_field(name)


def test_the_place_is_named_once() -> None:
    with pytest.raises(WrongMagic) as caught:
        verify_delta(bytes(512), space_name="ls")
    error = caught.value.at("/space", 512).at("/other", 9)
    assert str(error) == error.message
    assert error.message.startswith("/space:512: ")
    assert "/other" not in error.message
    assert (error.details["path"], error.details["offset"]) == ("/space", 512)


def test_the_sizes_come_from_the_record() -> None:
    big = new_paxos(Geometry(4096, 8 * MIB), space_name="ls", resource_name="res")
    assert (big.geometry, big.max_hosts, big.num_hosts) == (Geometry(4096, 8 * MIB), 2000, 2000)
