"""One lockspace and one resource in memory, and what a test wants to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from tests.support.memory import Choose, Host, Simulation, Storage, Task
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.liveness import Observation
from vmlockctl.lease.paxos import acquire
from vmlockctl.lease.release import release
from vmlockctl.lease.resource import Claimant, Held, Resource
from vmlockctl.lease.steps import Area, WriteSector
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.dblock import Dblock, ModeBlock, own_sector, verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import Leader, name_field, verify_delta, verify_paxos

SPACE = "space"
DISK = "disk"
IO_TIMEOUT = 1
NUM_HOSTS = 4
NOW = 1000  # the clock of every host when a scene begins

_LOCKSPACES: dict[tuple[Geometry, int], bytes] = {}
_RESOURCES: dict[tuple[Geometry, int], bytes] = {}


def host_name(host_id: int) -> str:
    return f"host{chr(ord('A') + host_id - 1)}"


def _lockspace_bytes(geometry: Geometry, io_timeout: int) -> bytes:
    key = (geometry, io_timeout)
    if key not in _LOCKSPACES:
        _LOCKSPACES[key] = lockspace_area(geometry, space_name=SPACE, io_timeout=io_timeout)
    return _LOCKSPACES[key]


def _resource_bytes(geometry: Geometry, num_hosts: int) -> bytes:
    key = (geometry, num_hosts)
    if key not in _RESOURCES:
        _RESOURCES[key] = resource_area(geometry, space_name=SPACE, resource_name=DISK, num_hosts=num_hosts)
    return _RESOURCES[key]


class Scene:
    """Storage with a lockspace and a resource. Hosts 1 and up are named hostA and up."""

    def __init__(
        self,
        *,
        geometry: Geometry = DEFAULT_GEOMETRY,
        lockspace_geometry: Optional[Geometry] = None,
        num_hosts: int = NUM_HOSTS,
        io_timeout: int = IO_TIMEOUT,
        choose: Optional[Choose] = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        space_geometry = lockspace_geometry or geometry
        self.storage = Storage()
        self.space = self.storage.add("/space", _lockspace_bytes(space_geometry, io_timeout), space_geometry)
        self.area = self.storage.add("/disk", _resource_bytes(geometry, num_hosts), geometry)
        self.lockspace = Lockspace(self.space, SPACE, io_timeout)
        self.resource = Resource("/disk", self.area.offset, DISK)
        self.io_timeout = io_timeout
        self.num_hosts = num_hosts
        self.sim = Simulation(
            self.storage, choose=choose, seed=seed, start=NOW, on_write=self.check_write, **options
        )
        self.hosts = {host_id: Host(host_id) for host_id in range(1, num_hosts + 1)}
        self.may_clear: set[int] = set()  # hosts whose shared mark others may erase

    # -- who, and what they do -----------------------------------------------------------------------

    def claimant(
        self,
        host_id: int,
        *,
        generation: int = 1,
        observations: Optional[Mapping[int, Observation]] = None,
        io_timeout: Optional[int] = None,
    ) -> Claimant:
        return Claimant(
            self.lockspace, host_id, generation, io_timeout or self.io_timeout, observations or {}
        )

    def run(self, host_id: int, procedure: Any, **options: Any) -> Any:
        return self.sim.run_one(self.hosts[host_id], procedure, **options)

    def start(self, host_id: int, procedure: Any, **options: Any) -> Task:
        return self.sim.start(self.hosts[host_id], procedure, **options)

    def acquire(self, host_id: int, *, task: Optional[dict[str, Any]] = None, **options: Any) -> Held:
        """Acquire as a host that knows the others as ``options`` say."""
        who = {key: options.pop(key) for key in ("generation", "observations") if key in options}
        held = self.run(
            host_id, acquire(self.claimant(host_id, **who), self.resource, **options), **task or {}
        )
        assert isinstance(held, Held)
        return held

    def release(self, host_id: int, held: Held, *, generation: int = 1) -> None:
        self.run(
            host_id,
            release(
                self.claimant(host_id, generation=generation),
                self.resource,
                lver=held.leader.lver,
                shared=held.shared,
            ),
        )

    @property
    def last(self) -> Task:
        return self.sim.tasks[-1]

    # -- what is on the disk -------------------------------------------------------------------------

    def sector(self, area: Area, sector: int) -> bytes:
        return self.storage.read(area, sector, 1)

    def delta(self, host_id: int) -> Leader:
        return verify_delta(
            self.sector(self.space, self.space.geometry.delta_sector(host_id)), space_name=SPACE
        )

    def leader(self) -> Leader:
        return verify_paxos(self.sector(self.area, 0), space_name=SPACE, resource_name=DISK, host_id=1)

    def own(self, host_id: int) -> bytes:
        return self.sector(self.area, self.area.geometry.dblock_sector(host_id))

    def dblock(self, host_id: int) -> Dblock:
        return verify_dblock(self.own(host_id), host_id=host_id)

    def mode(self, host_id: int) -> ModeBlock:
        return ModeBlock.from_bytes(self.own(host_id))

    def snapshot(self) -> tuple[bytes, bytes]:
        return self.storage.image(self.space), self.storage.image(self.area)

    def verify_area(self) -> None:
        """Every record of the resource verifies, and the guards stand."""
        self.leader()
        for host_id in range(1, self.num_hosts + 1):
            self.dblock(host_id)
        self.storage.check_guards()

    # -- what a test puts there ----------------------------------------------------------------------

    def put(self, area: Area, sector: int, data: bytes) -> None:
        self.storage.write(area, sector, data.ljust(area.geometry.sector_size, b"\0"))

    def put_delta(self, host_id: int, *, sealed: bool = True, **fields: Any) -> Leader:
        """Change fields of a delta record; by default it is held by its host in generation 1."""
        sector = self.space.geometry.delta_sector(host_id)
        values = {
            "owner_id": host_id,
            "owner_generation": 1,
            "timestamp": NOW - 5,
            "io_timeout": self.io_timeout,
            "resource_name": name_field(host_name(host_id)),
            **fields,
        }
        record = Leader.from_bytes(self.sector(self.space, sector))._replace(**values)
        record = record.sealed() if sealed else record
        self.put(self.space, sector, record.to_bytes())
        return record

    def put_leader(self, *, sealed: bool = True, **fields: Any) -> Leader:
        leader = Leader.from_bytes(self.sector(self.area, 0))._replace(**fields)
        leader = leader.sealed() if sealed else leader
        self.put(self.area, 0, leader.to_bytes())
        return leader

    def put_own(self, host_id: int, dblock: Dblock, mode: Optional[ModeBlock] = None) -> None:
        geometry = self.area.geometry
        self.put(
            self.area,
            geometry.dblock_sector(host_id),
            own_sector(dblock, mode or ModeBlock(), geometry.sector_size),
        )

    # -- the rule of one writer ------------------------------------------------------------------------

    def check_write(self, host: Host, step: WriteSector) -> None:
        """Nobody writes another host's sector, but to erase the mark of a dead shared holder."""
        area, geometry = step.area, step.area.geometry
        count = len(step.data) // geometry.sector_size
        if area.path == "/space":
            assert (step.sector, count) == (host.host_id - 1, 1), f"host {host.host_id} wrote {step}"
            return
        if step.sector == 0:
            assert count == 1
            return
        if (step.sector, count) in (geometry.note_sectors(), (geometry.lvb_sector, 1)):
            return
        assert count == 1, f"host {host.host_id} wrote {count} sectors at {step.sector}"
        owner = step.sector - 1
        if owner != host.host_id:
            assert not any(step.data), f"host {host.host_id} wrote into the sector of host {owner}"
            assert owner in self.may_clear, f"host {host.host_id} erased the sector of host {owner}"


def seen_live(
    host_id: int, now: float, *, generation: int = 1, timestamp: int = NOW - 5, **fields: Any
) -> Observation:
    """A row of a host that was just seen to renew."""
    values: dict[str, Any] = {
        "owner_id": host_id,
        "owner_generation": generation,
        "timestamp": timestamp,
        "host_name": host_name(host_id),
        "io_timeout": IO_TIMEOUT,
        "first_check": now - 50,
        "last_check": now,
        "last_live": now,
        **fields,
    }
    return Observation(**values)


def seen_silent(host_id: int, now: float, seconds: float, **fields: Any) -> Observation:
    """A row of a host whose record has not changed for so many seconds, while we looked on."""
    row = {"first_check": now - seconds - 10, "last_live": now - seconds, "last_check": now}
    return seen_live(host_id, now, **{**row, **fields})
