"""The fixtures of the tests on real programs; loaded by ``tests/conftest.py``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fusefs import FaultyMount, faulty_mount
from tests.support.programs import Child, standing_process
from tests.support.qemu import QemuStarter
from tests.support.sanlockhost import SanlockHost
from tests.support.vmhost import VmHost

MakeHost = Callable[[str], VmHost]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Make hosts of ours by name; they end with the test."""
    with ExitStack() as hosts:

        def make(name: str) -> VmHost:
            host = VmHost(tmp_path / name, name)
            hosts.callback(host.close)
            return host

        yield make


@pytest.fixture
def lease_dir(tmp_path: Path) -> Path:
    """A path for a lease directory; ``init-lockspace`` creates it."""
    return tmp_path / "leases"


@pytest.fixture
def host_alone(make_host: MakeHost) -> VmHost:
    """A host that has joined nothing."""
    return make_host("alone")


@pytest.fixture
def host(make_host: MakeHost, lease_dir: Path) -> VmHost:
    """Host id 1 in a lockspace of its own."""
    host = make_host("hostA")
    host.create(lease_dir)
    return host


@pytest.fixture
def two_hosts(host: VmHost, make_host: MakeHost, lease_dir: Path) -> tuple[VmHost, VmHost]:
    """Host ids 1 and 2 in one lockspace."""
    other = make_host("hostB")
    other.join(lease_dir, 2)
    return host, other


@pytest.fixture
def two_alone(make_host: MakeHost) -> tuple[VmHost, VmHost]:
    """Two hosts that have joined nothing, for lockspaces that a test makes."""
    return make_host("hostA"), make_host("hostB")


@pytest.fixture
def sanlock_host(tmp_path: Path) -> Iterator[SanlockHost]:
    """A running sanlock daemon that has joined nothing."""
    host = SanlockHost(tmp_path / "sanlock", "sanlockhost")
    host.start()
    yield host
    host.close()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[QemuStarter]:
    """Start QEMUs; those that still run end with the test."""
    directory = tmp_path / "qemu"
    directory.mkdir()
    starter = QemuStarter(directory)
    yield starter
    starter.close()


@pytest.fixture
def holder() -> Iterator[Child]:
    """A process to hold leases for."""
    with standing_process() as child:
        yield child


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyMount]:
    """A file system that fails on request."""
    pytest.importorskip("mfusepy")
    if shutil.which("fusermount3") is None:
        pytest.skip("not installed: fusermount3")
    directory = tmp_path / "fuse"
    directory.mkdir()
    with faulty_mount(directory) as mount:
        yield mount
