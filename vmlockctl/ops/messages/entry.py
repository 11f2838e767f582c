"""One condition that an operator meets as a number, a name or a line of text."""

from __future__ import annotations

from vmlockctl.records import NamedTuple

SANLOCK, LIBVIRT, QEMU, OURS = "sanlock", "libvirt", "qemu", "vmlockctl"


class Message(NamedTuple):
    """``patterns`` are regular expressions that a pasted line is searched for; named groups are told.

    ``causes`` stand in the order of their likelihood, ``look`` and ``do`` in the order of doing them. In
    these ``{disk}`` and the like stand for what the line names, ``DISK`` where it names nothing.
    """

    name: str
    layer: str
    meaning: str
    causes: tuple[str, ...]
    look: tuple[str, ...] = ()
    do: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    patterns: tuple[str, ...] = ()
    dont: tuple[str, ...] = ()
