"""The same verdict as ``sanlock direct read_leader`` on mutated delta records and resource leaders.

Each case is one mutated record in a file of one of the five geometries, which the shipped procedures and the
real program then read: the number of our error is theirs, and where both accept the record, every field is
the same. Two documented exceptions are counted by themselves, and nothing else may differ:

stricter    we refuse a record that sanlock accepts and misbehaves on (sanlock-format.md 2.3, 12.2), or whose
            generation or lver could not grow any more
first look  the sizes of a lockspace come from its first record (1.7). ``direct`` says -1 and -22 where the
            daemon, and we, say that its magic (-223) or sector size (-225) is wrong; and it does not judge
            its version and align size, nor whether it is a resource's: past these, the verdict on the
            record that is asked for is the same
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, Optional

from tests.proofs.fuzzing.mutate import LEADER_LAYOUT, Mutator
from tests.proofs.fuzzing.scenes import IO_TIMEOUT, RESOURCE, SIZES, SPACE, scene
from tests.proofs.progress import Progress
from tests.support.programs import find_program
from vmlockctl.errors import OnDiskError
from vmlockctl.lease.delta import Lockspace, identify_lockspace, read_record
from vmlockctl.lease.resource import Claimant, Resource, locate
from vmlockctl.lease.steps import Area, Procedure
from vmlockctl.ondisk.geometry import Geometry
from vmlockctl.ondisk.leader import PAXOS_MAGIC, Leader
from vmlockctl.storage.driver import Driver
from vmlockctl.units import MIB

# What we refuse and sanlock does not, by the code of our error.
STRICTER = {
    "lockspace": {"wrong-field"},
    "resource": {"wrong-field", "wrong-num-hosts", "wrong-sector-size", "wrong-geometry"},
}
# Where the first record of a lockspace is damaged: what direct says for our code, and what it lets pass.
FIRST_LOOK = {"wrong-magic": -1, "wrong-sector-size": -22}
NOT_JUDGED = {"wrong-version", "wrong-geometry"}

# Every file is as long as the largest area: whether an area is all there is not what is compared here.
FILE_SIZE = 8 * MIB

_HOSTS = (1, 2, 3)


class Case(NamedTuple):
    kind: str  # "lockspace" or "resource"
    size: str  # of SIZES
    state: str
    host_id: int  # whose record is read: 0 for a resource
    sector: int  # the one that is mutated
    record: bytes


class Verdict(NamedTuple):
    """``number`` is sanlock's, 0 for a record that was accepted; ``code`` names our error."""

    number: Optional[int]
    code: str
    fields: dict[str, int]


# -- the cases ------------------------------------------------------------------------------------------


@cache
def _mutator(kind: str, size: str, state: str, sector: int) -> Mutator:
    made = scene(f"{size}/{state}")
    content, length = (made.space if kind == "lockspace" else made.resource), made.geometry.sector_size
    others = [content[length * at : length * (at + 1)] for at in range(3) if at != sector]
    return Mutator(content[length * sector :][:length], LEADER_LAYOUT, others, seed=sector)


def cases(source: random.Random, count: int) -> Iterator[Case]:
    for number in range(count):
        size = SIZES[1 + number % (len(SIZES) - 1)]
        if number % 2:
            host_id = source.choice(_HOSTS)
            # Mostly the record that is read; the first one states the sizes for all.
            sector = host_id - 1 if source.random() < 0.7 else 0
            kind, state = "lockspace", "unused"
        else:
            kind, state, host_id, sector = "resource", source.choice(["unused", "held-us", "cleared"]), 0, 0
        [record] = _mutator(kind, size, state, sector).cases(source, 1)
        yield Case(kind, size, state, host_id, sector, record)


# -- the files ------------------------------------------------------------------------------------------


