"""What check-orphans says on one host, about the disks of one test: a machine has the VMs of others, too."""

from __future__ import annotations

import json
import os
from typing import Any, Optional

from tests.support.vmhost import VmHost


def report(host: VmHost, *options: str, environment: Optional[dict[str, str]] = None) -> dict[str, Any]:
    """The whole answer; the exit status says whether there is anything worse than an info."""
    prefix = ["env", *(f"{name}={value}" for name, value in (environment or {}).items())]
    result = host.call("check-orphans", "--json", *options, prefix=prefix)
    answer: dict[str, Any] = json.loads(result.stdout)
    if not answer["fixed"]:
        problems = [finding for finding in answer["findings"] if finding["severity"] != "info"]
        assert result.returncode == (1 if problems else 0), result
    return answer


def findings(
    host: VmHost, disk: os.PathLike[str], *options: str, environment: Optional[dict[str, str]] = None
) -> list[dict[str, Any]]:
    """What is found about one disk; each finding tells what was seen, the risk, and what to do."""
    found = [f for f in report(host, *options, environment=environment)["findings"] if f["disk"] == str(disk)]
    for finding in found:
        assert finding["evidence"] and finding["risk"] and finding["command"] and finding["advice"], finding
    return found


def kinds(host: VmHost, disk: os.PathLike[str], *options: str) -> list[str]:
    return sorted(finding["kind"] for finding in findings(host, disk, *options))


def fixed(host: VmHost, *options: str) -> list[dict[str, Any]]:
    """What was done, with --yes."""
    done: list[dict[str, Any]] = report(host, *options, "--yes")["fixed"]
    return done
