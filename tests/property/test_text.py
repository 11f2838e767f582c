"""``safe`` lets nothing through that a terminal might obey, or that hides other text."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from vmlockctl.text import decode_name, format_seconds, safe

BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
ZERO_WIDTH = {0x180E, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF}


@given(st.text())
@example("\x1b]0;pwn\x07\x1b[31m\x9b2J\x7f")
@example("a\u202eb\u2066c\u200fd\u061c")
@example("\ud800\udcff\u2028\u2029\x85\u00ad")
@example("\U000e0041\ufff9\u180e")
def test_nothing_dangerous_comes_through(text: str) -> None:
    for character in safe(text):
        assert ord(character) not in BIDI | ZERO_WIDTH, f"{ord(character):#x}"
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"), f"{ord(character):#x}"


@given(st.text())
@example("\u00a0\u3000")
@example("\U0001d173\U0001bca0\u0600")
@example("\ue000\u0378")
def test_everything_that_is_left_can_be_printed(text: str) -> None:
    """faults.md section 5: not printable -> escaped."""
    assert safe(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_printed_is_left_alone(text: str) -> None:
    assert safe(text) == text


@given(st.binary(max_size=48))
def test_any_name_from_a_disk_can_be_shown(raw: bytes) -> None:
    shown = safe(decode_name(raw))
    shown.encode()  # no surrogate is left
    assert "\0" not in shown


@given(st.floats(0, 1e9))
def test_durations(seconds: float) -> None:
    text = format_seconds(seconds)
    assert text[0].isdigit()
    assert text.split()[-1] in ("s", "min", "h")
