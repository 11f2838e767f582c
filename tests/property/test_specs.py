"""What people type either means what it says or is a ``UsageError``."""

from __future__ import annotations

import os

from hypothesis import example, given
from hypothesis import strategies as st

from vmlockctl.errors import UsageError
from vmlockctl.specs import Target, check_name, parse_host_id, parse_target, split_colons
from vmlockctl.units import format_size, parse_size

FIELD = st.text(st.characters(exclude_characters="\\\0"))


@given(st.lists(FIELD, min_size=1))
@example(["a:b", ":", "::", ""])
def test_escaped_colons_survive(fields: list[str]) -> None:
    assert split_colons(":".join(field.replace(":", "\\:") for field in fields)) == fields


@given(st.text())
@example("\\")
@example("a\\b\\:c\\")
def test_any_text_splits(text: str) -> None:
    fields = split_colons(text)
    assert fields
    unescaped = text.replace("\\:", "")
    assert len(fields) == unescaped.count(":") + 1


@given(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12),
    st.integers(0, 2000),
    st.text(st.characters(categories=["L", "N"], include_characters=": -."), min_size=1, max_size=30),
    st.integers(0, 10_000).map(lambda count: count * 512),
)
def test_sanlock_specs(name: str, host_id: int, file_name: str, offset: int) -> None:
    path = os.path.abspath("/leases/" + file_name)
    escaped = path.replace(":", "\\:")
    assert parse_target(f"{name}:{host_id}:{escaped}:{offset}") == Target(path, offset, name, host_id, None)


@given(st.text(st.characters(exclude_characters="\0")))
@example("a:b:c:d")
@example("x:1:/p:512x")
@example("ls:\u0661:/p:0")
@example("ls:\u00b2:/p:0")
def test_any_target_is_parsed_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageError as error:
        assert error.message.isprintable()
    else:
        assert os.path.isabs(target.path)
        assert 0 <= target.host_id <= 2000
        assert target.offset % 512 == 0


@given(st.text())
@example("1_0")
@example(" 7 ")
@example("+5")
@example("\u0665")
def test_a_host_id_is_written_in_digits(text: str) -> None:
    """``1_0`` is a typing mistake for Python's eyes only: it must not become host id 10."""
    try:
        host_id = parse_host_id(text)
    except UsageError as error:
        assert error.message.isprintable()
    else:
        assert text.isdecimal()
        assert 1 <= host_id <= 2000


@given(st.text())
@example("٣")
@example("4kk")
@example("²")
def test_a_size_is_digits_and_a_suffix(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    digits = text.rstrip("kKmM")
    assert size == int(digits) * {"": 1, "k": 1024, "m": 1 << 20}[text[len(digits) :].lower()]


@given(st.integers(0, 1 << 40))
def test_sizes_survive(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text())
def test_a_name_fits_and_can_be_printed_or_is_refused(name: str) -> None:
    try:
        assert check_name(name, "name") == name
    except UsageError as error:
        assert error.message.isprintable()
    else:
        assert 0 < len(name.encode()) <= 48
        assert name.isprintable()
