"""The sanlock daemon of this machine, asked over its socket which lockspaces it has joined.

Two programs must never write one host id (DESIGN.md section 7), so a silence is not an answer: nobody
listening means no daemon, but a daemon that does not reply in time, or whose socket we may not open,
raises. Wire format: sanlock-format.md section 8, in host byte order and struct layout.

    header     32  u32 magic, version, cmd, cmd_flags, length (header + payload), seq, data (result), data2
    lockspace  48 name | u64 host_id | u32 flags, pad | disk: 1024 path, u64 offset, u32 pad, pad
"""

from __future__ import annotations

import os
import struct

from vmlockctl import clock
from vmlockctl.errors import EXIT_NOT_JOINED, VmlockctlError
from vmlockctl.records import NamedTuple
from vmlockctl.text import decode_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

DEFAULT_RUN_DIR = "/run/sanlock"
SOCKET_NAME = "sanlock.sock"

HEADER = struct.Struct("=6I 2i")
LOCKSPACE = struct.Struct("=48s Q 2I 1024s Q 2I")

assert HEADER.size == 32
assert LOCKSPACE.size == 1104

_MAGIC = 0x04282010
_VERSION = 1
_GET_LOCKSPACES = 22
_MAX_REPLY = HEADER.size + 4096 * LOCKSPACE.size  # far beyond what a daemon serves: damage, not data


class JoinedLockspace(NamedTuple):
    name: str
    host_id: int
    path: str
    offset: int


class SanlockSilent(VmlockctlError):
    """A sanlock daemon is there, and what it has joined cannot be known."""

    code = "sanlock-silent"
    exit_code = EXIT_NOT_JOINED
    hint = "see 'sanlock client status'; a host id that sanlock uses is never used by vmlockctl"


def socket_path() -> str:
    """Name the daemon's socket; ``SANLOCK_RUN_DIR`` moves it, as it does for sanlock itself."""
    return os.path.join(os.environ.get("SANLOCK_RUN_DIR") or DEFAULT_RUN_DIR, SOCKET_NAME)


def joined_lockspaces(*, timeout_seconds: float = 2.0) -> list[JoinedLockspace]:
    """List what the local sanlock daemon has joined; nothing if there is no daemon.

    Raises ``SanlockSilent`` if there is one that does not answer, within ``timeout_seconds`` altogether.
    """
    path = socket_path()
    try:
        os.lstat(path)  # most machines have no sanlock: spare them the import below
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SanlockSilent(f"{path}: cannot look, {error.strerror}") from error
    import socket

    deadline = clock.monotonic() + timeout_seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return []
        except OSError as error:
            raise SanlockSilent(f"{path}: cannot connect, {error.strerror or error}") from error
        try:
            return _get_lockspaces(connection, deadline)
        except (OSError, ValueError) as error:
            raise SanlockSilent(f"{path}: {error}") from error


def _get_lockspaces(connection: socket.socket, deadline: float) -> list[JoinedLockspace]:
    connection.sendall(HEADER.pack(_MAGIC, _VERSION, _GET_LOCKSPACES, 0, HEADER.size, 0, 0, 0))
    header = HEADER.unpack(_receive(connection, HEADER.size, deadline))
    magic, _, command, _, length, _, result, count = header
    if magic != _MAGIC or command != _GET_LOCKSPACES:
        raise ValueError(f"not a sanlock reply, found magic {magic:#x} command {command}")
    if result < 0:
        raise ValueError(f"the daemon refused to list its lockspaces, result {result}")
    if not 0 <= count * LOCKSPACE.size <= _MAX_REPLY:
        raise ValueError(f"not a sanlock reply, found length {length} and {count} lockspaces")
    payload = _receive(connection, count * LOCKSPACE.size, deadline)
    return [
        JoinedLockspace(decode_name(name), host_id, decode_name(path), offset)
        for name, host_id, _, _, path, offset, _, _ in LOCKSPACE.iter_unpack(payload)
    ]


def _receive(connection: socket.socket, size_bytes: int, deadline: float) -> bytes:
    """Receive exactly so much, however slowly it comes, before the deadline."""
    received = bytearray()
    while len(received) < size_bytes:
        remaining_seconds = deadline - clock.monotonic()
        if remaining_seconds <= 0:
            raise TimeoutError("the daemon does not answer")
        connection.settimeout(remaining_seconds)
        try:
            chunk = connection.recv(size_bytes - len(received))
        except TimeoutError:
            raise TimeoutError("the daemon does not answer") from None
        if not chunk:
            raise ValueError(f"the daemon hung up, found {len(received)} bytes, expected {size_bytes}")
        received += chunk
    return bytes(received)
