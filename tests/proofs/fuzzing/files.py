"""Real files: the records of the run directory, and whole ``dump-leases`` and ``status`` over lease files."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

from tests.proofs.fuzzing.areas import choose_scene, mutated_area, same
from tests.proofs.fuzzing.cases import Case, Found, Patch, Target, check_error, check_text
from tests.proofs.fuzzing.notes import mutated_json
from tests.proofs.fuzzing.output import check_json, printed
from tests.proofs.fuzzing.scenes import (
    IO_TIMEOUT,
    NOW,
    OBSERVATIONS,
    RESOURCE_PATH,
    SPACE,
    US,
    scene,
)
from vmlockctl import clock
from vmlockctl.cli import dump_leases as dump_command
from vmlockctl.cli import status as status_command
from vmlockctl.daemon.claims import Claim, ClaimStore
from vmlockctl.daemon.hoststate import LIVE, HostState, LockspaceDir, Membership
from vmlockctl.daemon.memberships import Memberships
from vmlockctl.errors import VmlockctlError
from vmlockctl.host.openers import Identity
from vmlockctl.host.process import Process, boot_id, is_alive
from vmlockctl.host.rundir import RunDir
from vmlockctl.lease.liveness import dead_in_seconds, host_state, shared_holder_is_alive
from vmlockctl.ondisk import bitmap
from vmlockctl.ops.dump_leases import dump
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import lease_paths, status
from vmlockctl.specs import Target as LockspaceTarget

_LEASE_NAME = "0123456789abcdef0123456789abcdef"
_THIS_BOOT = "@this-boot@"  # in a saved case: it is to be read on the boot that replays it
_FILES = ["host.json", "hosts.json", "bits.json", "claim.json", "membership.json"]


class _Host(NamedTuple):
    """One host's directories, and the records in them as its daemon wrote them."""

    session: Session
    directory: LockspaceDir
    target: LockspaceTarget
    paths: dict[str, str]
    records: dict[str, Any]
    templates: dict[str, Any]  # the same without what is different on every machine


@cache
def _host(process_id: int) -> _Host:
    """This process's own: leases on a file system that has O_DIRECT, its records in memory."""
    root, run_root = _directory("/var/tmp"), _directory("/dev/shm")
    lease_dir = root / "leases"
    lease_dir.mkdir()
    made = scene("few/held-us")
    lockspace = lease_dir / "__LIBVIRT__DISKS__"
    lockspace.write_bytes(made.space)
    (lease_dir / _LEASE_NAME).write_bytes(made.resource)
    run_dir = RunDir(str(run_root))
    os.makedirs(run_dir.path, exist_ok=True)
    membership = Membership(str(lockspace), 0, SPACE, US, "hostB", IO_TIMEOUT, str(lease_dir))
    session = Session(run_dir, f"{SPACE}:0:{lockspace}:0")
    directory = session.directory_of(membership).create()
    record = made.host_lease.record.to_bytes().hex()
    directory.write_state(HostState(membership, LIVE, 3, 512, 1 << 20, record, (record,), 1e9, boot_id()))
    directory.write_observations(OBSERVATIONS)
    directory.set_bit(3, 1e6)
    process = Process(1, 1, boot_id())
    store = ClaimStore(directory.claims_path)
    store.write(
        Claim(_LEASE_NAME, str(lease_dir / _LEASE_NAME), 0, "/images/a.img", Identity("file", 1, 2),
              "exclusive", "held", US, 3, 1, (process,), process, "guest", "", 1.5)
    )  # fmt: skip
    memberships = Memberships(run_dir)
    memberships.add(membership)
    [member_file] = os.listdir(memberships.path)
    paths = {
        "host.json": os.path.join(directory.path, "host.json"),
        "hosts.json": os.path.join(directory.path, "hosts.json"),
        "bits.json": os.path.join(directory.path, "bits.json"),
        "claim.json": store.file(_LEASE_NAME),
        "membership.json": os.path.join(memberships.path, member_file),
    }
    records = {name: json.loads(Path(path).read_text()) for name, path in paths.items()}
    target = LockspaceTarget(str(lockspace), 0, SPACE, 0, str(lease_dir))
    templates = {
        name: json.loads(_portable(json.dumps(record), str(root))) for name, record in records.items()
    }
    return _Host(session, directory, target, paths, records, templates)


def _portable(text: str, root: str) -> str:
    return text.replace(boot_id(), _THIS_BOOT).replace(root, "/fuzz")


def _directory(parent: str) -> Path:
    """A temporary directory, there if that exists; it goes with this process."""
    path = tempfile.mkdtemp(prefix="vmlockctl-fuzz-", dir=parent if os.path.isdir(parent) else None)
    # Workers of a pool end without atexit.
    Finalize(None, shutil.rmtree, args=(path,), kwargs={"ignore_errors": True}, exitpriority=1)
    return Path(path)


