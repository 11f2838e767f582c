"""A look after the first: what it reads again, what it may keep, and whom it asks for names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk import LOCKSPACE_NAME, SECTOR, read_leader, write_direct, write_leader
from tests.support.leasefiles import HOSTS, write_lease, write_lockspace
from vmlockctl.host.libvirt import Domain, DomainDisk
from vmlockctl.host.rundir import RunDir
from vmlockctl.ondisk.dblock import MODE_SHARED, Dblock, ModeBlock, own_sector
from vmlockctl.ondisk.geometry import NOTE_SIZE
from vmlockctl.ops import disknames, rereading
from vmlockctl.ops.session import Session
from vmlockctl.ops.status import Lookout, Status, status

DISK = "/images/a.img"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    write_lockspace(tmp_path / "leases")
    return Session(RunDir(str(tmp_path / "run")), str(tmp_path / "leases"))


@pytest.fixture
def lease(session: Session, tmp_path: Path) -> Path:
    return write_lease(tmp_path / "leases", DISK)


@pytest.fixture
def lookout(session: Session) -> Iterator[Lookout]:
    with Lookout(session) as lookout:
        yield lookout


@pytest.fixture
def dumped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lease files that were read whole."""
    paths: list[str] = []
    dump = rereading.dump

    def recording(wanted: list[str], *, hosts: int) -> object:
        paths.extend(wanted)
        return dump(wanted, hosts=hosts)

    monkeypatch.setattr(rereading, "dump", recording)
    return paths


def owners(seen: Status) -> list[int]:
    return [owner["host_id"] for lease in seen.leases for owner in lease.owners]


def test_what_did_not_change_is_not_read_again(lookout: Lookout, lease: Path, dumped: list[str]) -> None:
    looks = [lookout.look() for _ in range(3)]
    assert dumped == [str(lease)]
    assert [owners(seen) for seen in looks] == [[2], [2], [2]]
    assert looks[2].leases[0].disk == DISK


def test_every_change_shows(lookout: Lookout, lease: Path) -> None:
    assert owners(lookout.look()) == [2]
    write_leader(lease, read_leader(lease)._replace(owner_id=1, lver=4, write_id=1))
    assert owners(lookout.look()) == [1]
    free = read_leader(lease)._replace(timestamp=0)
    write_leader(lease, free)
    assert owners(lookout.look()) == []
    # Only a dblock: a shared mark, and a value that a host which died never committed.
    mark = own_sector(Dblock(2700, lver=4).sealed(), ModeBlock(MODE_SHARED, 1), SECTOR)
    write_direct(lease, 701 * SECTOR, mark)
    assert owners(lookout.look()) == [700]
    write_direct(lease, 701 * SECTOR, bytes(SECTOR))
    value = own_sector(Dblock(2001, 2001, 1, 1, 999, 5).sealed(), ModeBlock(0, 0), SECTOR)
    write_direct(lease, 2 * SECTOR, value)
    assert owners(lookout.look()) == [1]
    lease.unlink()
    assert lookout.look().leases == []


def test_a_note_that_comes_after_the_leader(lookout: Lookout, lease: Path) -> None:
    with lease.open("r+b") as file:
        file.seek(-NOTE_SIZE, 2)
        note = file.read()
        file.seek(-NOTE_SIZE, 2)
        file.write(bytes(NOTE_SIZE))
    assert lookout.look().leases[0].owners[0]["vm"] is None
    write_direct(lease, (1 << 20) - NOTE_SIZE, note)
    assert lookout.look().leases[0].owners[0]["vm"] == "web"


def test_looking_on_makes_an_observer(lookout: Lookout, tmp_path: Path) -> None:
    """Nobody observes at the first look; a renewal that the next one sees is a sign of life."""
    first = lookout.look()
    assert (first.observed_by, {host.state for host in first.hosts}) == ("nobody", {"unknown"})
    space = tmp_path / "leases" / LOCKSPACE_NAME
    record = read_leader(space, sector=699)
    write_leader(space, record._replace(timestamp=1020), sector=699)
    then = lookout.look()
    assert then.observed_by == "watching"
    assert [(host.host_id, host.state) for host in then.hosts][-1] == (700, "live")
    assert [host.host_id for host in then.hosts] == list(HOSTS)


def test_names_are_asked_for_once(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again for a lease that is new; a note that names another disk than the lease's is not believed."""
    asked: list[str] = []

    def all_domains() -> list[Domain]:
        asked.append("libvirt")
        disks = (DomainDisk(DISK, "vda", readonly=False, shareable=False),)
        return [Domain("web", "", "defined", "", 0, disks, (), "/etc/libvirt/qemu/web.xml")]

    monkeypatch.setattr(disknames, "domains", all_domains)
    monkeypatch.setattr(disknames, "running_qemus", list)
    lied = write_lease(tmp_path / "leases", "/images/other.img", noted_disk="/etc/passwd")
    path = write_lease(tmp_path / "leases", DISK)
    write_direct(path, (1 << 20) - NOTE_SIZE, bytes(NOTE_SIZE))
    with Lookout(session) as lookout:
        for _ in range(3):
            found = {lease.resource: lease.disk for lease in lookout.look().leases}
        assert asked == ["libvirt"]
        assert found == {path.name: DISK, lied.name: None}
        another = write_lease(tmp_path / "leases", "/images/new.img")
        write_direct(another, (1 << 20) - NOTE_SIZE, bytes(NOTE_SIZE))
        lookout.look()
        assert asked == ["libvirt"] * 2


def test_directories_of_images_are_looked_into(session: Session, tmp_path: Path) -> None:
    disk = tmp_path / "a.img"
    disk.touch()
    path = write_lease(tmp_path / "leases", str(disk))
    write_direct(path, (1 << 20) - NOTE_SIZE, bytes(NOTE_SIZE))
    [found] = status(session, image_directories=[str(tmp_path)]).leases
    assert (found.disk, found.disk_source) == (str(disk), f"a file in {tmp_path}")