class Files:
    """One sparse file for each kind and geometry; a case changes a sector, and ``restore`` puts it back."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[tuple[str, str, str], tuple[Path, int]] = {}

    def put(self, case: Case) -> Path:
        path, descriptor = self._file(case)
        os.pwrite(descriptor, case.record, self._offset(case))
        return path

    def restore(self, case: Case) -> None:
        made = scene(f"{case.size}/{case.state}")
        content = made.space if case.kind == "lockspace" else made.resource
        at = self._offset(case)
        os.pwrite(self._file(case)[1], content[at : at + len(case.record)], at)

    def _offset(self, case: Case) -> int:
        return case.sector * scene(f"{case.size}/{case.state}").geometry.sector_size

    def _file(self, case: Case) -> tuple[Path, int]:
        key = case[:3]
        if key not in self._files:
            made = scene(f"{case.size}/{case.state}")
            path = self._directory / "-".join(key)
            content = made.space if case.kind == "lockspace" else made.resource
            path.write_bytes(content)
            os.truncate(path, FILE_SIZE)
            self._files[key] = path, os.open(path, os.O_RDWR)
        return self._files[key]

    def close(self) -> None:
        for _, descriptor in self._files.values():
            os.close(descriptor)


# -- the two readers ------------------------------------------------------------------------------------


def our_verdict(case: Case, path: Path) -> Verdict:
    with Driver(writable=False) as driver:
        try:
            if case.kind == "lockspace":
                lockspace = driver.run(identify_lockspace(str(path), 0, space_name=None))
                lockspace = lockspace._replace(space_name=SPACE)
                leader = driver.run(read_record(lockspace, case.host_id, IO_TIMEOUT))
            else:
                leader = driver.run(_locate(case, path))[1]
        except OnDiskError as error:
            return Verdict(error.sanlk_rv, error.code, {})
    return Verdict(0, "", numbers_of(leader))


def _locate(case: Case, path: Path) -> Procedure[tuple[Area, Leader]]:
    made = scene(f"{case.size}/{case.state}")
    lockspace = Lockspace(Area("", 0, made.geometry), SPACE, IO_TIMEOUT)
    return locate(Claimant(lockspace, 0, 0, IO_TIMEOUT, {}), Resource(str(path), 0, RESOURCE))


# Names may hold anything, and the last three are printed under other names for a lockspace.
_NAMES = {
    "space_name", "resource_name", "unused1", "unused2", "write_id", "write_generation", "write_timestamp",
}  # fmt: skip


def numbers_of(leader: Leader) -> dict[str, int]:
    """The numbers that sanlock prints for both kinds under the same name."""
    return {name: value for name, value in leader._asdict().items() if name not in _NAMES}


def sanlock_verdict(program: str, case: Case, path: Path) -> Verdict:
    if case.kind == "lockspace":
        spec = ["-s", f"{SPACE}:{case.host_id}:{path}:0"]
    else:
        spec = ["-r", f"{SPACE}:{RESOURCE}:{path}:0"]
    result = subprocess.run(
        [program, "direct", "read_leader", *spec, "-a", "0"], capture_output=True, timeout=20, check=False
    )
    lines = result.stdout.decode("ascii", "replace").split("\n")
    first = lines[0].split()
    if first[:2] != ["read_leader", "done"]:
        raise AssertionError(f"sanlock direct said {result.stdout!r} {result.stderr!r}")
    number = int(first[2])
    if (number != 0) != (result.returncode != 0):
        raise AssertionError(f"sanlock direct said {number} and exited with {result.returncode}")
    printed = (line.split() for line in lines[1:])
    fields = {words[0]: words[1] for words in printed if len(words) == 2}
    wanted = set(Leader._fields) - _NAMES
    return Verdict(number, "", {name: int(fields[name], 0) for name in wanted & fields.keys()})


def past_first_look(case: Case, path: Path) -> Optional[int]:
    """Our verdict on the record itself, where the first one states a sector size that can be."""
    sector_size = Leader.from_bytes(case.record).sector_size
    if sector_size not in (512, 4096):
        return FIRST_LOOK["wrong-sector-size"]
    lockspace = Lockspace(Area(str(path), 0, Geometry(sector_size, 1 * MIB)), SPACE, IO_TIMEOUT)
    with Driver(writable=False) as driver:
        try:
            driver.run(read_record(lockspace, case.host_id, IO_TIMEOUT))
        except OnDiskError as error:
            return error.sanlk_rv
    return 0


def compare(case: Case, path: Path, ours: Verdict, theirs: Verdict) -> str:
    """``same``, the documented exception, or what differs."""
    if ours.number == theirs.number and ours.code != "wrong-field":
        if ours.fields == theirs.fields or ours.number:
            return "same"
        return f"DIFFERS: ours {ours.fields}, sanlock {theirs.fields}"
    if theirs.number == 0 and ours.code in STRICTER[case.kind]:
        return f"stricter {ours.code}"
    if case.kind == "lockspace" and case.sector == 0:
        if FIRST_LOOK.get(ours.code) == theirs.number:
            return f"first look {ours.code}/{theirs.number}"
        is_resource = Leader.from_bytes(case.record).magic == PAXOS_MAGIC  # there, direct goes on as well
        if (ours.code in NOT_JUDGED or is_resource) and past_first_look(case, path) == theirs.number:
            return f"first look {ours.code}"
    return f"DIFFERS: ours {ours.number} {ours.code}, sanlock {theirs.number}"


# -- the command ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)


def run(count: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Compare ``count`` cases: how many had which outcome, and which verdicts they met."""
    program = find_program("sanlock")
    outcomes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    progress = Progress("verdicts", count, seed=seed)
    directory = Path(tempfile.mkdtemp(prefix="vmlockctl-verdicts-", dir="/var/tmp"))
    files = Files(directory)
    try:
        for number, case in enumerate(cases(random.Random(seed), count)):
            path = files.put(case)
            ours, theirs = our_verdict(case, path), sanlock_verdict(program, case, path)
            outcome = compare(case, path, ours, theirs)
            files.restore(case)
            outcomes[outcome.split(":")[0]] += 1
            verdicts[f"{case.kind} {theirs.number}"] += 1
            if outcome.startswith("DIFFERS"):
                print(f"case {number} of seed {seed}: {case}\n{outcome}", file=sys.stderr)
            progress.add(1, differ=outcomes["DIFFERS"])
    finally:
        files.close()
        shutil.rmtree(directory)
    return outcomes, verdicts


def main(arguments: argparse.Namespace) -> int:
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    outcomes, verdicts = run(arguments.cases, seed)
    met = ", ".join(f"{name}: {count}" for name, count in sorted(verdicts.items()))
    counted = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
    print(f"verdicts: {arguments.cases:,} mutated areas, {counted} (sanlock said {met}), seed {seed}")
    return int(bool(outcomes["DIFFERS"]))
