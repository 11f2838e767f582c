"""The search for a disk's openers, begun before anything else: most of explain's time goes there."""

from __future__ import annotations

import os

from vmlockctl.host.openers import Identity, Search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

__all__ = ["Search", "begin_search"]


def begin_search(text: str) -> Optional[Search]:
    """Begin it where ``text`` is the path of something that can be open; a VM's disks are not known yet."""
    if not os.path.isfile(text) and not text.startswith("/dev/"):
        return None
    try:
        return Search(Identity.of_path(text))
    except OSError:
        return None
