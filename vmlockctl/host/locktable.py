"""The kernel's table of locks, read beside other work: it is hardly any, but takes long."""

from __future__ import annotations

import _thread

from vmlockctl.host.process import read_proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class LockTable:
    """/proc/locks, which a thread begins to read at once.

    The kernel waits for all processors before each page of it.
    """

    def __init__(self) -> None:
        self._content: Optional[bytes] = None
        self._over = _thread.allocate_lock()
        self._over.acquire()
        _thread.start_new_thread(self._read, ())

    def _read(self) -> None:
        try:
            self._content = read_proc("/proc/locks")
        except OSError:
            pass  # whoever reads it anew is told why
        finally:
            self._over.release()

    def content(self) -> Optional[bytes]:
        """The table of a moment ago; None where it could not be read."""
        with self._over:
            return self._content
