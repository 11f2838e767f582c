"""File systems that should be mounted, and are not: a disk below one is out of sight, and not gone."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional


def unmounted_above(path: str, *, fstab: str = "/etc/fstab") -> Optional[str]:
    """The mount point in fstab at or above a path on which nothing is mounted; None where there is none."""
    real = os.path.realpath(path)
    for point in _mount_points(fstab):
        if point != "/" and (real == point or real.startswith(point + "/")) and not os.path.ismount(point):
            return point
    return None


def _mount_points(fstab: str) -> Iterator[str]:
    try:
        with open(fstab, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 1 and not line.lstrip().startswith("#") and fields[1].startswith("/"):
                    yield _unescaped(fields[1]).rstrip("/") or "/"
    except OSError:
        return


def _unescaped(text: str) -> str:
    r"""A space in a name is ``\040``, a tab ``\011`` (fstab(5))."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
