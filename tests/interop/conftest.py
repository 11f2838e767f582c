"""One host of ours beside one real sanlock, for all tests of this package: it takes seconds to join."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pair import Pair, make_pair
from tests.support.qemu import make_disk


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with make_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "a.img")


@pytest.fixture
def their_disk(pair: Pair, disk: Path) -> Path:
    """A disk whose lease sanlock made."""
    pair.format_their_lease(disk)
    return disk
