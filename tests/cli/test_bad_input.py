"""Bad input: the exit code of the table, one line and a hint, no traceback, and every byte as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.disk import (
    AREA,
    LOCKSPACE_NAME,
    SECTOR,
    directory_digest,
    lease_is_free,
    lease_leader,
    lease_owner,
    lockspace_path,
    read_delta,
    resource_name,
    resource_path,
)
from tests.support.programs import Child, Result, find_program
from tests.support.vmhost import OUR_COMMAND, VmHost, error_object
from tests.support.waiting import wait_for
from vmlockctl.ondisk import area
from vmlockctl.ondisk.dblock import Dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import Leader

Damage = Callable[[bytes], bytes]

USAGE, DATA, NO_SUCH, NOT_JOINED = 64, 65, 66, 69
EXISTS, STORAGE, BUSY, PERMISSION = 73, 74, 75, 77


# Everything but the line feed: what a name from a disk may not bring to a terminal.
CONTROL_CHARACTERS = {chr(code) for code in [*range(32), *range(127, 160)]} - {"\n"}


def assert_refused(result: Result, exit_code: int, *place: object, data: bool = False) -> None:
    """Two lines on stderr: what is wrong and where, and what to do; nothing on stdout."""
    assert result.returncode == exit_code, result
    assert result.stdout == "", result
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result
    assert lines[0].startswith("vmlockctl: "), result
    assert lines[1].startswith("hint: "), result
    assert "Traceback" not in result.stderr, result
    for part in place:
        assert str(part) in lines[0], result
    if data:
        assert "found " in lines[0], result
        assert "expected " in lines[0], result
    assert not CONTROL_CHARACTERS & set(result.stderr), result


class Untouched:
    """A lease directory whose bytes must be the same at the end of the block."""

    def __init__(self, lease_dir: Path, *live_host_ids: int) -> None:
        self._lease_dir, self._live = lease_dir, live_host_ids

    def _look(self) -> dict[str, str]:
        return directory_digest(self._lease_dir, live_host_ids=self._live)

    def __enter__(self) -> None:
        self._before = self._look()

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:
            assert self._look() == self._before, "bytes in the lease directory changed"


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmHost]:
    """One joined host for the whole module; every test has a disk of its own."""
    directory = tmp_path_factory.mktemp("joined")
    host = VmHost(directory / "host", "hostA")
    try:
        host.create(directory / "leases")
        yield host
    finally:
        host.close()


@pytest.fixture
def leases(joined: VmHost) -> Path:
    assert joined.lease_dir is not None
    return joined.lease_dir


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return path


# -- damage -----------------------------------------------------------------------------------------


def in_sector(sector: int, change: Callable[[Leader], Leader], *, sealed: bool = True) -> Damage:
    """Change one leader record of an area, with a checksum that is right for the new bytes."""

    def damage(content: bytes) -> bytes:
        start = sector * SECTOR
        leader = change(Leader.from_bytes(content[start : start + SECTOR]))
        record = (leader.sealed() if sealed else leader).to_bytes()
        return content[:start] + record + content[start + len(record) :]

    return damage


def everywhere(change: Callable[[Leader], Leader], *, sealed: bool = True) -> Damage:
    """Change every record of a lockspace."""

    def damage(content: bytes) -> bytes:
        for sector in range(DEFAULT_GEOMETRY.max_hosts):
            content = in_sector(sector, change, sealed=sealed)(content)
        return content

    return damage


def other_name(name: bytes) -> bytes:
    return name.ljust(48, b"\0")


WHOLE_FILE_DAMAGE: dict[str, Damage] = {
    "0 bytes": lambda content: b"",
    "100 bytes": lambda content: content[:100],
    "4096 bytes": lambda content: content[:4096],
    "one sector short": lambda content: content[:-SECTOR],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: (b"this is not a lease\n" * 60000)[: len(content)],
    "short text": lambda content: b"this is not a lease\n",
}

# The first record belongs to host id 1, and states the sizes for everybody.
LOCKSPACE_DAMAGE: dict[str, Damage] = {
    **WHOLE_FILE_DAMAGE,
    "magic": in_sector(0, lambda leader: leader._replace(magic=0x12345678)),
    "a resource's magic": in_sector(0, lambda leader: leader._replace(magic=0x06152010)),
    "major version": in_sector(0, lambda leader: leader._replace(version=0x00040004)),
    "checksum": in_sector(0, lambda leader: leader._replace(checksum=leader.checksum ^ 1), sealed=False),
    "a flipped bit": in_sector(0, lambda leader: leader._replace(owner_generation=4), sealed=False),
    "name": everywhere(lambda leader: leader._replace(space_name=other_name(b"elsewhere"))),
    "a hostile name": everywhere(
        lambda leader: leader._replace(space_name=other_name(b"\x1b]0;pwn\x07\x1b[31m"))
    ),
    "sector size 1024": in_sector(0, lambda leader: leader._replace(sector_size=1024)),
    "sector size 0": in_sector(0, lambda leader: leader._replace(sector_size=0)),
}

# The record of host id 2 alone: nobody else need notice.
RECORD_DAMAGE: dict[str, Damage] = {
    "magic": in_sector(1, lambda leader: leader._replace(magic=0x12345678)),
    "major version": in_sector(1, lambda leader: leader._replace(version=0x00040004)),
    "name": in_sector(1, lambda leader: leader._replace(space_name=other_name(b"elsewhere"))),
    "checksum": in_sector(1, lambda leader: leader._replace(checksum=leader.checksum ^ 1), sealed=False),
    "a flipped bit": in_sector(1, lambda leader: leader._replace(owner_generation=4), sealed=False),
}


def with_dblock(host_id: int, dblock: Dblock) -> Damage:
    def damage(content: bytes) -> bytes:
        start = (host_id + 1) * SECTOR
        record = dblock.to_bytes()
        return content[:start] + record + content[start + len(record) :]

    return damage


BALLOT = Dblock(mbal=5, bal=5, inp=5, inp2=1, inp3=100, lver=1, checksum=0, flags=0)

RESOURCE_DAMAGE: dict[str, Damage] = {
    **WHOLE_FILE_DAMAGE,
    "magic": in_sector(0, lambda leader: leader._replace(magic=0x12345678)),
    "a lockspace's magic": in_sector(0, lambda leader: leader._replace(magic=0x12212010)),
    "cleared": in_sector(0, lambda leader: leader._replace(magic=0x11282016)),
    "major version": in_sector(0, lambda leader: leader._replace(version=0x00070004)),
    "checksum": in_sector(0, lambda leader: leader._replace(checksum=leader.checksum ^ 1), sealed=False),
    "a flipped bit": in_sector(0, lambda leader: leader._replace(lver=9), sealed=False),
    "lockspace name": in_sector(0, lambda leader: leader._replace(space_name=other_name(b"elsewhere"))),
    "resource name": in_sector(0, lambda leader: leader._replace(resource_name=other_name(b"another"))),
    "a hostile name": in_sector(
        0, lambda leader: leader._replace(resource_name=other_name(b"\x1b]0;pwn\x07\x1b[31m\x9b"))
    ),
    "sector size 1024": in_sector(0, lambda leader: leader._replace(sector_size=1024)),
    "num_hosts 0": in_sector(0, lambda leader: leader._replace(num_hosts=0)),
    "num_hosts 3000": in_sector(0, lambda leader: leader._replace(num_hosts=3000)),
    "max_hosts 8": in_sector(0, lambda leader: leader._replace(max_hosts=8)),
    "owner_id 5000": in_sector(0, lambda leader: leader._replace(owner_id=5000, timestamp=77)),
    "dblock checksum": with_dblock(5, BALLOT),
    "absurd lver": with_dblock(5, BALLOT._replace(lver=1 << 62).sealed()),
    "absurd mbal": with_dblock(5, BALLOT._replace(mbal=(1 << 64) - 1).sealed()),
}


def each(damages: dict[str, Damage]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("damage", damages.values(), ids=[*damages])


def damaged_lockspace(lease_dir: Path, damage: Damage) -> Path:
    lease_dir.mkdir()
    content = area.lockspace_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, io_timeout=1)
    path = lockspace_path(lease_dir)
    path.write_bytes(damage(content))
    return path


@each(LOCKSPACE_DAMAGE)
def test_a_damaged_lockspace_is_not_joined(host_alone: VmHost, lease_dir: Path, damage: Damage) -> None:
    path = damaged_lockspace(lease_dir, damage)
    with Untouched(lease_dir):
        refused = host_alone.call("add-host", lease_dir, "--host-id", "1")
    assert_refused(refused, DATA, f"{path}:", data=True)


@each(RECORD_DAMAGE)
def test_a_damaged_record_of_this_host_is_not_overwritten(
    host_alone: VmHost, lease_dir: Path, damage: Damage
) -> None:
    path = damaged_lockspace(lease_dir, damage)
    with Untouched(lease_dir):
        refused = host_alone.call("add-host", lease_dir, "--host-id", "2")
    assert_refused(refused, DATA, f"{path}:{SECTOR}:", data=True)


@each(LOCKSPACE_DAMAGE)
def test_a_damaged_lockspace_is_not_formatted_over(
    host_alone: VmHost, lease_dir: Path, damage: Damage
) -> None:
    path = damaged_lockspace(lease_dir, damage)
    with Untouched(lease_dir):
        refused = host_alone.call("init-lockspace", lease_dir)
    assert refused.returncode in (DATA, EXISTS), refused
    assert_refused(refused, refused.returncode, path)


@each(LOCKSPACE_DAMAGE)
def test_reading_commands_decode_what_they_can_of_a_lockspace(
    host_alone: VmHost, lease_dir: Path, damage: Damage
) -> None:
    damaged_lockspace(lease_dir, damage)
    with Untouched(lease_dir):
        for options in ([], ["--json"]):
            result = host_alone.call("dump-leases", *options, lease_dir)
            assert result.returncode in (0, DATA), result
            assert "Traceback" not in result.stderr, result
            assert "\x1b" not in result.stdout, "a name from the disk reached the terminal as it is"
        [found] = json.loads(result.stdout)["areas"]
    assert found["damage"] or found["leaders"][0]["space_name"] != LOCKSPACE_NAME, found


@each(RESOURCE_DAMAGE)
def test_a_damaged_lease_is_not_acquired(
    joined: VmHost, leases: Path, holder: Child, disk: Path, damage: Damage
) -> None:
    path = resource_path(leases, disk)
    path.write_bytes(damage(new_resource(disk)))
    with Untouched(leases, 1):
        refused = joined.acquire(holder.pid, disk)
        started = joined.call("run", "--disk", disk, "--", "echo", "started")
    assert_refused(refused, DATA, f"{path}:", data=True)
    assert_refused(started, DATA, f"{path}:", data=True)
    assert not (joined.claims_dir / f"{resource_name(disk)}.json").exists()


def new_resource(disk: Path) -> bytes:
    return area.resource_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, resource_name=resource_name(disk))


@each(RESOURCE_DAMAGE)
def test_reading_commands_decode_what_they_can_of_a_lease(
    host_alone: VmHost, lease_dir: Path, disk: Path, damage: Damage
) -> None:
    lease_dir.mkdir()
    path = resource_path(lease_dir, disk)
    path.write_bytes(damage(new_resource(disk)))
    with Untouched(lease_dir):
        result = host_alone.call("dump-leases", "--json", path)
    assert result.returncode in (0, DATA), result
    [found] = json.loads(result.stdout)["areas"]
    assert found["path"] == str(path)
    assert found["damage"] or found["kind"] == "cleared" or is_only_implausible(found, disk), found


def is_only_implausible(found: dict[str, Any], disk: Path) -> bool:
    """Another name or a huge number is no damage to who only reads: it is shown as it is."""
    names = (found["leader"]["space_name"], found["leader"]["resource_name"])
    numbers = [dblock[field] for dblock in found["dblocks"] for field in ("mbal", "lver")]
    return names != (LOCKSPACE_NAME, resource_name(disk)) or max(numbers, default=0) > 1 << 48


# -- directories and storage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["add-host", "DIR", "--host-id", "1"],
        ["remove-host", "DIR"],
        ["acquire", "-L", "DIR", "--pid", str(os.getpid()), "DISK"],
        ["run", "-L", "DIR", "--disk", "DISK", "--", "true"],
        ["status", "-L", "DIR"],
        ["dump-leases", "DIR"],
        ["check-orphans", "-L", "DIR"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_lease_directory(
    host_alone: VmHost, tmp_path: Path, disk: Path, arguments: list[str]
) -> None:
    missing = tmp_path / "missing"
    named = [word.replace("DIR", str(missing)).replace("DISK", str(disk)) for word in arguments]
    assert_refused(host_alone.call(*named), NO_SUCH, missing)
    assert not missing.exists()


def test_a_lease_directory_that_is_a_file(host_alone: VmHost, disk: Path) -> None:
    refused = host_alone.call("init-lockspace", disk)
    assert refused.returncode in (DATA, NO_SUCH, EXISTS), refused
    assert_refused(refused, refused.returncode, disk)
    assert disk.read_bytes() == bytes(4096)


def test_acquire_before_the_host_has_joined(
    host_alone: VmHost, joined: VmHost, leases: Path, holder: Child, disk: Path
) -> None:
    with Untouched(leases, 1):
        refused = host_alone.call("acquire", "-L", leases, "--pid", str(holder.pid), disk)
    assert_refused(refused, NOT_JOINED, leases)


@pytest.fixture
def ordinary_root() -> list[str]:
    """Permission bits bind even root once CAP_DAC_OVERRIDE is gone."""
    if os.geteuid() != 0:
        return []
    return [find_program("setpriv"), "--bounding-set", "-dac_override,-dac_read_search"]


def test_an_unwritable_directory_when_a_lockspace_is_created(
    host_alone: VmHost, lease_dir: Path, ordinary_root: list[str]
) -> None:
    lease_dir.mkdir(mode=0o555)
    refused = host_alone.call("init-lockspace", lease_dir, prefix=ordinary_root)
    assert_refused(refused, PERMISSION, lease_dir)
    assert list(lease_dir.iterdir()) == []
    refused = host_alone.call("init-lockspace", lease_dir / "below", prefix=ordinary_root)
    assert_refused(refused, PERMISSION, lease_dir)


def test_an_unwritable_directory_when_a_lease_is_created(
    joined: VmHost, leases: Path, holder: Child, disk: Path, ordinary_root: list[str]
) -> None:
    leases.chmod(0o555)
    try:
        with Untouched(leases, 1):
            refused = joined.call("acquire", "--pid", str(holder.pid), disk, prefix=ordinary_root)
    finally:
        leases.chmod(0o755)
    assert_refused(refused, PERMISSION, leases)


def test_a_lockspace_that_may_not_be_opened(
    host_alone: VmHost, lease_dir: Path, ordinary_root: list[str]
) -> None:
    path = damaged_lockspace(lease_dir, lambda content: content)
    path.chmod(0o000)
    with Untouched(lease_dir):
        refused = host_alone.call("add-host", lease_dir, "--host-id", "1", prefix=ordinary_root)
    assert_refused(refused, PERMISSION, path)


def test_a_full_disk_when_a_lockspace_is_created(host_alone: VmHost, tmp_path: Path) -> None:
    with filesystems.ext4(tmp_path) as mount:
        lease_dir = mount / "leases"
        lease_dir.mkdir()
        filesystems.fill(mount)
        refused = host_alone.call("init-lockspace", lease_dir)
        assert_refused(refused, EXISTS, lease_dir)
        assert list(lease_dir.iterdir()) == [], "a half-made file was left behind"


def test_a_full_disk_when_a_lease_is_created(
    host_alone: VmHost, holder: Child, tmp_path: Path, disk: Path
) -> None:
    """A lease that exists needs no space, and neither do renewals."""
    known = tmp_path / "known.img"
    known.write_bytes(b"")
    with filesystems.ext4(tmp_path) as mount:
        lease_dir = mount / "leases"
        host_alone.create(lease_dir)
        try:
            for step in (host_alone.acquire, host_alone.release):
                assert step(holder.pid, known).returncode == 0
            filesystems.fill(mount)
            with Untouched(lease_dir, 1):
                refused = host_alone.acquire(holder.pid, disk)
            assert_refused(refused, EXISTS, lease_dir)
            granted = host_alone.acquire(holder.pid, known)
            assert granted.returncode == 0, granted
            before = host_alone.status()["this_host"]["expires_in"]
            wait_for(
                "a renewal on the full disk",
                lambda: host_alone.status()["this_host"]["expires_in"] > before,
                within=10,
            )
        finally:
            host_alone.close()


def test_a_read_only_mount(joined: VmHost, host_alone: VmHost, leases: Path, tmp_path: Path) -> None:
    with filesystems.read_only(leases, tmp_path / "ro") as mount, Untouched(leases, 1):
        refused = host_alone.call("add-host", mount, "--host-id", "2")
        assert_refused(refused, PERMISSION, mount)
        refused = host_alone.call("init-lockspace", mount / "new")
        assert_refused(refused, PERMISSION, mount)
        for command in ("status -L", "dump-leases"):
            assert host_alone.call(*command.split(), mount).returncode == 0, "reading needs no writable mount"


def test_no_direct_io_when_a_lockspace_is_created(host_alone: VmHost, tmp_path: Path) -> None:
    with filesystems.without_direct_io(tmp_path) as mount:
        refused = host_alone.call("init-lockspace", mount / "leases")
        assert_refused(refused, STORAGE, mount)
        assert not lockspace_path(mount / "leases").exists()


def test_no_direct_io_when_a_host_joins(host_alone: VmHost, tmp_path: Path) -> None:
    with filesystems.without_direct_io(tmp_path) as mount:
        path = damaged_lockspace(mount / "leases", lambda content: content)
        with Untouched(mount / "leases"):
            refused = host_alone.call("add-host", mount / "leases", "--host-id", "1")
        assert_refused(refused, STORAGE, path)


# -- host ids and host names ------------------------------------------------------------------------

BAD_HOST_IDS = ["0", "-1", "2001", "text", "1.5", "", "99999999999999999999"]


@pytest.mark.parametrize("host_id", BAD_HOST_IDS)
def test_a_host_id_that_cannot_be(host_alone: VmHost, leases: Path, host_id: str) -> None:
    with Untouched(leases, 1):
        refused = host_alone.call("add-host", leases, "--host-id", host_id)
    assert_refused(refused, USAGE, host_id)


@pytest.mark.parametrize("host_id", BAD_HOST_IDS)
def test_a_host_id_that_cannot_be_with_a_new_lockspace(
    host_alone: VmHost, lease_dir: Path, host_id: str
) -> None:
    assert_refused(host_alone.call("init-lockspace", lease_dir, "--host-id", host_id), USAGE, host_id)
    assert not lockspace_path(lease_dir).exists()


def test_a_host_id_beyond_a_small_lockspace(host_alone: VmHost, lease_dir: Path) -> None:
    host_alone.succeed("init-lockspace", lease_dir, "--sector-size", "4096", "--align", "1M")
    with Untouched(lease_dir):
        refused = host_alone.call("add-host", lease_dir, "--host-id", "251")
    assert_refused(refused, USAGE, "251")


def test_a_host_id_that_a_live_host_has(host_alone: VmHost, joined: VmHost, leases: Path) -> None:
    with Untouched(leases, 1):
        refused = host_alone.call(
            "add-host", leases, "--host-id", "1", "--host-name", "intruder", "--io-timeout", "1", within=100
        )
    assert refused.returncode == BUSY, refused
    assert refused.stdout == "", refused
    errors = [line for line in refused.stderr.splitlines() if line.startswith("vmlockctl: ")]
    assert joined.name in errors[-1], refused
    assert refused.stderr.splitlines()[-1].startswith("hint: "), refused
    assert refused.seconds < 20, "a change of the record is the answer: no need to wait any longer"
    assert joined.generation == 1


@pytest.mark.parametrize("name", ["x" * 48, "ü" * 24, "x" * 200], ids=["48 bytes", "48 in UTF-8", "200"])
def test_a_host_name_that_is_too_long(host_alone: VmHost, leases: Path, name: str) -> None:
    with Untouched(leases, 1):
        refused = host_alone.call("add-host", leases, "--host-id", "2", "--host-name", name)
    assert_refused(refused, USAGE, "47")


def test_a_host_name_that_another_live_host_has(host_alone: VmHost, joined: VmHost, leases: Path) -> None:
    """A name is what a rejoin is known by: two live hosts of one name would steal from each other."""
    with Untouched(leases, 1):
        refused = host_alone.call(
            "add-host", leases, "--host-id", "1", "--host-name", joined.name, "--io-timeout", "1", within=100
        )
    assert refused.returncode == BUSY, refused
    assert joined.generation == 1


# -- processes --------------------------------------------------------------------------------------


def test_a_pid_that_does_not_exist(joined: VmHost, leases: Path, disk: Path) -> None:
    ended = Child(["true"])
    ended.wait(within=5)
    with Untouched(leases, 1):
        refused = joined.acquire(ended.pid, disk)
    assert_refused(refused, USAGE, ended.pid)
    assert not resource_path(leases, disk).exists()


@pytest.mark.parametrize("pid", ["0", "-1", "text", "99999999999"])
def test_a_pid_that_cannot_be(joined: VmHost, leases: Path, disk: Path, pid: str) -> None:
    with Untouched(leases, 1):
        refused = joined.call("acquire", "--pid", pid, disk)
    assert_refused(refused, USAGE, pid)


def test_a_pid_that_is_a_zombie(joined: VmHost, leases: Path, disk: Path) -> None:
    zombie = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with Untouched(leases, 1):
            refused = joined.acquire(zombie.pid, disk)
    finally:
        zombie.wait()
    assert_refused(refused, USAGE, zombie.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_a_pid_of_somebody_else(joined: VmHost, leases: Path, holder: Child, disk: Path) -> None:
    """The caller is nobody, who may read and write every file here but is not the owner of the process."""
    capabilities = "+dac_override,+dac_read_search"
    nobody = [
        find_program("setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups",
        "--inh-caps", capabilities, "--ambient-caps", capabilities,
    ]  # fmt: skip
    with Untouched(leases, 1):
        refused = joined.call("acquire", "--pid", str(holder.pid), disk, prefix=nobody)
    assert_refused(refused, PERMISSION, holder.pid)


# -- disks ------------------------------------------------------------------------------------------


def refused_by_both(host: VmHost, leases: Path, holder: Child, disk: Path) -> Iterator[Result]:
    """What acquire and run say about a disk; neither may leave a trace."""
    with Untouched(leases, 1):
        yield host.acquire(holder.pid, disk)
        yield host.call("run", "--disk", disk, "--", "echo", "started")
    assert not resource_path(leases, disk).exists()


def test_a_disk_that_is_missing(joined: VmHost, leases: Path, holder: Child, tmp_path: Path) -> None:
    missing = tmp_path / "missing.img"
    for refused in refused_by_both(joined, leases, holder, missing):
        assert_refused(refused, NO_SUCH, missing)


def test_a_disk_that_is_a_directory(joined: VmHost, leases: Path, holder: Child, tmp_path: Path) -> None:
    for refused in refused_by_both(joined, leases, holder, tmp_path):
        assert_refused(refused, NO_SUCH, tmp_path)


def test_a_link_that_leads_nowhere(joined: VmHost, leases: Path, holder: Child, tmp_path: Path) -> None:
    link = tmp_path / "link.img"
    link.symlink_to(tmp_path / "missing.img")
    for refused in refused_by_both(joined, leases, holder, link):
        assert_refused(refused, NO_SUCH, link)


def test_a_disk_with_several_names(
    joined: VmHost, leases: Path, holder: Child, disk: Path, tmp_path: Path
) -> None:
    os.link(disk, tmp_path / "b.img")
    for refused in refused_by_both(joined, leases, holder, disk):
        assert_refused(refused, PERMISSION, disk)
        assert "--allow-alias" in refused.stderr, refused
    granted = joined.acquire(holder.pid, disk, options=["--allow-alias"])
    assert granted.returncode == 0, granted
    assert joined.release(holder.pid, disk).returncode == 0


def test_release_of_what_is_not_held(joined: VmHost, leases: Path, holder: Child, disk: Path) -> None:
    with Untouched(leases, 1):
        assert_refused(joined.release(holder.pid, disk), NO_SUCH, disk)


# -- two commands at once ---------------------------------------------------------------------------


def run_together(commands: list[tuple[VmHost, list[str]]]) -> list[int]:
    children = [host.start(*arguments) for host, arguments in commands]
    try:
        return [child.wait(within=120) for child in children]
    finally:
        for child in children:
            child.kill()


@pytest.fixture
def crowd() -> Iterator[list[Child]]:
    children = [Child(["sleep", "infinity"]) for _ in range(50)]
    yield children
    for child in children:
        child.kill()


def test_of_fifty_at_once_exactly_one_wins(
    joined: VmHost, leases: Path, crowd: list[Child], disk: Path
) -> None:
    codes = run_together([(joined, ["acquire", "--pid", str(child.pid), str(disk)]) for child in crowd])
    assert sorted(codes) == [0] + [BUSY] * 49
    leader = lease_leader(leases, disk)
    assert leader is not None
    assert (leader.owner_id, leader.lver) == (1, 1), "there was one ballot, and one winner"
    winner = crowd[codes.index(0)]
    assert joined.lease_status(disk)["owners"][0]["pid"] == winner.pid
    winner.kill()
    wait_for("the release", lambda: lease_is_free(leases, disk), within=2)


def test_of_fifty_on_two_hosts_exactly_one_wins(
    two_hosts: tuple[VmHost, VmHost], lease_dir: Path, crowd: list[Child], disk: Path
) -> None:
    """A race that nobody else won either is a reason to try again, so each waits for its turn a little."""
    hosts = [two_hosts[number % 2] for number in range(50)]
    arguments = ["acquire", "--wait=1", "--pid"]
    codes = run_together(
        [(host, [*arguments, str(child.pid), str(disk)]) for host, child in zip(hosts, crowd)]
    )
    assert codes.count(0) == 1, codes
    assert set(codes) <= {0, BUSY, 124}, codes
    assert lease_owner(lease_dir, disk) == codes.index(0) % 2 + 1


def test_of_many_inits_at_once_one_area_comes_out(host_alone: VmHost, lease_dir: Path) -> None:
    codes = run_together([(host_alone, ["init-lockspace", str(lease_dir)]) for _ in range(20)])
    assert set(codes) <= {0, EXISTS}, codes
    assert 0 in codes
    assert os.listdir(lease_dir) == [LOCKSPACE_NAME], "a temporary file was left behind"
    expected = area.lockspace_area(DEFAULT_GEOMETRY, space_name=LOCKSPACE_NAME, io_timeout=10)
    assert lockspace_path(lease_dir).read_bytes() == expected


def test_of_many_first_hosts_at_once_one_creates_the_lockspace(tmp_path: Path, lease_dir: Path) -> None:
    """The loser may not format over the host that has just joined: it would lose its VMs."""
    hosts = [VmHost(tmp_path / f"host{number}", f"host{number}") for number in range(1, 11)]
    try:
        commands = [
            (host, ["init-lockspace", str(lease_dir), "--io-timeout", "1", "--host-id", str(number),
                    "--host-name", host.name])
            for number, host in enumerate(hosts, start=1)
        ]  # fmt: skip
        codes = run_together(commands)
        assert sorted(codes) == [0] + [EXISTS] * 9, codes
        winner = codes.index(0)
        joined = read_delta(lease_dir, winner + 1)
        assert (joined.resource, joined.owner_generation) == (hosts[winner].name, 1)
        wait_for(
            "a renewal of the winner",
            lambda: read_delta(lease_dir, winner + 1).timestamp > joined.timestamp,
            within=10,
        )
        records = [read_delta(lease_dir, number) for number in range(1, 11)]
        assert [record.owner_id for record in records].count(0) == 9
    finally:
        for host in hosts:
            host.close()


# -- a live lockspace -------------------------------------------------------------------------------


def test_init_over_a_live_lockspace_of_the_same_geometry(joined: VmHost, leases: Path) -> None:
    with Untouched(leases, 1):
        result = joined.call("init-lockspace", leases)
    assert result.returncode == 0, result
    assert str(leases) in result.stdout + result.stderr
    assert joined.generation == 1


@pytest.mark.parametrize("options", [["--sector-size", "4096", "--align", "8M"], ["--name", "another"]])
def test_init_over_a_live_lockspace_of_another_kind(joined: VmHost, leases: Path, options: list[str]) -> None:
    with Untouched(leases, 1):
        refused = joined.call("init-lockspace", leases, *options)
        if "--name" in options:
            assert refused.returncode in (0, EXISTS), refused
        else:
            assert_refused(refused, EXISTS, leases)


@pytest.mark.parametrize("who", ["member", "stranger"])
def test_force_over_a_live_lockspace(joined: VmHost, host_alone: VmHost, leases: Path, who: str) -> None:
    caller = joined if who == "member" else host_alone
    with Untouched(leases, 1):
        refused = caller.call("init-lockspace", leases, "--force", within=100)
    assert refused.returncode == PERMISSION, refused
    assert joined.name in refused.stderr, "it names the hosts that would lose their VMs"
    assert joined.generation == 1


# -- as JSON, and the command line itself -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["add-host", "DIR/missing", "--host-id", "1"], NO_SUCH),
        (["add-host", "DIR", "--host-id", "0"], USAGE),
        (["init-lockspace", "DIR", "--sector-size", "4096"], EXISTS),
        (["acquire", "--pid", "1", "/no/such/disk"], NO_SUCH),
        (["acquire", "--no-such-option"], USAGE),
        (["no-such-verb"], USAGE),
    ],
    ids=["missing directory", "host id 0", "exists", "missing disk", "option", "verb"],
)
@pytest.mark.parametrize("before", [True, False], ids=["before the verb", "after the verb"])
def test_an_error_as_json(
    joined: VmHost, leases: Path, arguments: list[str], exit_code: int, before: bool
) -> None:
    named = [word.replace("DIR", str(leases)) for word in arguments]
    with Untouched(leases, 1):
        result = joined.call(*(["--json", *named] if before else [*named, "--json"]))
    assert (result.returncode, result.stdout) == (exit_code, ""), result
    error = error_object(result)
    assert set(error) >= {"code", "message", "hint", "sanlk_rv", "details"}
    assert isinstance(error["code"], str)
    assert error["code"]
    assert error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "arguments",
    [["no-such-verb"], ["acquire", "--no-such-option"], ["acquire"], ["run", "--disk"], ["run"]],
    ids=" ".join,
)
def test_usage_errors_look_like_every_other_error(joined: VmHost, arguments: list[str]) -> None:
    assert_refused(joined.call(*arguments), USAGE)


@pytest.mark.parametrize("verb", ["init-lockspace", "add-host", "acquire", "run", "status", "dump-leases"])
def test_help_is_not_an_error(host_alone: VmHost, verb: str) -> None:
    result = host_alone.call(verb, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert verb in result.stdout


def test_a_closed_pipe_is_not_an_error(joined: VmHost, leases: Path) -> None:
    pipeline = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m vmlockctl dump-leases {leases} | head -1; exit $?"],
        env=joined.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert pipeline.returncode == 0
    assert pipeline.stderr == ""
    assert OUR_COMMAND[0] == sys.executable
    assert pipeline.stdout.count("\n") == 1


def test_a_damaged_area_leaves_the_size_alone(
    joined: VmHost, leases: Path, holder: Child, disk: Path
) -> None:
    """An acquire never extends a file: a short one stays short."""
    path = resource_path(leases, disk)
    path.write_bytes(new_resource(disk)[: AREA // 2])
    assert joined.acquire(holder.pid, disk).returncode == DATA
    assert path.stat().st_size == AREA // 2
