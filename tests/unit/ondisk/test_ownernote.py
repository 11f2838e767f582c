"""Advice for people: never wrong about being a note, and never in the way of the lease."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.checksum import crc32c
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, NOTE_SIZE
from vmlockctl.ondisk.leader import new_paxos

NOTE: dict[str, Any] = {
    "disk": "/images/a.img",
    "vm": "web1",
    "uuid": "8f0b6c3e-0000-4000-8000-000000000000",
    "pid": 4711,
    "host_name": "hostA",
    "host_id": 3,
    "generation": 2,
    "lver": 9,
    "acquired_at": "2026-11-23T20:09:00Z",
    "program": "vmlockctl 0.1.0",
}


def raw_note(body: bytes, *, version: int = 1, magic: bytes = b"VMLKNOTE", length: int = -1) -> bytes:
    """A note with a right CRC, whatever else is wrong with it."""
    head = ownernote.HEADER.pack(magic, version, len(body) if length < 0 else length, 0)[:16]
    return (head + crc32c(head + body).to_bytes(4, "little") + body).ljust(NOTE_SIZE, b"\0")[:NOTE_SIZE]


def test_round_trip() -> None:
    data = ownernote.to_bytes(NOTE)
    assert len(data) == NOTE_SIZE
    assert ownernote.from_bytes(data) == NOTE


def test_the_layout() -> None:
    data = ownernote.to_bytes(NOTE)
    length = int.from_bytes(data[12:16], "little")
    assert data[:12] == b"VMLKNOTE" + bytes.fromhex("01000000")
    assert int.from_bytes(data[16:20], "little") == crc32c(data[:16] + data[20 : 20 + length])
    assert json.loads(data[20 : 20 + length]) == NOTE
    assert not any(data[20 + length :])


def test_a_note_in_utf_8_is_read() -> None:
    assert ownernote.from_bytes(raw_note('{"disk": "/é💾"}'.encode())) == {"disk": "/é💾"}


def test_text_that_no_path_can_be_is_left_out() -> None:
    halves = rb'"disk": "\ud800", "vm": "w\udfff", "more": "\ud83d"'
    body = b"{" + halves + rb', "uuid": "\ud83d\udcbe", "host_name": "\udcff"}'
    assert ownernote.from_bytes(raw_note(body)) == {"uuid": "💾", "host_name": "\udcff"}


@pytest.mark.parametrize("position", [0, 7, 8, 12, 16, 19, 20, 40, 100])
def test_a_flipped_bit_is_no_note(position: int) -> None:
    data = bytearray(ownernote.to_bytes(NOTE))
    data[position] ^= 0x10
    assert ownernote.from_bytes(bytes(data)) is None


@pytest.mark.parametrize("cut", [20, 21, 100, 200])
def test_a_truncated_note_is_none(cut: int) -> None:
    assert ownernote.from_bytes(ownernote.to_bytes(NOTE)[:cut]) is None


def test_zeros_are_no_note() -> None:
    assert ownernote.from_bytes(bytes(NOTE_SIZE)) is None


@pytest.mark.parametrize(
    "body", [b"[1,2]", b'"text"', b"17", b"null", b"", b"{", b'{"a":', b"\xff\xfe{}", b"{}garbage"]
)
def test_what_is_no_object_is_no_note(body: bytes) -> None:
    assert ownernote.from_bytes(raw_note(body)) is None


@pytest.mark.parametrize("length", [NOTE_SIZE - 19, NOTE_SIZE, 2**32 - 1])
def test_a_length_beyond_the_note(length: int) -> None:
    assert ownernote.from_bytes(raw_note(b"{}", length=length)) is None


def test_the_longest_note() -> None:
    body = b'{"a":"' + b"x" * (NOTE_SIZE - 20 - 8) + b'"}'
    assert len(body) == NOTE_SIZE - 20
    assert ownernote.from_bytes(raw_note(body)) == {"a": "x" * (NOTE_SIZE - 28)}


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_not_understood(version: int) -> None:
    assert ownernote.from_bytes(raw_note(b"{}", version=version)) is None


def test_hostile_json_is_no_note() -> None:
    """The CRC is no signature: whoever may write the area may write this."""
    assert ownernote.from_bytes(raw_note(b"[" * 2000)) is None
    assert ownernote.from_bytes(raw_note(b'{"a":' * 600)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vm", 5), ("vm", ["a"]), ("vm", {}), ("vm", True), ("disk", None), ("disk", 1.5), ("uuid", [1]),
        ("host_name", {"a": 1}), ("pid", "4711"), ("pid", True), ("pid", -1), ("pid", 2**64), ("pid", 1.0),
        ("lver", None), ("other", float("nan")), ("other", float("inf")), ("other", [1]), ("other", {}),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_left_out(field: str, value: Any) -> None:
    """Whoever may write the area may write this: what shows a note relies on texts and numbers."""
    body = json.dumps({**NOTE, field: value}).encode()
    assert ownernote.from_bytes(raw_note(body)) == {k: v for k, v in NOTE.items() if k != field}


@pytest.mark.parametrize("value", ["text", 17, -17, 1.5, True, None])
def test_a_plain_field_of_a_later_version_is_kept(value: Any) -> None:
    body = json.dumps({**NOTE, "other": value}).encode()
    assert ownernote.from_bytes(raw_note(body)) == {**NOTE, "other": value}


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "/" + "d" * 254 + "/" + "e" * 3800, "é" * 2040,
     "\U0001f4be" * 1020, "\udc80" * 4000, "\x01" * 4000],
    ids=["ascii", "path", "two bytes", "four bytes", "undecodable", "control"],
)  # fmt: skip
@pytest.mark.parametrize("fields", [("disk",), ("disk", "vm"), ("disk", "vm", "host_name", "uuid")])
def test_an_oversize_text_is_cut_so_that_it_always_fits(text: str, fields: tuple[str, ...]) -> None:
    """A path may have 4095 bytes, and QEMU's VM names have no limit at all."""
    data = ownernote.to_bytes({**NOTE, **dict.fromkeys(fields, text)})
    assert len(data) == NOTE_SIZE
    found = ownernote.from_bytes(data)
    assert found is not None
    for field in fields:
        assert found[field]
        assert text.startswith(found[field])
    assert {key: found[key] for key in ("pid", "host_id", "generation", "lver")} == {
        "pid": 4711, "host_id": 3, "generation": 2, "lver": 9,
    }  # fmt: skip


