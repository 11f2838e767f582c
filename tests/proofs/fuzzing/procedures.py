"""Procedures over mutated areas: they end in a verdict, within bounds, and write only what is theirs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.proofs.fuzzing.areas import choose_scene, mutated_area, same
from tests.proofs.fuzzing.cases import Case, Found, Target, check_error
from tests.proofs.fuzzing.memory import Memory, WriteCheck
from tests.proofs.fuzzing.scenes import (
    GENERATION,
    LEASE,
    NOW,
    OBSERVATIONS,
    RESOURCE,
    RESOURCE_PATH,
    SPACE,
    SPACE_PATH,
    US,
    Scene,
    host_name,
    keep_last,
    scene,
)
from vmlockctl.errors import OnDiskError, VmlockctlError
from vmlockctl.lease.convert import to_exclusive, to_shared
from vmlockctl.lease.delta import (
    check_own_record,
    identify_lockspace,
    join,
    leave,
    occupied_records,
    renew,
)
from vmlockctl.lease.liveness import NEVER_OBSERVED, dead_in_seconds, host_state, observe
from vmlockctl.lease.lvb import read_lvb, write_lvb
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release, retract
from vmlockctl.lease.request import clear_request, hosts_asking, pending_request, request
from vmlockctl.lease.resource import Held, foreign_owner, names_us, verify_held
from vmlockctl.lease.steps import Procedure, WriteSector
from vmlockctl.ondisk.dblock import ModeBlock, verify_dblock
from vmlockctl.ondisk.geometry import REQUEST_SECTOR
from vmlockctl.ondisk.leader import Leader, verify_delta, verify_paxos
from vmlockctl.ondisk.request import verify_request
from vmlockctl.text import safe


@keep_last
def _memory(name: str) -> Memory:
    made = scene(name)
    return Memory({SPACE_PATH: made.space, RESOURCE_PATH: made.resource}, now=NOW)


# -- what may be written ----------------------------------------------------------------------------------


def _write_resource(memory: Memory, step: WriteSector) -> None:
    """The leader, our own sector, or zeros over the shared mark of a dead host (section 2.5)."""
    geometry = step.area.geometry
    if step.area.path != RESOURCE_PATH or len(step.data) != geometry.sector_size:
        raise Found(f"a write to {step.area.path} of {len(step.data)} bytes: {step.what}")
    at = step.area.byte_offset(step.sector)
    before = bytes(memory.files[RESOURCE_PATH][at : at + geometry.sector_size])
    if step.sector == 0:
        _write_leader(before, step.data)
    elif step.sector == geometry.dblock_sector(US):
        verify_dblock(step.data, host_id=US, num_hosts=geometry.max_hosts)
    else:
        dead_shared_mark(step, before)


def _write_request(memory: Memory, step: WriteSector) -> None:
    """The request record, and nothing else: one that was understood, by one that is."""
    size = step.area.geometry.sector_size
    if (step.area.path, step.sector) != (RESOURCE_PATH, REQUEST_SECTOR) or len(step.data) != size:
        raise Found(f"a write to {step.area.path} sector {step.sector}: {step.what}")
    at = step.area.byte_offset(step.sector)
    old = verify_request(bytes(memory.files[RESOURCE_PATH][at : at + size]))
    new = verify_request(step.data)
    if new.lver and old.force_mode and new.lver < old.lver:
        raise Found(f"a request is replaced by an earlier one: {old} -> {new}")


def _write_leader(before: bytes, data: bytes) -> None:
    """Only over a leader that is valid, by one that is, and never back (a damaged one is not overwritten)."""
    old = verify_paxos(before, space_name=SPACE, resource_name=RESOURCE, host_id=US)
    new = verify_paxos(data, space_name=SPACE, resource_name=RESOURCE, host_id=US)
    if new.lver < old.lver:
        raise Found(f"lver goes back from {old.lver} to {new.lver}")
    kept = ("version", "sector_size", "num_hosts", "max_hosts", "space_name", "resource_name", "unused1")
    if any(getattr(new, field) != getattr(old, field) for field in kept):
        raise Found(f"a field was changed that is not a writer's: {old} -> {new}")


def dead_shared_mark(step: WriteSector, before: bytes) -> None:
    host_id = step.sector - 1
    row, mode = OBSERVATIONS.get(host_id), ModeBlock.from_bytes(before)
    gone = row is not None and (
        row.timestamp == 0 or row.owner_generation > mode.generation or NOW - row.last_live > 8 * 10 + 60
    )
    if any(step.data) or not mode.is_shared or not gone:
        raise Found(f"a write to the sector of host id {host_id}: {step.what}")


def _write_nothing(memory: Memory, step: WriteSector) -> None:
    raise Found(f"a write where only reading is allowed: {step.what}")


def _write_delta(memory: Memory, step: WriteSector) -> None:
    geometry = step.area.geometry
    if (step.area.path, step.sector) != (SPACE_PATH, US - 1) or len(step.data) != geometry.sector_size:
        raise Found(f"a write to {step.area.path} sector {step.sector}: {step.what}")
    at = step.area.byte_offset(step.sector)
    old = Leader.from_bytes(bytes(memory.files[SPACE_PATH][at : at + 512]))
    new = verify_delta(step.data, space_name=SPACE)
    if new.owner_id != US or new.owner_generation < old.owner_generation:
        raise Found(f"the generation goes back: {old} -> {new}")


# -- what is run ----------------------------------------------------------------------------------------


def _granted(memory: Memory, made: Scene, held: Any, *, shared: bool) -> None:
    """A grant is on the disk, it is ours, and it can be given back."""
    if not isinstance(held, Held) or held.shared != shared:
        raise Found(f"neither a grant nor an error: {held}")
    memory.run(
        verify_held(made.claimant, LEASE, lver=held.leader.lver, shared=shared), may_write=_write_nothing
    )
    memory.run(release(made.claimant, LEASE, lver=held.leader.lver, shared=shared), may_write=_write_resource)


def _acquire(**options: Any) -> Callable[[Memory, Scene], None]:
    def run(memory: Memory, made: Scene) -> None:
        held = memory.run(acquire(made.claimant, LEASE, **options), may_write=_write_resource)
        try:
            _granted(memory, made, held, shared=options.get("shared", False))
        except VmlockctlError as error:
            raise Found(f"a grant that does not hold: {error.message}") from error

    return run


def _write_value(memory: Memory, step: WriteSector) -> None:
    geometry = step.area.geometry
    if (step.area.path, step.sector) != (RESOURCE_PATH, geometry.lvb_sector):
        raise Found(f"a write to {step.area.path} sector {step.sector}: {step.what}")


def _value(memory: Memory, made: Scene) -> None:
    """Acquire, and hand a value on in the block that is there for it."""
    held = memory.run(acquire(made.claimant, LEASE), may_write=_write_resource)
    memory.run(read_lvb(made.claimant, held), may_write=_write_nothing)
    memory.run(write_lvb(made.claimant, held, b"value"), may_write=_write_value)
    if memory.run(read_lvb(made.claimant, held), may_write=_write_nothing).rstrip(b"\0") != b"value":
        raise Found("the value that was written is not there")


def _convert(memory: Memory, made: Scene) -> None:
    held = memory.run(to_exclusive(made.claimant, LEASE), may_write=_write_resource)
    try:
        _granted(memory, made, held, shared=False)
    except VmlockctlError as error:
        raise Found(f"a grant that does not hold: {error.message}") from error


def _on_resource(
    make: Callable[[Scene], Procedure[Any]], *, may_write: WriteCheck = _write_resource
) -> Callable[[Memory, Scene], None]:
    def run(memory: Memory, made: Scene) -> None:
        memory.run(make(made), may_write=may_write)

    return run


def _join(*, earlier_instance_gone: bool) -> Callable[[Memory, Scene], None]:
    def run(memory: Memory, made: Scene) -> None:
        lockspace = memory.run(identify_lockspace(SPACE_PATH, 0, space_name=SPACE), may_write=_write_nothing)
        lease = memory.run(
            join(
                lockspace,
                host_id=US,
                host_name=host_name(US),
                io_timeout=10,
                earlier_instance_gone=earlier_instance_gone,
            ),
            may_write=_write_delta,
        )
        memory.now += 20
        memory.run(renew(lease, expected=[lease.record.to_bytes()]), may_write=_write_delta)

    return run


def _renew(memory: Memory, made: Scene) -> None:
    """What the daemon does in a cycle: renew, then look at everybody (check_own_record is in it)."""
    lease = made.host_lease
    _, image = memory.run(renew(lease, expected=[lease.record.to_bytes()]), may_write=_write_delta)
    _look(image, made)


def _leave(memory: Memory, made: Scene) -> None:
    lease = made.host_lease
    memory.run(leave(lease, expected=[lease.record.to_bytes()]), may_write=_write_delta)


def _scan(memory: Memory, made: Scene) -> None:
    image = memory.image(SPACE_PATH)
    _look(image, made)
    check_own_record(made.host_lease, image, [made.host_lease.record.to_bytes()])


def _look(image: bytes, made: Scene) -> None:
    hosts_asking(made.space_area, image, US)
    for host_id, record in occupied_records(made.space_area, image):
        row = observe(OBSERVATIONS.get(host_id, NEVER_OBSERVED), record, NOW)
        host_state(row, NOW, own_io_timeout=10)
        if not 0 <= dead_in_seconds(row, NOW, own_io_timeout=10) <= 8 * 255 + 60:
            raise Found(f"host id {host_id} would be waited for without end")
        if not safe(row.host_name).isprintable():
            raise Found("a name that is not safe")


ACTIONS: dict[str, dict[str, Callable[[Memory, Scene], None]]] = {
    "acquire": {
        "exclusive": _acquire(),
        "shared": _acquire(shared=True),
        "expect-lver": _acquire(expect_lver=1),
        "wait": _acquire(wait_for_dead_owner=True),
        "to-exclusive": _convert,
        "value": _value,
    },
    "release": {
        "release": _on_resource(lambda s: release(s.claimant, LEASE, lver=1)),
        "release-shared": _on_resource(lambda s: release(s.claimant, LEASE, lver=1, shared=True)),
        "to-shared": _on_resource(lambda s: to_shared(s.claimant, LEASE, lver=1)),
        "retract": _on_resource(lambda s: retract(s.claimant, LEASE)),
        # It puts a leader right that went back: by the rules of every write of a leader.
        "verify": _on_resource(lambda s: verify_held(s.claimant, LEASE, lver=1), may_write=_write_resource),
        "verify-shared": _on_resource(
            lambda s: verify_held(s.claimant, LEASE, lver=1, shared=True), may_write=_write_nothing
        ),
        "names-us": _on_resource(lambda s: names_us(s.claimant, LEASE), may_write=_write_nothing),
        "request": _on_resource(lambda s: request(s.claimant, LEASE, force=False), may_write=_write_request),
        "request-force": _on_resource(
            lambda s: request(s.claimant, LEASE, force=True), may_write=_write_request
        ),
        "clear-request": _on_resource(lambda s: clear_request(s.claimant, LEASE), may_write=_write_request),
        "pending": _on_resource(
            lambda s: pending_request(s.claimant, LEASE, lver=1), may_write=_write_nothing
        ),
        "foreign-owner": _on_resource(lambda s: foreign_owner(s.claimant, LEASE), may_write=_write_nothing),
    },
    "lockspace": {
        "join": _join(earlier_instance_gone=False),
        "join-again": _join(earlier_instance_gone=True),
        "renew": _renew,
        "leave": _leave,
        "scan": _scan,
    },
}


def _run(case: Case) -> float:
    memory, made = _memory(case.scene), scene(case.scene)
    memory.change(case.patches, case.size)
    try:
        ACTIONS[case.target][case.action](memory, made)
    except OnDiskError as error:
        check_error(error)
        if "path" in error.details and error.details["path"] not in (SPACE_PATH, RESOURCE_PATH):
            raise Found(f"an error names another place: {error.details}") from error
    except VmlockctlError as error:
        check_error(error)
    finally:
        waited = memory.waited
        memory.restore()
    return waited


def _cases(target: str, path: str) -> Callable[[random.Random, int], Iterator[Case]]:
    actions = list(ACTIONS[target])

    def cases(source: random.Random, count: int) -> Iterator[Case]:
        made = choose_scene(source)
        for _ in range(count):
            yield mutated_area(target, source.choice(actions), made, source, path=path)

    return cases


def _target(name: str, share: int, path: str) -> Target:
    assert scene("few/unused").claimant.generation == GENERATION
    return Target(name, share, batch=8, cases=_cases(name, path), run=_run, describe=same, revive=same)


TARGETS = [
    _target("acquire", 50, RESOURCE_PATH),
    _target("release", 50, RESOURCE_PATH),
    _target("lockspace", 30, SPACE_PATH),
]
