"""Records of the run directory that are not as they were written: as good as none, never an internal error.

One bad claim must not keep the daemon from stopping the processes of the others, and a bad table of the other
hosts must not end a renewal.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vmlockctl.daemon.claims import Claim, ClaimStore
from vmlockctl.daemon.hoststate import LIVE, HostState, LockspaceDir, Membership
from vmlockctl.daemon.memberships import Memberships
from vmlockctl.errors import NotJoined
from vmlockctl.host.openers import Identity
from vmlockctl.host.process import Process, boot_id
from vmlockctl.host.rundir import RunDir
from vmlockctl.lease.liveness import Observation

MEMBER = Membership("/leases/__LIBVIRT__DISKS__", 0, "__LIBVIRT__DISKS__", 2, "hostB", 10, "/leases")
RECORD = "10" * 200
STATE = HostState(MEMBER, LIVE, 3, 512, 1 << 20, RECORD, (RECORD,), 17.5, "boot", "slow")
PROCESS = Process(4711, 12345, "boot")
CLAIM = Claim(
    "good", "/leases/good", 0, "/images/a.img", Identity("file", 1, 2), "exclusive", "held", 2, 3, 1,
    (PROCESS,), PROCESS, "guest", "", 1.5,
)  # fmt: skip
ROWS = {
    1: Observation(1, 7, 990, "hostA", 10, 4000, 5000.5, 5000.5),
    # What was found on the disk counts as it was found: a table is not dropped for it.
    2: Observation(2, 2**64 - 1, 0, "\x1b[2J\udcff", 0, 4000.0, 5000.5, 0),
    2000: Observation(7, 0, 1, "", 2**16 - 1, 1, 3, 2),
}


def change(path: str, /, **fields: Any) -> None:
    """Put fields into a JSON file; ``...`` takes one out."""
    record = {**json.loads(Path(path).read_text()), **fields}
    kept = {key: value for key, value in record.items() if value is not ...}
    Path(path).write_text(json.dumps(kept))


@pytest.fixture
def directory(tmp_path: Path) -> LockspaceDir:
    directory = LockspaceDir(str(tmp_path / "ls")).create()
    directory.write_state(STATE)
    directory.write_observations(ROWS)
    return directory


@pytest.fixture
def store(tmp_path: Path) -> ClaimStore:
    (tmp_path / "claims").mkdir()
    store = ClaimStore(str(tmp_path / "claims"))
    for resource in ("bad", "good"):
        store.write(CLAIM._replace(resource=resource))
    return store


def test_what_was_written_is_read(directory: LockspaceDir, store: ClaimStore) -> None:
    assert directory.read_state() == STATE
    assert directory.read_observations() == ROWS
    assert store.all() == [CLAIM._replace(resource="bad"), CLAIM]


@pytest.mark.parametrize("state", ["acquiring", "held", "converting", "releasing"])
@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_claims_of_every_kind_are_read(store: ClaimStore, mode: str, state: str) -> None:
    claim = CLAIM._replace(mode=mode, state=state, identity=None, command=None, processes=(PROCESS, PROCESS))
    store.write(claim)
    assert store.read("good") == claim


def test_a_state_before_the_first_record_is_read(directory: LockspaceDir) -> None:
    joining = STATE._replace(record="", attempts=(), state="joining", generation=0)
    directory.write_state(joining)
    assert directory.read_state() == joining


@pytest.mark.parametrize(
    "fields",
    [
        {"path": ...}, {"generation": ...}, {"path": 7}, {"path": "a\0b"}, {"path": "\ud800"},
        {"host_id": "2"}, {"host_id": True}, {"host_id": -1}, {"renewed_at": "now"}, {"renewed_at": None},
        {"renewed_at": float("inf")}, {"renewed_at": float("nan")}, {"record": "xyz"}, {"record": "10"},
        {"attempts": None}, {"attempts": [1]}, {"attempts": ["10"]}, {"sector_size": 513}, {"align_size": []},
        {"state": "asleep"}, {"boot_id": None}, {"lease_dir": 5}, {"io_timeout": 0}, {"io_timeout": 2**40},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_state_is_none(directory: LockspaceDir, fields: dict[str, Any]) -> None:
    change(os.path.join(directory.path, "host.json"), **fields)
    assert directory.read_state() is None
    with pytest.raises(NotJoined):
        directory.require_live()


@pytest.mark.parametrize(
    "hosts",
    [..., None, [], "x", {"a": [1] * 8}, {"1": None}, {"1": [1, 7]}, {"1": [1, 7, 990, 5, 10, 1, 1, 1]},
     {"1": [1, 7, 990, "hostA", 10, "x", 1, 1]}, {"0": [1, 7, 990, "hostA", 10, 1, 1, 1]},
     # Seen to change, or seen at all, after the last look: that will never be long ago.
     {"1": [1, 7, 990, "hostA", 10, 4000, 5000, 2**31]}, {"1": [1, 7, 990, "hostA", 10, 5001, 5000, 0]}],
    ids=str,
)  # fmt: skip
def test_damaged_observations_are_none(directory: LockspaceDir, hosts: Any) -> None:
    change(os.path.join(directory.path, "hosts.json"), hosts=hosts, boot_id=boot_id())
    assert directory.read_observations() == {}


@pytest.mark.parametrize(
    "until",
    [..., None, [], {"a": 1e9}, {"0": 1e9}, {"2001": 1e9}, {"1": "x"}, {"1": [1]}, {"²": 1e9}],
    ids=str,
)
def test_damaged_bits_are_none(directory: LockspaceDir, until: Any) -> None:
    directory.set_bit(7, 1000)
    assert directory.bits() == [7]
    change(os.path.join(directory.path, "bits.json"), until=until)
    assert directory.bits() == []
    directory.set_bit(8, 1000)
    assert directory.bits() == [8]


@pytest.mark.parametrize(
    "fields",
    [
        {"resource": ...}, {"resource": "../good"}, {"resource": "good"}, {"processes": None},
        {"processes": [None]}, {"processes": [{"pid": 1}]}, {"command": []}, {"identity": [1]},
        {"command": {"pid": 2**31, "start_time": 1, "boot_id": "b"}},
        {"processes": [{"pid": [], "start_time": 1, "boot_id": "b"}]},
        {"processes": [{"pid": 0, "start_time": 1, "boot_id": "b"}]},
        {"disk": None}, {"lver": "1"}, {"acquired_at": "x"}, {"mode": "some"}, {"state": ""}, {"vm": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_claim_does_not_hide_the_others(store: ClaimStore, fields: dict[str, Any]) -> None:
    change(store.file("bad"), **fields)
    assert store.all() == [CLAIM]
    assert store.read("bad") is None


@pytest.mark.parametrize("fields", [{"path": ...}, {"path": None}, {"name": 5}, {"io_timeout": 0}], ids=str)
def test_a_damaged_membership_does_not_hide_the_others(tmp_path: Path, fields: dict[str, Any]) -> None:
    memberships = Memberships(RunDir(str(tmp_path)))
    bad, good = MEMBER._replace(path="/other"), MEMBER
    memberships.add(bad)
    [name] = os.listdir(memberships.path)
    memberships.add(good)
    change(os.path.join(memberships.path, name), **fields)
    assert memberships.all() == [good]