def test_it_is_current_only_for_the_possession_that_the_leader_names() -> None:
    leader = new_paxos(DEFAULT_GEOMETRY, space_name="ls", resource_name="res")
    current = leader._replace(owner_id=3, owner_generation=2, lver=9)
    assert ownernote.is_current(NOTE, current)
    assert not ownernote.is_current(NOTE, current._replace(owner_id=4))
    assert not ownernote.is_current(NOTE, current._replace(owner_generation=3))
    assert not ownernote.is_current(NOTE, current._replace(lver=10))
    assert not ownernote.is_current({}, current)


def test_a_text_is_cut_only_where_it_has_to_be() -> None:
    """The note is full to its last byte before anything is cut; then each text keeps half of the room."""
    room = NOTE_SIZE - ownernote.HEADER.size
    fits = {"disk": "x" * (room - len('{"disk": ""}'))}
    full = ownernote.to_bytes(fits)
    assert int.from_bytes(full[12:16], "little") == room
    assert ownernote.from_bytes(full) == fits
    longer = {"disk": fits["disk"] + "x" * 20, "pid": 4711}
    assert ownernote.from_bytes(ownernote.to_bytes(longer)) == {"disk": "x" * (room // 2), "pid": 4711}
    both = {"disk": "y" * room, "vm": "z" * room}
    assert ownernote.from_bytes(ownernote.to_bytes(both)) == {
        "disk": "y" * (room // 4),
        "vm": "z" * (room // 4),
    }
