"""Real areas to begin with: made by the shipped generators, in every state that a lease can be in.

Hosts of the lockspace: 1 is live, 2 are we, 3 is dead, 4 left, 5 joined again since it was last seen; the
others were never there. Everything is seen from host 2, generation 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

from tests.proofs.fuzzing.memory import Memory
from vmlockctl.lease.delta import HostLease, Lockspace
from vmlockctl.lease.liveness import Observation
from vmlockctl.lease.lvb import write_lvb
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release
from vmlockctl.lease.resource import Claimant, Resource, write_note
from vmlockctl.lease.steps import Area
from vmlockctl.ondisk import ownernote
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, DEFAULT_GEOMETRY, REQUEST_SECTOR, Geometry
from vmlockctl.ondisk.leader import PAXOS_CLEARED_MAGIC, Leader, name_field, new_delta
from vmlockctl.ondisk.request import Request
from vmlockctl.units import MIB

K = TypeVar("K")
T = TypeVar("T")

SPACE, RESOURCE = "space", "disk"
SPACE_PATH, RESOURCE_PATH = "/space", "/disk"
US, GENERATION, NOW, IO_TIMEOUT = 2, 3, 5000, 10
LIVE, DEAD, GONE, AGAIN = 1, 3, 4, 5

GENERATIONS = {LIVE: 7, US: GENERATION, DEAD: 2, GONE: 4, AGAIN: 9}

NOTE = {
    "disk": "/images/a.img", "vm": "guest", "uuid": "5f0e9a3e-0000-4000-8000-000000000001", "pid": 4711,
    "host_name": "hostB", "host_id": US, "generation": GENERATION, "lver": 1,
    "acquired_at": 1700000000.5, "program": "vmlockctl",
}  # fmt: skip


class Scene(NamedTuple):
    """A lockspace and a resource on it; ``held_lver`` is what a holder believes to hold."""

    name: str
    geometry: Geometry
    num_hosts: int
    space: bytes
    resource: bytes

    @property
    def space_area(self) -> Area:
        return Area(SPACE_PATH, 0, self.geometry)

    @property
    def area(self) -> Area:
        return Area(RESOURCE_PATH, 0, self.geometry)

    @property
    def lockspace(self) -> Lockspace:
        return Lockspace(self.space_area, SPACE, IO_TIMEOUT)

    @property
    def claimant(self) -> Claimant:
        return claimant(self.lockspace, US)

    @property
    def host_lease(self) -> HostLease:
        """Our own delta lease, as the daemon holds it."""
        at = self.geometry.delta_sector(US) * self.geometry.sector_size
        record = Leader.from_bytes(self.space[at:])
        return HostLease(self.lockspace, US, GENERATION, host_name(US), IO_TIMEOUT, record)


LEASE = Resource(RESOURCE_PATH, 0, RESOURCE)


def host_name(host_id: int) -> str:
    return f"host{chr(ord('A') + host_id - 1)}"


def claimant(lockspace: Lockspace, host_id: int) -> Claimant:
    return Claimant(lockspace, host_id, GENERATIONS[host_id], IO_TIMEOUT, OBSERVATIONS)


OBSERVATIONS = {
    # Seen to change just now; silent for longer than 8 * 10 + 60 s; free; of an earlier generation.
    LIVE: Observation(LIVE, 7, 990, "hostA", 10, 4000, NOW, NOW),
    US: Observation(US, GENERATION, NOW - 10, "hostB", 10, 4000, NOW, NOW),
    DEAD: Observation(DEAD, 2, 100, "hostC", 10, 4000, NOW, 4000),
    GONE: Observation(GONE, 4, 0, "hostD", 10, 4000, NOW, 4500),
    AGAIN: Observation(AGAIN, 8, 300, "hostE", 10, 4000, NOW, 4900),
}


def keep_last(make: Callable[[K], T]) -> Callable[[K], T]:
    """Keep what was made last, and let go of it before something else is made: up to 32 MiB each."""
    kept: dict[K, T] = {}

    def made(key: K) -> T:
        if key not in kept:
            kept.clear()
            kept[key] = make(key)
        return kept[key]

    return made


def _space_image(geometry: Geometry) -> bytes:
    image = bytearray(lockspace_area(geometry, space_name=SPACE, io_timeout=IO_TIMEOUT))
    free = new_delta(geometry, space_name=SPACE, io_timeout=IO_TIMEOUT)
    timestamps = {LIVE: 1000, US: NOW - 10, DEAD: 100, GONE: 0, AGAIN: 400}
    for host_id, timestamp in timestamps.items():
        record = free._replace(
            owner_id=host_id, owner_generation=GENERATIONS[host_id], timestamp=timestamp,
            resource_name=name_field(host_name(host_id)),
        ).sealed()  # fmt: skip
        at = geometry.delta_sector(host_id) * geometry.sector_size
        image[at : at + geometry.sector_size] = record.sector(geometry.sector_size)
    return bytes(image)


_small_space, _last_space = cache(_space_image), keep_last(_space_image)


def space_image(geometry: Geometry) -> bytes:
    return _small_space(geometry) if geometry == DEFAULT_GEOMETRY else _last_space(geometry)


class _Maker:
    """Brings a resource into a state by what hosts do to it."""

    def __init__(self, geometry: Geometry, num_hosts: int) -> None:
        resource = resource_area(geometry, space_name=SPACE, resource_name=RESOURCE, num_hosts=num_hosts)
        self.geometry = geometry
        self.memory = Memory({SPACE_PATH: space_image(geometry), RESOURCE_PATH: resource}, now=4000)
        self.lockspace = Lockspace(Area(SPACE_PATH, 0, geometry), SPACE, IO_TIMEOUT)

    def run(self, procedure: Any, *, writes: int = 1 << 30) -> Any:
        self.memory.writes = []
        return self.memory.run(procedure, may_write=lambda *_: None, writes=writes)

    def acquire(self, host_id: int, *, shared: bool = False, writes: int = 1 << 30) -> Any:
        return self.run(acquire(claimant(self.lockspace, host_id), LEASE, shared=shared), writes=writes)

    def release(self, host_id: int, lver: int, *, shared: bool = False) -> None:
        self.run(release(claimant(self.lockspace, host_id), LEASE, lver=lver, shared=shared))

    def change_leader(self, **fields: Any) -> None:
        content = self.memory.files[RESOURCE_PATH]
        content[:200] = Leader.from_bytes(bytes(content[:200]))._replace(**fields).sealed().to_bytes()

    def request(self, lver: int, force_mode: int) -> None:
        at = REQUEST_SECTOR * self.geometry.sector_size
        data = Request(lver=lver, force_mode=force_mode).to_bytes()
        self.memory.files[RESOURCE_PATH][at : at + len(data)] = data

    def note(self, **fields: Any) -> None:
        area = Area(RESOURCE_PATH, 0, self.geometry)
        self.run(write_note(claimant(self.lockspace, US), area, ownernote.to_bytes({**NOTE, **fields})))


def _unused(maker: _Maker) -> None:
    del maker


def _held_by(host_id: int) -> Callable[[_Maker], None]:
    def make(maker: _Maker) -> None:
        held = maker.acquire(host_id)
        if maker.geometry.lvb_sector is not None:
            maker.run(write_lvb(claimant(maker.lockspace, host_id), held, b"\x1b[2J of the holder"))
        maker.note(host_id=host_id, generation=GENERATIONS[host_id], lver=1)

    return make


def _held_by_our_past(maker: _Maker) -> None:
    maker.acquire(US)
    maker.change_leader(owner_generation=GENERATION - 1)


def _released(maker: _Maker) -> None:
    for lver, host_id in enumerate((LIVE, DEAD, US), start=1):
        maker.acquire(host_id)
        maker.release(host_id, lver)
    maker.note(lver=3)


def _shared_by(*host_ids: int) -> Callable[[_Maker], None]:
    def make(maker: _Maker) -> None:
        for host_id in host_ids:
            maker.acquire(host_id, shared=True)

    return make


def _stopped(host_id: int, writes: int) -> Callable[[_Maker], None]:
    """A ballot that got as far as this many writes: phase 1, phase 2."""

    def make(maker: _Maker) -> None:
        maker.acquire(AGAIN)
        maker.release(AGAIN, 1)
        maker.acquire(host_id, writes=writes)

    return make


def _two_ballots(maker: _Maker) -> None:
    maker.acquire(LIVE, writes=1)
    maker.acquire(DEAD, writes=2)


def _committed_by_another(maker: _Maker) -> None:
    maker.acquire(LIVE)
    maker.change_leader(write_id=DEAD, write_generation=GENERATIONS[DEAD])


def _request_pending(maker: _Maker) -> None:
    maker.acquire(US)
    maker.request(2, 2)


def _cleared(maker: _Maker) -> None:
    maker.change_leader(magic=PAXOS_CLEARED_MAGIC, write_timestamp=NOW)


STATES: dict[str, Callable[[_Maker], None]] = {
    "unused": _unused,
    "held-live": _held_by(LIVE),
    "held-dead": _held_by(DEAD),
    "held-gone": _held_by(GONE),
    "held-again": _held_by(AGAIN),
    "held-us": _held_by(US),
    "held-our-past": _held_by_our_past,
    "released": _released,
    "shared-live": _shared_by(LIVE, US),
    "shared-us": _shared_by(US),
    "shared-dead": _shared_by(DEAD),
    "shared-dead-us": _shared_by(DEAD, US),
    "shared-both": _shared_by(LIVE, DEAD, AGAIN),
    "phase-1": _stopped(LIVE, 1),
    "phase-2": _stopped(DEAD, 2),
    "phase-1-us": _stopped(US, 1),
    "phase-2-us": _stopped(US, 2),
    "two-ballots": _two_ballots,
    "committed": _committed_by_another,
    "request": _request_pending,
    "cleared": _cleared,
}

# Most areas are small and for few hosts, as "sanlock direct init -n" makes them: a case costs what it reads.
FEW_HOSTS = 8


def _sizes(name: str) -> tuple[Geometry, int]:
    for geometry in ALL_GEOMETRIES:
        if name == f"{geometry.sector_size}-{geometry.align_size // MIB}M":
            return geometry, 0
    assert name == "few", name
    return DEFAULT_GEOMETRY, FEW_HOSTS


SIZES = ["few", *(f"{g.sector_size}-{g.align_size // MIB}M" for g in ALL_GEOMETRIES)]
SCENES = [f"{size}/{state}" for size in SIZES for state in STATES]
FEW_SCENES = [f"few/{state}" for state in STATES]


@cache
def _packed(name: str) -> bytes:
    """The resource of a scene, made once; nearly all of it is zeros."""
    size, state = name.split("/")
    geometry, num_hosts = _sizes(size)
    maker = _Maker(geometry, num_hosts)
    STATES[state](maker)
    return zlib.compress(maker.memory.image(RESOURCE_PATH), 1)


@keep_last
def scene(name: str) -> Scene:
    geometry, num_hosts = _sizes(name.split("/", maxsplit=1)[0])
    resource = zlib.decompress(_packed(name))
    return Scene(name, geometry, num_hosts or geometry.max_hosts, space_image(geometry), resource)
