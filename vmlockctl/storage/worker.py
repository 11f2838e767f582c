"""Blocking calls with a deadline: a thread per path that can be abandoned when the storage hangs.

A timed-out I/O is not cancelled, it is *unknown* (design rule 4): its buffer stays allocated and its
path is quarantined until the kernel has returned it. The next call on that path first waits for the
old one, so at most one thread ever hangs per path. Who reads the same again may have what the old one
brings (``same``): else a renewal whose reads take a little longer than the deadline never gets to its
write (sanlock-format.md 12.1-15).

A process that exits while a thread hangs stays in the kernel until the I/O is over, and so do its
file locks: a command that gave up keeps its claim locked exactly as long as its write may still land.
"""

from __future__ import annotations

import _thread
import errno

from vmlockctl import clock
from vmlockctl.errors import IoTimeout, StorageError
from vmlockctl.storage.device import Buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional, TypeVar

    T = TypeVar("T")

_PAGE = 4096


class _Call:
    """One blocking call on its way: its result or error, and a lock that is free when it is over."""

    def __init__(self, action: Callable[[Buffer], object], size: int, same: Optional[object]) -> None:
        self.action = action
        self.size = size
        self.same = same
        self.result: object = None
        self.error: Optional[BaseException] = None
        self.over = _thread.allocate_lock()
        self.over.acquire()


class Worker:
    """Runs calls on one path, one at a time, in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pending: Optional[_Call] = None
        self._buffer = Buffer(_PAGE)
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._next: Optional[_Call] = None
        self._running = False

    @property
    def hangs(self) -> bool:
        """Whether a call that passed its deadline has not come back yet."""
        return self._pending is not None and self._pending.over.locked()

    def call(
        self,
        action: Callable[[Buffer], T],
        size: int,
        timeout_seconds: float,
        what: str,
        *,
        same: Optional[object] = None,
    ) -> T:
        """Run ``action(buffer)``; raise ``IoTimeout`` when the deadline passes first.

        ``same``: take the outcome of a call that passed its deadline before, if it had an equal one.
        """
        deadline = clock.monotonic() + timeout_seconds
        call, self._pending = self._pending, None
        if call is not None and not self._await(call, deadline):
            self._pending = call
            raise self._timeout(what, timeout_seconds, earlier=True)
        if call is None or same is None or call.same != same:
            call = _Call(action, size, same)
            self._submit(call)
        if not self._await(call, deadline):
            self._pending = call
            raise self._timeout(what, timeout_seconds, earlier=False)
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; one that hangs ends when the kernel lets it."""
        self._running = False
        if self._wake.locked():
            self._wake.release()

    def _submit(self, call: _Call) -> None:
        self._next = call
        if not self._running:
            self._running = True
            _thread.start_new_thread(self._loop, ())
        self._wake.release()

    def _loop(self) -> None:
        while True:
            self._wake.acquire()
            call, self._next = self._next, None
            if call is None or not self._running:
                return
            try:
                if call.size > self._buffer.size:
                    self._buffer = Buffer(call.size)
                call.result = call.action(self._buffer)
            except OSError as error:
                call.error = StorageError(
                    f"{self.path}: {error.strerror or errno.errorcode.get(error.errno or 0)}"
                )
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                call.error = error
            call.over.release()

    @staticmethod
    def _await(call: _Call, deadline: float) -> bool:
        if call.over.acquire(timeout=max(0.0, deadline - clock.monotonic())):
            call.over.release()
            return True
        return False

    def _timeout(self, what: str, timeout_seconds: float, *, earlier: bool) -> IoTimeout:
        how = "an earlier I/O has not come back" if earlier else "no answer from the storage"
        return IoTimeout(
            f"{what}: {how} within {timeout_seconds:g} s", details={"path": self.path, "earlier": earlier}
        )
