"""JSON for our own small records, with the standard library's C code and without its imports.

``json`` loads ``re`` to find white space, which takes longer than an acquire has. The scanner and the string
encoder behind it are the same; where they are not to be had, ``json`` itself does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Optional

    _make_scanner: Optional[Callable[[object], Callable[[str, int], tuple[Any, int]]]]
    _quote: Callable[[str], str]
else:
    try:
        from _json import encode_basestring_ascii as _quote
        from _json import make_scanner as _make_scanner
    except ImportError:
        _make_scanner = None


class _Settings:
    """What the C scanner asks of a decoder: plain Python values."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def loads(text: str) -> Any:
    """Decode one JSON value. Raises ``ValueError``, also for nesting that nobody writes."""
    try:
        if _make_scanner is None:
            import json

            return json.loads(text)
        text = text.strip(" \t\r\n")
        value, end = _make_scanner(_Settings())(text, 0)
    except (StopIteration, RecursionError):
        raise ValueError("not valid JSON") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def dumps(value: Any) -> str:
    """Encode None, bool, int, finite float, str, and lists, tuples and dicts of them, in ASCII."""
    if _make_scanner is None:
        import json

        return json.dumps(value)
    return _encode(value)


def _encode(value: Any) -> str:
    if isinstance(value, str):
        return _quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_encode(str(key))}: {_encode(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_encode, value)) + "]"
