"""Areas in memory and a driver for procedures over them, as fast as a fuzzer needs it.

What ``storage`` promises holds here too: a read or write beyond the end is ``TruncatedArea``. The clock is
virtual. Every step is judged as it comes: within the area that it names, a write only where this procedure
may write, and no more of either than the bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Optional

from tests.proofs.fuzzing.cases import Found, Patch
from vmlockctl.errors import TruncatedArea
from vmlockctl.lease.steps import Clock, Journal, Procedure, Random, ReadSectors, Wait, WriteSector

MAX_STEPS = 20_000
MAX_WAIT_SECONDS = 24 * 3600

WriteCheck = Callable[["Memory", WriteSector], None]


class Memory:
    """Files by path. ``change`` remembers what it overwrote, ``restore`` puts all of it back."""

    def __init__(self, files: dict[str, bytes], *, now: int) -> None:
        self.files = {path: bytearray(content) for path, content in files.items()}
        self.sizes = {path: len(content) for path, content in files.items()}
        self._start = self.now = now
        self._undo: list[Patch] = []
        self.waited = 0.0
        self.writes: list[WriteSector] = []

    def change(self, patches: Sequence[Patch], size: Optional[int]) -> None:
        for path, offset, data in patches:
            self._put(path, offset, data)
        if size is not None:
            self.sizes[patches[0].path] = size

    def _put(self, path: str, offset: int, data: bytes) -> None:
        content = self.files[path]
        data = data[: len(content) - offset]
        self._undo.append(Patch(path, offset, bytes(content[offset : offset + len(data)])))
        content[offset : offset + len(data)] = data

    def restore(self) -> None:
        while self._undo:
            path, offset, data = self._undo.pop()
            self.files[path][offset : offset + len(data)] = data
        for path, content in self.files.items():
            self.sizes[path] = len(content)
        self.now, self.waited, self.writes = self._start, 0.0, []

    def image(self, path: str) -> bytes:
        return bytes(self.files[path])

    def run(self, procedure: Procedure[Any], *, may_write: WriteCheck, writes: int = 1 << 30) -> Any:
        """Run to the end, or up to the write number ``writes`` (counted from 0), which is not done."""
        steps, source = 0, random.Random(0)
        outcome: Any = None
        send: Callable[[Any], Any] = procedure.send
        try:
            while True:
                step = send(outcome)
                steps += 1
                if steps > MAX_STEPS or self.waited > MAX_WAIT_SECONDS:
                    raise Found(f"no end after {steps} steps and {self.waited:.0f} s of waiting")
                outcome, send = None, procedure.send
                if isinstance(step, WriteSector):
                    if len(self.writes) == writes:
                        return None
                    may_write(self, step)
                    self.writes.append(step)
                    outcome = self._write(step)
                elif isinstance(step, ReadSectors):
                    outcome = self._read(step)
                elif isinstance(step, Wait):
                    self.waited += step.seconds
                    self.now += round(step.seconds)
                elif isinstance(step, Clock):
                    outcome = self.now
                elif isinstance(step, Random):
                    outcome = source.random()
                else:
                    assert isinstance(step, Journal)
                if isinstance(outcome, TruncatedArea):
                    send = procedure.throw
        except StopIteration as end:
            return end.value
        finally:
            procedure.close()

    def _span(self, step: Any, size: int) -> tuple[int, int]:
        area = step.area
        start: int = step.sector * area.geometry.sector_size
        if not 0 <= start <= start + size <= area.geometry.align_size:
            raise Found(f"a step outside its area: {step[:3]}")
        return area.offset + start, area.offset + start + size

    def _read(self, step: ReadSectors) -> Any:
        size = step.sector_count * step.area.geometry.sector_size
        start, end = self._span(step, size)
        if end > self.sizes[step.area.path]:
            return TruncatedArea("the area is too short", found="less", expected=f"{size} bytes")
        return bytes(memoryview(self.files[step.area.path])[start:end])

    def _write(self, step: WriteSector) -> Optional[TruncatedArea]:
        start, end = self._span(step, len(step.data))
        if end > self.sizes[step.area.path]:
            return TruncatedArea("the area is too short to write to", found="less", expected=f"{end} bytes")
        self._put(step.area.path, start, step.data)
        return None
