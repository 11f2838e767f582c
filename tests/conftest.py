"""What every test run needs: the marker `real`, and no silent skip where the run says so.

With VMLOCKCTL_REQUIRE_REAL=1 (as .ci/run has it) a missing program is a failure, and so is every other
skip: a proof that did not run is not a proof.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest

from tests.support.programs import SBIN

REQUIRE_REAL = os.environ.get("VMLOCKCTL_REQUIRE_REAL") == "1"
REAL_PROGRAMS = ("sanlock", "qemu-system-x86_64", "qemu-img")

pytest_plugins = ["tests.support.fixtures"]


def missing_programs(programs: tuple[str, ...]) -> list[str]:
    path = os.environ.get("PATH", os.defpath) + os.pathsep + SBIN
    return [program for program in programs if shutil.which(program, path=path) is None]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `real`, or `real("sanlock")` for one program, where that is not installed."""
    for marker in item.iter_markers("real"):
        missing = missing_programs(marker.args or REAL_PROGRAMS)
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")


def fail_if_skipped(report: Any) -> None:
    if not REQUIRE_REAL or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"VMLOCKCTL_REQUIRE_REAL=1 allows no skip, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    fail_if_skipped(report)
    return report
