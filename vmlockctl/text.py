r"""Text that is safe to show: names from a disk, a command line or another host are not ours.

One function, ``safe``, stands between such a name and every terminal and log line (faults.md
finding 10): control characters (C0, DEL, C1), bidirectional and zero-width characters, line
separators and surrogates become ``\xNN`` or ``\uNNNN``.
"""

from __future__ import annotations

# Unicode ranges that change how other text is shown, without being seen themselves.
_HIDDEN = (
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x61C, 0x61C),
    (0x180E, 0x180E),
    (0x200B, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0xD800, 0xDFFF),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE007F),
)

_PLAIN = dict.fromkeys(map(ord, "@%+=:,./-_"), "a")  # of no meaning to a shell


def _is_hidden(number: int) -> bool:
    return any(first <= number <= last for first, last in _HIDDEN)


def _escape(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def safe(text: str) -> str:
    """``text`` with everything that a terminal might obey made visible."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_hidden(ord(c)) or not c.isprintable() else c for c in text)


def decode_name(raw: bytes) -> str:
    """A NUL-padded on-disk name as text; undecodable bytes survive as surrogates."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def shell_word(text: str) -> str:
    """``text`` as one word of a shell command; ``shlex.quote`` without what that module loads."""
    if text and text.isascii() and text.translate(_PLAIN).isalnum():
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def format_seconds(seconds: float) -> str:
    """``3.2 s``, ``58 s``, ``2 min 20 s``, ``3 h 5 min``, ``4 d 2 h``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
