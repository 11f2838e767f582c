"""Run the procedures of ``lease`` on real devices.

Each step is performed with its deadline; what goes wrong is thrown into the procedure. Before every
write the driver asks ``guard``, which raises when our host lease is no longer certain (design rule
3), and after it tells ``on_write``, which logs the one line that every on-disk write leaves.
"""

from __future__ import annotations

import os
import stat

from vmlockctl import clock
from vmlockctl.errors import NoSuchArea, StorageRefused, storage_error
from vmlockctl.lease.steps import Clock, Journal, Random, ReadSectors, Wait, WriteSector
from vmlockctl.storage.device import file_identity, open_direct, read_exact, sync_directory, write_exact
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional, TypeVar

    from vmlockctl.lease.steps import Outcome, Procedure, Step
    from vmlockctl.storage.device import Buffer

    T = TypeVar("T")


def _random_fraction() -> float:
    return int.from_bytes(os.urandom(6), "big") / (1 << 48)


class Driver:
    """Performs steps. One driver serves one thread; its workers are shared with nobody.

    ``take_late_reads``: a read that is asked for again may be answered by the one that passed its deadline.
    """

    def __init__(
        self,
        *,
        writable: bool = True,
        take_late_reads: bool = False,
        guard: Optional[Callable[[], None]] = None,
        journal: Optional[Callable[[bytes], None]] = None,
        on_write: Optional[Callable[[WriteSector], None]] = None,
        on_wait: Optional[Callable[[float, str, float], None]] = None,
    ) -> None:
        self.write_count = 0  # writes begun: tells a refusal before the first from one after it
        self._writable = writable
        self._take_late_reads = take_late_reads
        self._guard = guard
        self._journal = journal
        self._on_write = on_write
        self._on_wait = on_wait
        self._workers: dict[str, Worker] = {}
        self._descriptors: dict[str, int] = {}
        self._files: dict[str, tuple[int, int, int]] = {}

    def run(self, procedure: Procedure[T]) -> T:
        """Run a procedure to its end and return its result; raise what it raises."""
        try:
            step = next(procedure)
            while True:
                try:
                    outcome = self._perform(step)
                except Exception as error:  # noqa: BLE001 - the procedure decides what an error means
                    step = procedure.throw(error)
                else:
                    step = procedure.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            procedure.close()

    def close(self) -> None:
        """Let go of every descriptor and thread but those that hang; the next run opens by path again."""
        for path, worker in list(self._workers.items()):
            if worker.hangs:
                continue
            fd = self._descriptors.pop(path, None)
            if fd is not None:
                os.close(fd)
            worker.close()
            del self._workers[path]

    def hangs(self, path: str) -> bool:
        """Whether an I/O on a path passed its deadline and has not come back: it may still happen."""
        worker = self._workers.get(path)
        return worker is not None and worker.hangs

    def file_of(self, path: str) -> tuple[int, ...]:
        """Which file the last I/O on a path went to, closed since or not; () before the first."""
        return self._files.get(path, ())

    def is_current(self, path: str, timeout_seconds: float) -> bool:
        """Whether a path still leads to the file that our last I/O on it went to, looked up anew."""

        def action(_buffer: Buffer) -> bool:
            return self._leads_to_open_file(path)

        return self._worker(path).call(action, 0, timeout_seconds, f"{path}: look at its file")

    def unlink(self, path: str, timeout_seconds: float) -> None:
        """Take the file that our last I/O went to out of its directory; it stays open here.

        Nothing makes the look and the unlink one step: only whoever holds the lease in that file may do this.
        Raises ``StorageRefused`` where the path leads to another file, or to none.
        """

        def action(_buffer: Buffer) -> None:
            if not self._leads_to_open_file(path) or not stat.S_ISREG(os.lstat(path).st_mode):
                raise StorageRefused(f"{path}: another file is there now", hint="nothing was removed")
            try:
                os.unlink(path)
                sync_directory(os.path.dirname(path))
            except OSError as error:
                raise storage_error(error, path, "cannot remove") from None

        if self._guard is not None:
            self._guard()
        self.write_count += 1
        self._worker(path).call(action, 0, timeout_seconds, f"{path}: unlink")

    def _leads_to_open_file(self, path: str) -> bool:
        """Called in the worker's thread."""
        opened = file_identity(self._descriptor(path))
        try:
            fd = open_direct(path, writable=False)
        except NoSuchArea:
            return False
        try:
            return file_identity(fd) == opened
        finally:
            os.close(fd)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _perform(self, step: Step) -> Outcome:
        if isinstance(step, ReadSectors):
            return self._read(step)
        if isinstance(step, WriteSector):
            self._write(step)
            return None
        if isinstance(step, Wait):
            if self._on_wait is not None:
                self._on_wait(step.seconds, step.why, step.left_seconds)
            else:
                clock.sleep(step.seconds)
            return None
        if isinstance(step, Clock):
            return clock.monotonic_seconds()
        if isinstance(step, Random):
            return _random_fraction()
        assert isinstance(step, Journal)
        if self._journal is not None:
            self._journal(step.record)
        return None

    def _read(self, step: ReadSectors) -> bytes:
        area = step.area
        offset = area.byte_offset(step.sector)
        size = step.sector_count * area.geometry.sector_size

        def action(buffer: Buffer) -> bytes:
            return read_exact(self._descriptor(area.path), area.path, offset, size, buffer)

        return self._worker(area.path).call(
            action,
            size,
            step.timeout_seconds,
            f"{area.path}:{offset}: read of {size} bytes",
            same=(offset, size) if self._take_late_reads else None,
        )

    def _write(self, step: WriteSector) -> None:
        area = step.area
        offset = area.byte_offset(step.sector)

        def action(buffer: Buffer) -> None:
            write_exact(self._descriptor(area.path), area.path, offset, step.data, buffer)

        if self._guard is not None:
            self._guard()
        self.write_count += 1
        try:
            self._worker(area.path).call(
                action, len(step.data), step.timeout_seconds, f"{area.path}:{offset}: write ({step.what})"
            )
        finally:
            if self._on_write is not None:
                self._on_write(step)

    def _worker(self, path: str) -> Worker:
        worker = self._workers.get(path)
        if worker is None:
            worker = self._workers[path] = Worker(path)
        return worker

    def _descriptor(self, path: str) -> int:
        """Called in the worker's thread: even an open may hang."""
        fd = self._descriptors.get(path)
        if fd is None:
            fd = open_direct(path, writable=self._writable)
            self._descriptors[path] = fd
            self._files[path] = file_identity(fd)
        return fd
