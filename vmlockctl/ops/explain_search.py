"""What explain begins before anything else, because it takes longest."""

from __future__ import annotations

from vmlockctl.host.locktable import LockTable
from vmlockctl.host.openers import Search


class Begun:
    """The search for a disk's openers and the table of locks, both under way; to be closed.

    For callers that have started no thread yet.
    """

    def __init__(self, text: str) -> None:
        self.search = Search(text)
        self.locks = LockTable()

    def close(self) -> None:
        self.search.close()
