"""The stage of the fault tests: a host behind a faulty mount, with a disk and a process that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.faults.stage import Stage, make_stage
from tests.support.fusefs import FaultyMount
from tests.support.qemu import make_disk
from tests.support.vmhost import VmHost


@pytest.fixture
def stage(faulty: FaultyMount, host_alone: VmHost) -> Stage:
    return make_stage(faulty, host_alone)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")
