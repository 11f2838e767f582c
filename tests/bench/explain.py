"""`explain DISK` beside `lsof FILE`, on a host with 1,000 processes of which 200 are VMs.

The VMs are stand-ins: QEMU that waits for its configuration, with a disk open under QEMU's byte locks, and
as many other descriptors as the QEMU of a small guest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from tests.bench.commands import judged
from tests.bench.harness import BenchHost, CannotMeasure, Figure, milliseconds
from tests.support.programs import find_program

TARGET = 0.25

PROCESSES = 1000
VMS = 200
OTHER_DESCRIPTORS = 20
QEMU_BYTES = (100, 101, 201)
_F_OFD_SETLK = 37
_BUSY = 75


def measure_explain(directory: Path, rounds: int) -> list[Figure]:
    """Time both in turns, for the disk of one VM in the middle."""
    try:
        lsof = find_program("lsof")
    except AssertionError:
        raise CannotMeasure("lsof is not installed") from None
    ours, theirs = [], []
    with BenchHost(directory) as host, standing_host(host) as pids:
        disk = host.disk(VMS // 2)
        host.time("acquire", "--pid", str(pids[VMS // 2]), disk)
        for _ in range(rounds + 1):
            ours.append(seconds_of([host.program, "explain", disk], _BUSY, host.environment))
            theirs.append(seconds_of([lsof, disk], 0))
    our_median, their_median = median(ours[1:]), median(theirs[1:])
    return [
        judged("explain DISK / lsof FILE, 1000 processes", our_median, their_median, TARGET),
        Figure("  vmlockctl explain", milliseconds(our_median)),
        Figure("  lsof", milliseconds(their_median)),
    ]


def seconds_of(command: Sequence[str], status: int, environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode != status:
        raise CannotMeasure(f"status {done.returncode} from {' '.join(command)}: {done.stdout}{done.stderr}")
    return took


@contextlib.contextmanager
def standing_host(host: BenchHost) -> Iterator[list[int]]:
    """Start the VMs and the other processes; yield the pids of the VMs."""
    started: list[subprocess.Popen[bytes]] = []
    fifo = str(host.disks / "fifo")
    os.mkfifo(fifo)
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        for number in range(VMS):
            started += [stand_in(number, host.disk(number), fifo, nowhere)]
        for _ in range(PROCESSES - VMS):
            started += [subprocess.Popen(["sleep", "infinity"], **nowhere)]
        yield [process.pid for process in started[:VMS]]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def stand_in(number: int, disk: str, fifo: str, nowhere: dict[str, int]) -> subprocess.Popen[bytes]:
    """QEMU that waits for a configuration that never comes; the locks pass to it with the descriptor."""
    descriptor = os.open(disk, os.O_RDWR)
    for byte in QEMU_BYTES:
        lock = struct.pack("hhxxxxqqixxxx", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(descriptor, _F_OFD_SETLK, lock)
    others = [end for _ in range(OTHER_DESCRIPTORS // 2) for end in os.pipe()]
    options = ["-name", f"guest=vm{number}", "-drive", f"file={disk},format=raw,if=virtio"]
    process = subprocess.Popen(
        [find_program("qemu-system-x86_64"), *options, "-readconfig", fifo],
        pass_fds=[descriptor, *others], **nowhere,
    )  # fmt: skip
    for each in (descriptor, *others):
        os.close(each)
    return process
