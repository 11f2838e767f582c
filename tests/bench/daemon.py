"""The daemon with 100 claims: its memory, and its processor time at rest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.bench.harness import BenchHost, Figure

CLAIMS = 100
MEMORY_TARGET_MIB = 30
PROCESSOR_TARGET_PERCENT = 0.5

# After the last acquire, before the measuring: at rest means that no command runs.
CALM_SECONDS = 5


def kibibytes(path: Path, key: str) -> int:
    """Return a value of /proc/PID/status or smaps_rollup, which is in kB."""
    for line in path.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise LookupError(f"no {key} in {path}")


def processor_seconds(pid: int) -> float:
    """Return the processor time of all threads, ended ones too."""
    # The name in field 2 may hold spaces; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_daemon(directory: Path, rest_seconds: int) -> list[Figure]:
    """Hold 100 leases, each by a process of its own, and watch the daemon at the default io_timeout."""
    with BenchHost(directory) as host:
        for number in range(CLAIMS):
            host.time("acquire", "--pid", host.sleeper(), host.disk(number))
        pid, standby_pid = host.wait_for_pair()
        time.sleep(CALM_SECONDS)
        began, used_before = time.monotonic(), processor_seconds(pid)
        time.sleep(rest_seconds)
        used = processor_seconds(pid) - used_before
        percent = 100 * used / (time.monotonic() - began)
        proc = Path(f"/proc/{pid}")
        resident = kibibytes(proc / "status", "VmRSS") / 1024
        unshared = kibibytes(proc / "smaps_rollup", "Pss") / 1024
        standby_resident = kibibytes(Path(f"/proc/{standby_pid}/status"), "VmRSS") / 1024
    return [
        Figure(
            f"daemon with {CLAIMS} claims: resident (RSS)",
            f"{resident:.1f} MiB",
            f"<= {MEMORY_TARGET_MIB} MiB",
            met=resident <= MEMORY_TARGET_MIB,
        ),
        Figure("  proportional share (PSS)", f"{unshared:.1f} MiB"),
        Figure("  its standby, resident", f"{standby_resident:.1f} MiB"),
        Figure(
            f"daemon at rest, {rest_seconds} s: of one core",
            f"{percent:.2f} %",
            f"< {PROCESSOR_TARGET_PERCENT} %",
            met=percent < PROCESSOR_TARGET_PERCENT,
        ),
    ]
