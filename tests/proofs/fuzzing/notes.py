"""Mutated JSON: owner notes on the disk, and the records of the run directory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.proofs.fuzzing.scenes import NOTE
from vmlockctl.ondisk.checksum import crc32c
from vmlockctl.ondisk.geometry import NOTE_SIZE
from vmlockctl.ondisk.ownernote import HEADER, MAGIC, VERSION

NASTY_VALUES: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda source: source.choice([0, 1, -1, 2**31, 2**63, 2**64, -(2**63)]),
    lambda source: 10 ** source.randrange(1, 300),
    lambda source: source.choice([0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")]),
    lambda _: [],
    lambda _: {},
    lambda _: [None, [1], {"a": "b"}],
    lambda _: {"\x1b[2J": "\u202e"},
    lambda source: source.choice(["", "\x1b]0;x\x07", "\u202e\u2066", "\ud800", "a\0b", "\n", "[red]", "0"]),
    lambda source: "x" * source.randrange(1, 3000),
    lambda source: json.loads("[" * (depth := source.randrange(1, 40)) + "]" * depth),
]  # fmt: skip


def mutated_record(record: Any, source: random.Random) -> Any:
    """The same JSON value with some of its parts replaced, removed or added."""
    if isinstance(record, dict) and record and source.random() < 0.9:
        record = dict(record)
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            key = source.choice(list(record) or ["x"])
            kind = source.random()
            if kind < 0.15:
                record.pop(key, None)
            elif kind < 0.2:
                record[source.choice(["", "\x1b[1m", "\u202e", "schema", "9" * 500])] = 1
            else:
                record[key] = mutated_record(record.get(key), source)
        return record
    if isinstance(record, list) and record and source.random() < 0.7:
        record = list(record)
        at = source.randrange(len(record))
        if source.random() < 0.3:
            del record[at]
        else:
            record[at] = mutated_record(record[at], source)
        return record
    return source.choice(NASTY_VALUES)(source)


def mutated_text(text: bytes, source: random.Random) -> bytes:
    """What a full disk, a power failure or an editor leaves of a file."""
    kind = source.random()
    at = source.randrange(len(text) + 1)
    if kind < 0.3:
        return text[:at]
    if kind < 0.4:
        return text[:at] + bytes(len(text) - at)
    if kind < 0.5:
        return text + source.choice([text, b"\n", b"}", b"\0", b"\xff", b" null"])
    if kind < 0.6:
        depth = source.choice([100, 800, 900, 950, 980, 1000, 2000])
        return b'{"vm": ' + b"[" * depth + b"]" * depth + b"}"
    if kind < 0.7:
        return text.replace(b'"', source.choice([b"'", b"", b'"\\ud800', b'"\xed\xa0\x80']), 3)
    if kind < 0.8:
        return text.replace(b"1", source.choice([b"1" * 1000, b"1e999", b"NaN", b"-Infinity", b"1.0"]), 2)
    changed = bytearray(text)
    for _ in range(source.randrange(1, 4)):
        if changed:
            changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


def mutated_json(record: Any, source: random.Random) -> bytes:
    if source.random() < 0.6:
        record = mutated_record(record, source)
        text = json.dumps(record, ensure_ascii=source.random() < 0.8)
        return text.encode("utf-8", "surrogatepass")
    return mutated_text(json.dumps(record).encode(), source)


def note_bytes(source: random.Random) -> bytes:
    """An owner note, its CRC right or wrong."""
    body = mutated_json(NOTE, source)[: NOTE_SIZE - HEADER.size]
    length = len(body)
    if source.random() < 0.1:
        length = (
            source.choice([0, 1, length - 1, length + 1, 4075, 4076, 4077, 2**31, 2**32 - 1]) & 0xFFFFFFFF
        )
    head = HEADER.pack(MAGIC, VERSION, length, 0)[:16]
    crc = crc32c(head + body.ljust(min(length, 4076), b"\0")[:length])
    if source.random() < 0.1:
        crc ^= 1 << source.randrange(32)
    data = bytearray((head + crc.to_bytes(4, "little") + body).ljust(NOTE_SIZE, b"\0"))
    if source.random() < 0.1:
        data[source.randrange(64)] ^= 1 << source.randrange(8)
    return bytes(data)


def cases(source: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield note_bytes(source)
