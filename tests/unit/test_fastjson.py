"""The same JSON as the standard library's, for what we write ourselves; anything else is a ValueError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlockctl import fastjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_json(value: Any) -> None:
    text = fastjson.dumps(value)
    assert text == json.dumps(value)
    assert text.isascii()
    assert fastjson.loads(text) == value


@given(st.text())
def test_any_text_is_decoded_as_json_does_or_is_a_value_error(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match="."):
            fastjson.loads(text)
    else:
        assert repr(fastjson.loads(text)) == repr(expected)  # NaN is not equal to itself


@pytest.mark.parametrize(
    "text", ["", " ", "{", '{"a"', "[1,]", "{} {}", "nul", "[" * 100_000, '{"a":' * 100_000]
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        fastjson.loads(text)


def test_keys_and_tuples() -> None:
    assert fastjson.dumps({1: (1, 2), "é": None}) == '{"1": [1, 2], "\\u00e9": null}'


def test_without_the_c_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastjson, "_make_scanner", None)
    assert fastjson.loads(fastjson.dumps({"a": [1, None]})) == {"a": [1, None]}
    with pytest.raises(ValueError, match="."):
        fastjson.loads("[" * 100_000)
