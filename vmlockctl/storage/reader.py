"""Read many pieces of one path at once, for looking and never for a decision of the protocol.

Opened read-only; a piece beyond the end is short instead of an error, so that damage can be shown.
"""

from __future__ import annotations

import os

from vmlockctl.errors import StorageError, storage_error
from vmlockctl.records import NamedTuple
from vmlockctl.storage.device import open_direct
from vmlockctl.storage.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional

    from vmlockctl.storage.device import Buffer

_ALIGNMENT = 4096


class Pieces(NamedTuple):
    """What was read: the size of the whole, and the bytes of each piece that was asked for."""

    size: int
    pieces: list[bytes]


def read_pieces(
    path: str, wanted: Sequence[tuple[int, int]], *, timeout_seconds: float, worker: Optional[Worker] = None
) -> Pieces:
    """Read (offset, size) pieces. Raises ``StorageError`` leaves, ``NoSuchArea``, ``StorageRefused``."""
    biggest = max((size for _, size in wanted), default=_ALIGNMENT)

    def action(buffer: Buffer) -> Pieces:
        fd = open_direct(path, writable=False)
        try:
            pieces = []
            view = buffer.view(biggest)
            end = os.lseek(fd, 0, os.SEEK_END)
            for offset, size in wanted:
                count, expected = os.preadv(fd, [view[:size]], offset), min(size, max(0, end - offset))
                if count < expected:
                    raise StorageError(
                        f"{path}:{offset}: short read, found {count} bytes, expected {expected} bytes"
                    )
                pieces.append(view[:count].tobytes())
            return Pieces(end, pieces)
        except OSError as error:
            raise storage_error(error, path, "cannot read") from None
        finally:
            os.close(fd)

    used = worker or Worker(path)
    try:
        return used.call(action, biggest, timeout_seconds, f"{path}: read")
    finally:
        if worker is None:
            used.close()
