"""The few sectors that a scene can change, over images that never change.

A sector's content, a tuple of contents, and a write are interned as small integers, so that a state of the
whole world is a short tuple of integers. What a procedure reads is put together only for a result that it
has not been told before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.proofs.explorer.image import Image
from vmlockctl.lease.delta import Lockspace
from vmlockctl.lease.resource import Resource
from vmlockctl.lease.steps import Area, ReadSectors, WriteSector
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.dblock import Dblock, ModeBlock, verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import Leader, name_field, verify_paxos

SPACE, DISK = "space", "disk"
SPACE_PATH, DISK_PATH = "/space", "/disk"
IO_TIMEOUT = 1
NOW = 1000  # every host's clock when a scene begins
SEEN_AT = NOW - 5  # the timestamp of every delta record

_SIZE = DEFAULT_GEOMETRY.sector_size
SPACE_AREA = Area(SPACE_PATH, 0, DEFAULT_GEOMETRY)
LOCKSPACE = Lockspace(SPACE_AREA, SPACE, IO_TIMEOUT)
RESOURCE = Resource(DISK_PATH, 0, DISK)


class Place(NamedTuple):
    """Sectors of one path, as a read asks for them; a probe asks for them as one."""

    path: str
    first: int
    count: int
    probe: bool = False


def host_name(host_id: int) -> str:
    return f"host{host_id}"


def delta_sector(record: bytes, host_id: int, generation: int) -> bytes:
    """A delta record as ``host_id`` holds it in ``generation``."""
    held = Leader.from_bytes(record)._replace(
        owner_id=host_id,
        owner_generation=generation,
        timestamp=SEEN_AT + generation - 1,
        io_timeout=IO_TIMEOUT,
        resource_name=name_field(host_name(host_id)),
    )
    return held.sealed().sector(_SIZE)


class Memory:
    """The sectors of a scene with ``num_hosts`` hosts: a memory is the number of a tuple of contents."""

    def __init__(self, num_hosts: int) -> None:
        space = lockspace_area(DEFAULT_GEOMETRY, space_name=SPACE, io_timeout=IO_TIMEOUT)
        for host_id in range(1, num_hosts + 1):
            at = DEFAULT_GEOMETRY.delta_sector(host_id) * _SIZE
            space = space[:at] + delta_sector(space[at : at + _SIZE], host_id, 1) + space[at + _SIZE :]
        disk = resource_area(DEFAULT_GEOMETRY, space_name=SPACE, resource_name=DISK, num_hosts=num_hosts)
        self._base = {SPACE_PATH: memoryview(space), DISK_PATH: memoryview(disk)}
        self._slots: dict[tuple[str, int], int] = {(DISK_PATH, 0): 0}
        for host_id in range(1, num_hosts + 1):
            self._slots[DISK_PATH, DEFAULT_GEOMETRY.dblock_sector(host_id)] = len(self._slots)
        for host_id in range(1, num_hosts + 1):
            self._slots[SPACE_PATH, DEFAULT_GEOMETRY.delta_sector(host_id)] = len(self._slots)
        self._sectors = [sector for _, sector in self._slots]
        self._num_hosts = num_hosts
        self._contents: list[bytes] = []
        self._content_numbers: dict[bytes, int] = {}
        self._memories: list[tuple[int, ...]] = []
        self._memory_numbers: dict[tuple[int, ...], int] = {}
        self._in_place: dict[Place, list[tuple[int, int]]] = {}
        first = [bytes(self._base[path][sector * _SIZE :][:_SIZE]) for path, sector in self._slots]
        self.initial = self._memory(tuple(map(self.content, first)))

    def slot(self, step: WriteSector) -> int:
        """The changing sector that a write is for. Raises ``KeyError`` where there is none."""
        assert len(step.data) == _SIZE, f"{len(step.data)} bytes at sector {step.sector}"
        return self._slots[step.area.path, step.area.offset // _SIZE + step.sector]

    def delta_slot(self, host_id: int) -> int:
        return self._slots[SPACE_PATH, DEFAULT_GEOMETRY.delta_sector(host_id)]

    @property
    def delta_slots(self) -> set[int]:
        return {slot for (path, _), slot in self._slots.items() if path == SPACE_PATH}

    def own_slot(self, host_id: int) -> int:
        return self._slots[DISK_PATH, DEFAULT_GEOMETRY.dblock_sector(host_id)]

    def sector_number(self, slot: int) -> int:
        return self._sectors[slot]

    def content(self, data: bytes) -> int:
        number = self._content_numbers.setdefault(data, len(self._contents))
        if number == len(self._contents):
            self._contents.append(data)
        return number

    def written(self, memory: int, slot: int, content: int) -> int:
        """The memory after a write."""
        values = self._memories[memory]
        return self._memory((*values[:slot], content, *values[slot + 1 :]))

    def place(self, step: ReadSectors) -> Place:
        """What a read looks at, in units of this geometry (a probe asks in units of its own)."""
        start = step.area.byte_offset(step.sector)
        size = step.sector_count * step.area.geometry.sector_size
        return Place(step.area.path, start // _SIZE, size // _SIZE, step.sector_count == 1)

    def slots(self, place: Place) -> list[int]:
        """The changing sectors within a place."""
        return [slot for _, slot in self._changing(place)]

    def seen(self, memory: int, slots: Sequence[int]) -> tuple[int, ...]:
        """What tells two memories apart for who reads those sectors."""
        values = self._memories[memory]
        return tuple([values[slot] for slot in slots])

    def read(self, place: Place, seen: Sequence[int]) -> Image:
        """What a read of that place returns, if its changing sectors have these contents."""
        base = self._base[place.path][place.first * _SIZE : (place.first + place.count) * _SIZE]
        contents = {
            sector - place.first: self._contents[content]
            for (sector, _), content in zip(self._changing(place), seen)
        }
        return Image.of(base, _SIZE, contents, head=place.probe)

    def sector(self, memory: int, slot: int) -> bytes:
        return self._contents[self._memories[memory][slot]]

    def verify(self, slot: int, data: bytes) -> None:
        """A record of the resource is valid. Raises ``OnDiskError``."""
        if slot == 0:
            verify_paxos(data, space_name=SPACE, resource_name=DISK, host_id=1)
        else:
            verify_dblock(data, host_id=slot)

    def describe(self, memory: int) -> str:
        """The leader and the dblocks, in a few words."""
        leader = Leader.from_bytes(self.sector(memory, 0))
        owner = "free" if leader.is_free else f"owned by {leader.owner_id}:{leader.owner_generation}"
        words = [f"leader lver {leader.lver} {owner}, written by {leader.write_id}"]
        for host_id in range(1, self._num_hosts + 1):
            sector = self.sector(memory, self.own_slot(host_id))
            dblock, mode = Dblock.from_bytes(sector), ModeBlock.from_bytes(sector)
            if any(sector):
                value = f" value {dblock.inp}:{dblock.inp2}" if dblock.inp else ""
                flags = (" RELEASED" if dblock.is_released else "") + (" SHARED" if mode.is_shared else "")
                words.append(
                    f"{host_id}: lver {dblock.lver} mbal {dblock.mbal} bal {dblock.bal}{value}{flags}"
                )
        return "; ".join(words)

    def _changing(self, place: Place) -> list[tuple[int, int]]:
        known = self._in_place.get(place)
        if known is None:
            known = self._in_place[place] = sorted(
                (sector, slot)
                for (path, sector), slot in self._slots.items()
                if path == place.path and place.first <= sector < place.first + place.count
            )
        return known

    def _memory(self, values: tuple[int, ...]) -> int:
        number = self._memory_numbers.setdefault(values, len(self._memories))
        if number == len(self._memories):
            self._memories.append(values)
        return number
