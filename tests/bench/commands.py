"""`acquire` and `release`, and `dump-leases`, as whole processes beside `sanlock direct`."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

from tests.bench.harness import BenchHost, Figure, Sanlock, milliseconds

ACQUIRE_TARGET = 1.0
DUMP_TARGET = 0.1

DUMPED_LEASES = 1000


def judged(what: str, ours: float, theirs: float, target: float) -> Figure:
    ratio = ours / theirs
    return Figure(what, f"{ratio:.3f}", f"<= {target}", met=ratio <= target)


def measure_acquire(directory: Path, rounds: int) -> list[Figure]:
    """Time acquire then release of one lease, ours and sanlock's in turns, at their defaults."""
    sanlock = Sanlock(directory)
    sanlock.prepare(lease_count=1)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with BenchHost(directory) as host:
        pid, disk = host.sleeper(), host.disk()
        for _ in range(rounds + 1):
            ours.append((host.time("acquire", "--pid", pid, disk), host.time("release", "--pid", pid, disk)))
            theirs.append((sanlock.acquire(), sanlock.release()))
    # The first round fills caches and creates the lease: it is not counted.
    our_sum, their_sum = (median(map(sum, pairs[1:])) for pairs in (ours, theirs))
    return [
        judged("acquire + release / sanlock direct", our_sum, their_sum, ACQUIRE_TARGET),
        Figure("  vmlockctl acquire", milliseconds(median(pair[0] for pair in ours[1:]))),
        Figure("  vmlockctl release", milliseconds(median(pair[1] for pair in ours[1:]))),
        Figure("  sanlock direct acquire", milliseconds(median(pair[0] for pair in theirs[1:]))),
        Figure("  sanlock direct release", milliseconds(median(pair[1] for pair in theirs[1:]))),
    ]


def measure_dump(directory: Path, rounds: int) -> list[Figure]:
    """Time the dump of 1,000 leases: in one file, which both read whole; and as a lease directory holds them.

    sanlock reads no directory: it is run once per file, so the time of one file counts 1,000 times.
    """
    sanlock = Sanlock(directory)
    sanlock.prepare(lease_count=DUMPED_LEASES)
    lease_files = directory / "dump"
    split_leases(sanlock.path, lease_files)
    one_lease = min(lease_files.iterdir())
    ours, of_directory, theirs, of_one_lease = [], [], [], []
    with BenchHost(directory) as host:
        for _ in range(rounds + 1):
            ours.append(host.time("dump-leases", "--json", str(sanlock.path)))
            theirs.append(sanlock.direct("dump", f"{sanlock.path}:0:{DUMPED_LEASES}M"))
            of_directory.append(host.time("dump-leases", "--json", str(lease_files)))
            of_one_lease.append(sanlock.direct("dump", f"{one_lease}:0:1M"))
    our_median, their_median, directory_median, one_median = (
        median(times[1:]) for times in (ours, theirs, of_directory, of_one_lease)
    )
    all_files = one_median * DUMPED_LEASES
    return [
        judged("dump-leases of 1000 in one file / sanlock", our_median, their_median, DUMP_TARGET),
        Figure("  vmlockctl dump-leases", milliseconds(our_median)),
        Figure("  sanlock direct dump", milliseconds(their_median)),
        judged("dump-leases of 1000 files / sanlock x 1000", directory_median, all_files, DUMP_TARGET),
        Figure("  vmlockctl dump-leases", milliseconds(directory_median)),
        Figure("  sanlock direct dump of one file", milliseconds(one_median)),
    ]


def split_leases(whole: Path, directory: Path) -> None:
    """Write each lease of one file into a file of its own, and wait until all are on the disk."""
    directory.mkdir()
    with whole.open("rb") as source:
        for number in range(DUMPED_LEASES):
            (directory / f"{number:032x}").write_bytes(source.read(1 << 20))
    os.sync()
