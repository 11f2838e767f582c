"""Every duration of the protocol, in seconds, from one number (sanlock-format.md section 3.1).

Each takes *somebody's* io_timeout, and whose it is decides between safe and unsafe: our own for
what we do with our lease, the other host's for what we conclude about it. sanlock's names.

Why they are safe: a host writes its record every ``id_renewal_seconds``. When it has not managed for
``id_renewal_fail_seconds`` after the *start* of its last good write, it stops its VMs; another host
that saw no change takes over only after strictly more than ``host_dead_seconds``, which is 60
seconds (the watchdog's fire timeout) later on any clock that runs at about the same rate.
"""

from __future__ import annotations

DEFAULT_IO_TIMEOUT = 10
MIN_IO_TIMEOUT = 1
MAX_IO_TIMEOUT = 255  # sanlock masks it to 8 bits on disk (12.2-r)

WATCHDOG_FIRE_SECONDS = 60  # a constant in sanlock 3.8.5, equal on all hosts
INIT_IO_SECONDS = 60  # one write of 1 to 8 MiB is no renewal (12.1-17)

SHARED_RETRIES = 8  # sanlock's sh_retries


def sane_io_timeout(stored: int, own: int) -> int:
    """The io_timeout to reckon with for a record that states ``stored``.

    The field is not covered by the checksum, so a foreign 0 or 2**15 must neither shorten nor
    explode a wait: out of range, our own counts (12.2-r).
    """
    return stored if MIN_IO_TIMEOUT <= stored <= MAX_IO_TIMEOUT else own


def id_renewal_seconds(io_timeout: int) -> int:
    return 2 * io_timeout


def id_renewal_warn_seconds(io_timeout: int) -> int:
    return 6 * io_timeout


def id_renewal_fail_seconds(io_timeout: int) -> int:
    """The age of our last good renewal at which our host lease is lost."""
    return 8 * io_timeout


def host_fail_seconds(io_timeout: int) -> int:
    """The age at which *another* host shows as failing; its io_timeout."""
    return 8 * io_timeout


def host_dead_seconds(io_timeout: int) -> int:
    """Others may take over strictly after this many seconds without a change; the owner's io_timeout."""
    return 8 * io_timeout + WATCHDOG_FIRE_SECONDS


def join_settle_seconds(io_timeout: int) -> int:
    """Wait after writing a claim on a host id; the io_timeout that the record held *before* (3.2)."""
    return 2 * io_timeout


def own_record_watch_seconds(io_timeout: int) -> int:
    """How long we watch a record that carries our own name before we skip the long wait.

    A live clone of this host would renew within ``id_renewal_seconds`` and one I/O (faults.md
    finding 9).
    """
    return 3 * io_timeout


def set_bitmap_seconds(io_timeout: int) -> int:
    """How often at most a host heeds the requests of one sender (1.4)."""
    return 6 * io_timeout


def bit_stands_seconds(io_timeout: int) -> int:
    """How long a bit for another host stays in our renewals.

    A cycle longer than ``set_bitmap_seconds``, for which sanlock sets it: whoever heeded us just before looks
    again while the bit is there.
    """
    return set_bitmap_seconds(io_timeout) + id_renewal_seconds(io_timeout)


def renewal_retry_seconds() -> float:
    """After a failed renewal the next attempt does not wait for its turn (3.3)."""
    return 0.5


def read_timeout_seconds(io_timeout: int) -> int:
    return io_timeout


def write_timeout_seconds(io_timeout: int) -> int:
    return io_timeout


def renewal_write_timeout_seconds(io_timeout: int) -> int:
    """A renewal that lands late is still a renewal until others may take over (3.1)."""
    return host_dead_seconds(io_timeout)
