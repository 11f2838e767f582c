"""A client of the real sanlock daemon: its socket, as sanlock-format.md section 8 has it.

The connection is the client: what it acquires is released by the daemon when it is closed, or its process
ends. For hundreds of grants in a row; ``sanlock client command`` starts a process for each.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_MAGIC, _VERSION = 0x04282010, 1
_HEADER = struct.Struct("=8I")  # magic, version, cmd, cmd_flags, length, seq, data, data2
_RESOURCE = struct.Struct("=48s48s2Q4I")  # lockspace, name, lver, data64, data32, unused, flags, num_disks
_DISK = struct.Struct("=1024sQ2I")  # path, offset
_OPTIONS = struct.Struct("=48s2I")  # owner_name, flags, len

_REGISTER, _ACQUIRE, _RELEASE, _INQUIRE, _CONVERT = 1, 7, 8, 9, 27
_SHARED = 4
_THIS_CONNECTION = 0xFFFFFFFF

assert (_HEADER.size, _RESOURCE.size, _DISK.size, _OPTIONS.size) == (32, 128, 1040, 56)


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


class SanlockClient:
    """One registered connection, whose process holds one lease: answers are sanlock's numbers."""

    def __init__(self, run_dir: Path, *, space: str, resource: str, path: Path, timeout: float = 90) -> None:
        self._space, self._name, self._path = space.encode(), resource.encode(), os.fsencode(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(os.fspath(run_dir / "sanlock.sock"))
        self._send(_REGISTER)  # the one command without an answer

    def acquire(self, *, shared: bool = False) -> int:
        resource = self._resource(shared=shared, disks=1) + _DISK.pack(self._path, 0, 0, 0)
        return self._call(_ACQUIRE, resource + _OPTIONS.pack(b"", 0, 0), data=1)

    def release(self) -> int:
        return self._call(_RELEASE, self._resource(), data=1)

    def convert(self, *, shared: bool) -> int:
        return self._call(_CONVERT, self._resource(shared=shared))

    def held(self) -> str:
        """The daemon's own description of what is held: ``SPACE:NAME:PATH:OFFSET:lver`` or ``...:SH``."""
        self._send(_INQUIRE)
        header = self._read_header()
        return self._read(header[4] - _HEADER.size).rstrip(b"\0").decode()

    def close(self) -> None:
        self._socket.close()

    def _resource(self, *, shared: bool = False, disks: int = 0) -> bytes:
        return _RESOURCE.pack(self._space, self._name, 0, 0, 0, 0, _SHARED if shared else 0, disks)

    def _call(self, command: int, payload: bytes, *, data: int = 0) -> int:
        self._send(command, payload, data)
        header = self._read_header()
        self._read(header[4] - _HEADER.size)
        return _signed(header[6])

    def _send(self, command: int, payload: bytes = b"", data: int = 0) -> None:
        length = _HEADER.size + len(payload)
        header = _HEADER.pack(_MAGIC, _VERSION, command, 0, length, 0, data, _THIS_CONNECTION)
        self._socket.sendall(header + payload)

    def _read_header(self) -> tuple[int, ...]:
        header: tuple[int, ...] = _HEADER.unpack(self._read(_HEADER.size))
        assert header[0] == _MAGIC, header
        return header

    def _read(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            part = self._socket.recv(length - len(got))
            assert part, "the sanlock daemon closed the connection"
            got += part
        return got
