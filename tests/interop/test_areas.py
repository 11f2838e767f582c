"""Areas written by us and by real sanlock: the same bytes, and each reads the other's, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.disk import LOCKSPACE_NAME, lockspace_path, read_leader, resource_name, resource_path
from tests.support.programs import Child
from tests.support.sanlockhost import (
    SanlockHost,
    direct_init_lockspace,
    direct_init_resource,
    read_leader_fields,
    resource_spec,
    sanlock_direct,
)
from tests.support.vmhost import VmHost
from tests.support.waiting import wait_for
from vmlockctl.ondisk import area
from vmlockctl.ondisk.geometry import ALL_GEOMETRIES, Geometry
from vmlockctl.ondisk.leader import Leader

pytestmark = pytest.mark.real("sanlock")

MIB = 1024 * 1024
DISK = "/images/guest-a.img"

each_geometry = pytest.mark.parametrize(
    "geometry", ALL_GEOMETRIES, ids=[f"{g.sector_size}-{g.align_size // MIB}M" for g in ALL_GEOMETRIES]
)


def align_of(geometry: Geometry) -> str:
    return f"{geometry.align_size // MIB}M"


def empty_area(path: Path, geometry: Geometry) -> Path:
    with path.open("wb") as file:
        file.truncate(geometry.align_size)
    return path


def sanlock_lockspace(path: Path, geometry: Geometry, *, io_timeout: int) -> bytes:
    empty_area(path, geometry)
    direct_init_lockspace(
        path, io_timeout=io_timeout, sector_size=geometry.sector_size, align=align_of(geometry)
    )
    return path.read_bytes()


def sanlock_resource(path: Path, geometry: Geometry, *, resource: str) -> bytes:
    empty_area(path, geometry)
    direct_init_resource(path, resource=resource, sector_size=geometry.sector_size, align=align_of(geometry))
    return path.read_bytes()


# -- the same bytes ---------------------------------------------------------------------------------


@each_geometry
@pytest.mark.parametrize("io_timeout", [1, 10])
def test_a_lockspace_of_ours_is_sanlocks_byte_for_byte(
    host_alone: VmHost, tmp_path: Path, geometry: Geometry, io_timeout: int
) -> None:
    host_alone.succeed(
        "init-lockspace", tmp_path / "ours", "--io-timeout", str(io_timeout),
        "--sector-size", str(geometry.sector_size), "--align", align_of(geometry),
    )  # fmt: skip
    theirs = sanlock_lockspace(tmp_path / "theirs", geometry, io_timeout=io_timeout)
    assert lockspace_path(tmp_path / "ours").read_bytes() == theirs


def test_the_default_lockspace_is_what_sanlock_makes_by_default(host_alone: VmHost, tmp_path: Path) -> None:
    host_alone.succeed("init-lockspace", tmp_path / "ours")
    path = tmp_path / "theirs"
    path.write_bytes(bytes(MIB))
    result = sanlock_direct("init", "-s", f"{LOCKSPACE_NAME}:0:{path}:0")
    assert result.returncode == 0, result
    assert lockspace_path(tmp_path / "ours").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_block_device_gets_sanlocks_default_geometry(
    host_alone: VmHost, tmp_path: Path, sector_size: int
) -> None:
    images = [tmp_path / "ours", tmp_path / "theirs"]
    for image in images:
        image.write_bytes(bytes(9 * MIB))
    with filesystems.loop_device(images[0], sector_size=sector_size) as device:
        host_alone.succeed("init-lockspace", f"{LOCKSPACE_NAME}:0:{device}:0")
    with filesystems.loop_device(images[1], sector_size=sector_size) as device:
        assert sanlock_direct("init", "-s", f"{LOCKSPACE_NAME}:0:{device}:0").returncode == 0
    assert images[0].read_bytes() == images[1].read_bytes()


@each_geometry
def test_a_resource_of_ours_is_sanlocks_byte_for_byte(tmp_path: Path, geometry: Geometry) -> None:
    ours = area.resource_area(geometry, space_name=LOCKSPACE_NAME, resource_name=resource_name(DISK))
    theirs = sanlock_resource(tmp_path / "theirs", geometry, resource=resource_name(DISK))
    assert ours == theirs


def test_a_resource_file_of_ours_differs_only_in_records_that_an_acquire_writes(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(b"")
    assert host.acquire(holder.pid, disk).returncode == 0
    ours = resource_path(lease_dir, disk).read_bytes()
    theirs = sanlock_resource(tmp_path / "theirs", Geometry(512, MIB), resource=resource_name(disk))
    assert len(ours) == len(theirs)
    changed = {at // 512 for at in range(0, MIB, 512) if ours[at : at + 512] != theirs[at : at + 512]}
    # Leader, our dblock (host id 1 has sector 2), and the owner note in the last 4096 bytes.
    assert {0, 2} <= changed <= {0, 2, *range(2040, 2048)}
    assert resource_path(lease_dir, disk).stat().st_blocks * 512 >= MIB, "libvirt allocates it whole"


# -- sanlock reads ours -----------------------------------------------------------------------------


def lockspace_fields(lease_dir: Path, host_id: int) -> dict[str, str]:
    spec = f"{LOCKSPACE_NAME}:{host_id}:{lockspace_path(lease_dir)}:0"
    return read_leader_fields(sanlock_direct("read_leader", "-s", spec))


def resource_fields(lease_dir: Path, disk: Path) -> dict[str, str]:
    return read_leader_fields(sanlock_direct("read_leader", "-r", resource_spec(lease_dir, disk)))


def dump_rows(path: Path) -> list[list[str]]:
    """The rows of ``sanlock direct dump``: offset, lockspace, name, timestamp, own, gen[, lver]."""
    result = sanlock_direct("dump", str(path))
    assert result.returncode == 0, result
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_sanlock_reads_a_host_lease_of_ours_through_its_life(host: VmHost, lease_dir: Path) -> None:
    joined = lockspace_fields(lease_dir, 1)
    assert (joined["owner_id"], joined["owner_generation"]) == ("1", "1")
    assert (joined["resource_name"], joined["space_name"]) == (host.name, LOCKSPACE_NAME)
    assert (joined["io_timeout"], joined["max_hosts"], joined["num_hosts"]) == ("1", "1", "0")
    assert int(joined["timestamp"]) > 0
    [row] = dump_rows(lockspace_path(lease_dir))
    assert row[1:3] == [LOCKSPACE_NAME, host.name]
    assert (int(row[0]), int(row[4]), int(row[5])) == (0, 1, 1)
    wait_for(
        "a renewal that sanlock reads",
        lambda: int(lockspace_fields(lease_dir, 1)["timestamp"]) > int(joined["timestamp"]),
        within=6,
        every_seconds=0.2,
    )

    host.succeed("remove-host", lease_dir)
    left = lockspace_fields(lease_dir, 1)
    assert left["timestamp"] == "0"
    assert (left["owner_id"], left["owner_generation"], left["resource_name"]) == ("1", "1", host.name)

    host.join(lease_dir, 1)
    assert lockspace_fields(lease_dir, 1)["owner_generation"] == "2"


def test_sanlock_reads_leases_of_ours_through_acquire_and_release(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(b"")
    lease = resource_path(lease_dir, disk)
    for lver in (1, 2):
        assert host.acquire(holder.pid, disk).returncode == 0
        held = resource_fields(lease_dir, disk)
        assert (held["owner_id"], held["owner_generation"], held["lver"]) == ("1", "1", str(lver))
        assert (held["write_id"], held["write_generation"]) == ("1", "1")
        assert (held["space_name"], held["resource_name"]) == (LOCKSPACE_NAME, resource_name(disk))
        assert int(held["timestamp"]) > 0
        [row] = dump_rows(lease)
        assert row[1:3] == [LOCKSPACE_NAME, resource_name(disk)]
        assert [int(value) for value in row[3:7]] == [int(held["timestamp"]), 1, 1, lver]

        assert host.release(holder.pid, disk).returncode == 0
        freed = resource_fields(lease_dir, disk)
        assert (freed["timestamp"], freed["lver"], freed["owner_id"]) == ("0", str(lver), "1")
        [row] = dump_rows(lease)
        assert [int(value) for value in row[3:7]] == [0, 1, 1, lver]


def test_sanlock_reads_a_shared_lease_of_ours(
    host: VmHost, holder: Child, lease_dir: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "a.img"
    disk.write_bytes(b"")
    assert host.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    assert resource_fields(lease_dir, disk)["timestamp"] == "0"
    leader_row, shared_row = dump_rows(resource_path(lease_dir, disk))
    assert int(leader_row[6]) == 1
    assert [int(shared_row[0]), int(shared_row[1]), shared_row[2]] == [1, 1, "SH"]
    assert host.release(holder.pid, disk).returncode == 0
    assert len(dump_rows(resource_path(lease_dir, disk))) == 1


# -- we read sanlock's ------------------------------------------------------------------------------

# The fields that `sanlock direct read_leader` prints under the same name for both lease types.
COMMON_FIELDS = (
    "magic", "version", "flags", "sector_size", "num_hosts", "max_hosts", "owner_id", "owner_generation",
    "lver", "space_name", "resource_name", "timestamp", "checksum", "io_timeout",
)  # fmt: skip


def dumped_area(host: VmHost, path: Path) -> dict[str, Any]:
    dumped = host.json("dump-leases", path)
    [found] = dumped["areas"]
    assert isinstance(found, dict)
    assert (found["path"], found["offset"], found["damage"]) == (str(path), 0, [])
    return found


def assert_same_fields(ours: dict[str, Any], theirs: dict[str, str], extras: dict[str, str]) -> None:
    """Compare our JSON with sanlock's text; ``extras`` maps our name of a field to sanlock's."""
    for name, printed in {**{name: name for name in COMMON_FIELDS}, **extras}.items():
        if isinstance(ours[name], str):
            assert ours[name] == theirs[printed], name
        else:
            assert ours[name] == int(theirs[printed], 0), name


LOCKSPACE_EXTRAS = {"write_id": "extra1", "write_generation": "extra2", "write_timestamp": "extra3"}
RESOURCE_EXTRAS = {name: name for name in ("write_id", "write_generation", "write_timestamp")}


@each_geometry
def test_we_read_a_new_lockspace_of_sanlocks(host_alone: VmHost, tmp_path: Path, geometry: Geometry) -> None:
    path = tmp_path / LOCKSPACE_NAME
    sanlock_lockspace(path, geometry, io_timeout=7)
    found = dumped_area(host_alone, path)
    assert (found["kind"], found["sector_size"], found["align_size"]) == ("lockspace", *geometry)
    # Records that were never used say nothing: sanlock's dump leaves them out as well.
    assert all(leader["owner_id"] == 0 for leader in found["leaders"])
    everything = host_alone.json("dump-leases", "--all-blocks", path)["areas"][0]
    assert len(everything["leaders"]) == geometry.max_hosts
    assert {leader["io_timeout"] for leader in everything["leaders"]} == {7}


@each_geometry
def test_we_read_a_new_resource_of_sanlocks(host_alone: VmHost, tmp_path: Path, geometry: Geometry) -> None:
    path = tmp_path / resource_name(DISK)
    sanlock_resource(path, geometry, resource=resource_name(DISK))
    found = dumped_area(host_alone, path)
    assert (found["kind"], found["sector_size"], found["align_size"]) == ("resource", *geometry)
    spec = resource_spec(tmp_path, DISK)
    theirs = read_leader_fields(sanlock_direct("read_leader", "-r", spec))
    assert_same_fields(found["leader"], theirs, RESOURCE_EXTRAS)
    assert found["request"] is None or found["request"]["lver"] == 0
    assert found["owner_note"] is None


def test_we_read_a_cleared_resource_of_sanlocks(host_alone: VmHost, tmp_path: Path) -> None:
    path = tmp_path / resource_name(DISK)
    path.write_bytes(bytes(MIB))
    assert sanlock_direct("init", "-r", resource_spec(tmp_path, DISK), "-z", "1").returncode == 0
    assert dumped_area(host_alone, path)["kind"] == "cleared"


def test_we_read_leases_that_a_sanlock_daemon_holds(
    host_alone: VmHost, sanlock_host: SanlockHost, tmp_path: Path
) -> None:
    lease_dir = tmp_path / "theirs"
    lease_dir.mkdir()
    sanlock_lockspace(lockspace_path(lease_dir), Geometry(512, MIB), io_timeout=1)
    exclusive, shared = "/images/exclusive.img", "/images/shared.img"
    for disk in (exclusive, shared):
        sanlock_resource(resource_path(lease_dir, disk), Geometry(512, MIB), resource=resource_name(disk))
    sanlock_host.join(lease_dir, 5)
    assert sanlock_host.acquire(lease_dir, exclusive)[0] == 0
    assert sanlock_host.acquire(lease_dir, shared, shared=True)[0] == 0

    found = dumped_area(host_alone, lockspace_path(lease_dir))
    [leader] = [leader for leader in found["leaders"] if leader["owner_id"]]
    assert (leader["host_id"], leader["resource_name"]) == (5, sanlock_host.name)
    renewed = lockspace_fields(lease_dir, 5)
    stable = {name: renewed[name] for name in renewed if name not in ("timestamp", "checksum")}
    assert_same_fields(
        {**leader, "timestamp": 0, "checksum": 0},
        {**stable, "timestamp": "0", "checksum": "0"},
        LOCKSPACE_EXTRAS,
    )

    found = dumped_area(host_alone, resource_path(lease_dir, exclusive))
    theirs = read_leader_fields(sanlock_direct("read_leader", "-r", resource_spec(lease_dir, exclusive)))
    assert_same_fields(found["leader"], theirs, RESOURCE_EXTRAS)
    assert found["leader"]["owner_id"] == 5
    [dblock] = [dblock for dblock in found["dblocks"] if dblock["lver"]]
    assert (dblock["host_id"], dblock["inp"], dblock["inp2"], dblock["lver"]) == (5, 5, 1, 1)
    assert dblock["inp3"] == found["leader"]["timestamp"]
    assert dblock["mbal"] == dblock["bal"] > 0

    found = dumped_area(host_alone, resource_path(lease_dir, shared))
    assert found["leader"]["timestamp"] == 0
    [dblock] = [dblock for dblock in found["dblocks"] if dblock["lver"]]
    assert dblock["host_id"] == 5
    assert "SH" in sanlock_direct("dump", str(resource_path(lease_dir, shared))).stdout
    assert dblock["shared"], "the mode block marks a shared holder"


def test_the_codec_reads_what_a_sanlock_daemon_wrote(sanlock_host: SanlockHost, tmp_path: Path) -> None:
    lease_dir = tmp_path / "theirs"
    lease_dir.mkdir()
    sanlock_lockspace(lockspace_path(lease_dir), Geometry(512, MIB), io_timeout=1)
    sanlock_host.join(lease_dir, 2)
    leader = read_leader(lockspace_path(lease_dir), sector=1)
    assert leader == leader.sealed(), "sanlock's checksum is ours"
    assert Leader.from_bytes(leader.to_bytes()) == leader
    assert (leader.owner_id, leader.resource) == (2, sanlock_host.name)
