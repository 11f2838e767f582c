"""``release --to-shared`` and ``acquire`` of a lease that is held shared, with two real hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.disk import lease_leader, lease_owner, resource_path, shared_hosts, write_leader
from tests.support.programs import Child, find_program, standing_process
from tests.support.vmhost import VmHost, error_object
from tests.support.waiting import wait_for


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


def convert(host: VmHost, holder: Child, disk: Path, *options: str) -> object:
    return host.call("release", "--pid", str(holder.pid), "--to-shared", *options, disk)


def lver(lease_dir: Path, disk: Path) -> int:
    leader = lease_leader(lease_dir, disk)
    assert leader is not None
    return leader.lver


def test_there_and_back(two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path) -> None:
    here, there = two_hosts
    assert here.acquire(holder.pid, disk).returncode == 0
    version = lver(lease_dir, disk)
    shared = here.succeed("release", "--pid", str(holder.pid), "--to-shared", disk)
    assert shared.stdout == f"{disk}: shared\n"
    assert shared_hosts(lease_dir, disk) == [1]
    assert lver(lease_dir, disk) == version, "the version stays (4.7)"
    assert here.lease_status(disk)["mode"] == "shared"

    with standing_process() as reader:
        assert there.acquire(reader.pid, disk, options=["--shared"]).returncode == 0
        refused = here.call("acquire", "--pid", str(holder.pid), disk, "--json")
        assert refused.returncode == 75
        assert there.name in error_object(refused)["message"]
        assert shared_hosts(lease_dir, disk) == [1, 2], "it stays shared"
        assert here.lease_status(disk)["mode"] == "shared"
        assert there.release(reader.pid, disk).returncode == 0

    assert here.acquire(holder.pid, disk).returncode == 0
    assert shared_hosts(lease_dir, disk) == []
    assert lease_owner(lease_dir, disk) == 1
    assert here.lease_status(disk)["mode"] == "exclusive"
    assert here.release(holder.pid, disk).returncode == 0


def test_what_is_shared_already_stays(host: VmHost, holder: Child, lease_dir: Path, disk: Path) -> None:
    assert host.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    version = lver(lease_dir, disk)
    answer = host.succeed("release", "--pid", str(holder.pid), "--to-shared", "--json", disk)
    assert json.loads(answer.stdout)["shared"][0]["lver"] == version
    assert shared_hosts(lease_dir, disk) == [1]


def test_a_second_local_holder_keeps_it_shared(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """12.2-g: sanlock lets one client convert while another one of the same host still shares."""
    with standing_process() as other:
        for process in (holder, other):
            assert host.acquire(process.pid, disk, options=["--shared"]).returncode == 0
        assert host.acquire(holder.pid, disk).returncode == 75
        assert shared_hosts(lease_dir, disk) == [1]
        assert host.release(other.pid, disk).returncode == 0
    assert host.acquire(holder.pid, disk).returncode == 0
    assert lease_owner(lease_dir, disk) == 1


def test_it_stays_exclusive_while_the_disk_is_open_for_writing(
    host: VmHost, lease_dir: Path, disk: Path
) -> None:
    """Design rule 2: whoever holds a lease shared may only read."""
    with Child(["sh", "-c", 'exec sleep 60 >> "$1"', "sh", str(disk)]) as writer:
        wait_for("the open disk", lambda: Path(f"/proc/{writer.pid}/fd/1").resolve() == disk, within=5)
        assert host.acquire(writer.pid, disk).returncode == 0
        refused = host.call("release", "--pid", str(writer.pid), "--to-shared", disk)
        assert refused.returncode == 77
        assert str(writer.pid) in refused.stderr
        assert lease_owner(lease_dir, disk) == 1


def test_a_lease_that_is_lost_is_not_turned_into_a_shared_one(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    """Another host owns it by now: whoever relied on it ends, as with every lease that is lost."""
    assert host.acquire(holder.pid, disk).returncode == 0
    ours = lease_leader(lease_dir, disk)
    assert ours is not None
    stolen = ours._replace(lver=ours.lver + 1, owner_id=2, write_id=2).sealed()
    write_leader(resource_path(lease_dir, disk), stolen)
    refused = host.call("release", "--pid", str(holder.pid), "--to-shared", disk, "--json")
    assert refused.returncode == 76, refused
    assert error_object(refused)["code"] == "lease-lost"
    holder.wait(within=10)
    assert shared_hosts(lease_dir, disk) == []
    assert lease_leader(lease_dir, disk) == stolen


def test_all_or_nothing_turns_back_what_it_converted(
    two_hosts: tuple[VmHost, VmHost], holder: Child, lease_dir: Path, disk: Path, tmp_path: Path
) -> None:
    here, there = two_hosts
    # Taken in the order of their names: the one that is refused must be the last.
    other = next(path for n in range(50) if _later(path := tmp_path / f"b{n}.img", disk))
    other.write_bytes(bytes(4096))
    assert here.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    with standing_process() as rival:
        assert there.acquire(rival.pid, other).returncode == 0
        assert here.acquire(holder.pid, disk, other).returncode == 75
    assert shared_hosts(lease_dir, disk) == [1]
    assert here.lease_status(disk)["mode"] == "shared"


def _later(path: Path, disk: Path) -> bool:
    from tests.support.disk import resource_name

    return resource_name(path) > resource_name(disk)


def test_a_conversion_whose_command_died_is_settled_as_shared(
    host: VmHost, holder: Child, lease_dir: Path, disk: Path
) -> None:
    assert host.acquire(holder.pid, disk, options=["--shared"]).returncode == 0
    [path] = host.claims_dir.glob("*.json")
    claim = json.loads(path.read_text())
    with Child([find_program("true")]) as command:
        command.wait(within=5)
    claim.update(state="converting", command={**claim["processes"][0], "pid": command.pid, "start_time": 1})
    temporary = host.claims_dir / ".claim"
    temporary.write_text(json.dumps(claim))
    temporary.rename(path)
    wait_for("the settled claim", lambda: json.loads(path.read_text())["state"] == "held", within=10)
    assert shared_hosts(lease_dir, disk) == [1]
    assert host.acquire(holder.pid, disk).returncode == 0
