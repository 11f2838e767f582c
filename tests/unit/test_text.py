from __future__ import annotations

import shlex

import pytest

from vmlockctl.text import decode_name, format_seconds, safe, shell_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("hostA.example", "hostA.example"),
        ("Grüße 盘 💾", "Grüße 盘 💾"),
        ("\x1b]0;pwn\x07\x1b[31m", "\\x1b]0;pwn\\x07\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\r\nb\tc\0", "a\\x0d\\x0ab\\x09c\\x00"),
        ("\x7f\x80\xad", "\\x7f\\x80\\xad"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\u200b\u2028\ufeff\u061c", "\\u200b\\u2028\\ufeff\\u061c"),
        ("\udcff\ud800", "\\udcff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_decode_name() -> None:
    assert decode_name(b"ls\0\0rubbish") == "ls"
    assert decode_name(b"n" * 48) == "n" * 48
    assert decode_name(bytes(48)) == ""
    assert decode_name(b"\xff\xc3\xa9\0") == "\udcffé"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (9.99, "10.0 s"),
        (10, "10 s"),
        (58.9, "58 s"),
        (99, "99 s"),
        (100, "1 min 40 s"),
        (140, "2 min 20 s"),
        (5999, "99 min 59 s"),
        (6000, "1 h 40 min"),
        (11100, "3 h 5 min"),
        (172799, "47 h 59 min"),
        (172800, "2 d 0 h"),
        (352800, "4 d 2 h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    "text", ["", "a", "/a-b/c.img", "a b", "it's", "$x", "ä", "a\nb", "-x", "a=b", "*", "~"]
)
def test_a_word_of_a_shell(text: str) -> None:
    assert shlex.split(shell_word(text)) == [text]
    assert shell_word(text) == shlex.quote(text)