def _here() -> _Host:
    return _host(os.getpid())


# -- the records of the run directory ---------------------------------------------------------------------


def _read_host(host: _Host) -> None:
    state = host.directory.read_state()
    if state is None:
        return
    state.is_certain(clock.boottime())
    _ = state.membership.target, state.expected, state.lockspace.area.geometry.max_hosts
    if state.record:
        _ = state.lease
    host.directory.claimant(host.directory.require_live())


def _read_hosts(host: _Host) -> None:
    rows = host.directory.read_observations()
    for row in rows.values():
        check_text(host_state(row, NOW, own_io_timeout=IO_TIMEOUT))
        if not 0 <= dead_in_seconds(row, row.last_check, own_io_timeout=IO_TIMEOUT) <= 8 * 255 + 60:
            raise Found(f"a host would be waited for without end: {row}")
        shared_holder_is_alive(row, 1, NOW, own_io_timeout=IO_TIMEOUT)
    sorted(rows)


def _read_bits(host: _Host) -> None:
    bitmap.to_bytes(host.directory.bits())


def _read_claims(host: _Host) -> None:
    for claim in ClaimStore(host.directory.claims_path).all():
        _ = claim.is_shared, claim.lease
        involved = {*claim.processes, claim.command} - {None}
        for process in involved:
            assert process is not None
            is_alive(process)


def _read_memberships(host: _Host) -> None:
    memberships = Memberships(host.session.run_dir)
    for membership in memberships.all():
        memberships.joined_this_boot(membership)
        host.session.directory_of(membership)


_READERS: dict[str, Callable[[_Host], None]] = {
    "host.json": _read_host,
    "hosts.json": _read_hosts,
    "bits.json": _read_bits,
    "claim.json": _read_claims,
    "membership.json": _read_memberships,
}


def _put(path: str, data: bytes) -> None:
    # In place: a file that is made empty and written again is flushed to the disk each time (ext4).
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()


def _run_record(case: Case) -> float:
    host = _here()
    name, _, data = case.patches[0]
    _put(host.paths[name], data.replace(_THIS_BOOT.encode(), boot_id().encode()))
    try:
        _READERS[name](host)
    except VmlockctlError as error:
        # Paths of this host are given as they are; every way to a terminal escapes the whole message.
        if not error.message:
            raise Found(f"{type(error).__name__} says nothing") from error
    finally:
        _put(host.paths[name], json.dumps(host.records[name]).encode())
    return 0.0


def _record_cases(source: random.Random, count: int) -> Iterator[Case]:
    for _ in range(count):
        name = source.choice(_FILES)
        yield Case("records", "", "", (Patch(name, 0, mutated_json(_here().templates[name], source)),))


# -- whole commands over lease files ----------------------------------------------------------------------


def _write_areas(host: _Host, case: Case) -> None:
    """The lockspace and the lease of the case, as files."""
    made = scene(case.scene)
    for path, content in ((host.target.path, made.space), (_lease(host), made.resource)):
        ours = RESOURCE_PATH if path == _lease(host) else ""
        image = bytearray(content)
        for patch in case.patches:
            if (patch.path == RESOURCE_PATH) == bool(ours):
                image[patch.offset : patch.offset + len(patch.data)] = patch.data
        if case.size is not None and (case.patches[0].path == RESOURCE_PATH) == bool(ours):
            del image[case.size :]
        _put(path, bytes(image))


def _lease(host: _Host) -> str:
    assert host.target.lease_dir is not None
    return os.path.join(host.target.lease_dir, _LEASE_NAME)


def _run_command(case: Case) -> float:
    host = _here()
    _write_areas(host, case)
    if case.action == "dump":
        areas = list(dump([host.target.lease_dir or ""]))
        printed(lambda: dump_command._print_text(areas))
        check_json(printed(lambda: dump_command._print_json(areas)))
        return 0.0
    try:
        seen = status(host.session)
    except VmlockctlError as error:
        check_error(error)
        return 0.0
    if [lease.path for lease in seen.leases] != lease_paths(host.target, ()):
        raise Found(f"a lease is missing: {seen.leases}")
    context = _Context()
    printed(lambda: status_command._show(context, seen))  # type: ignore[arg-type]
    check_json(json.dumps(status_command.as_json(seen)))
    return 0.0


class _Context:
    json = False
    lockspace = None
    run_dir = None


def _command_cases(source: random.Random, count: int) -> Iterator[Case]:
    made = choose_scene(source, any_size=False)
    for _ in range(count):
        yield mutated_area("commands", source.choice(["dump", "status"]), made, source)


TARGETS = [
    Target("records", 40, 8, _record_cases, _run_record, same, same),
    Target("commands", 3, 2, _command_cases, _run_command, same, same),
]
