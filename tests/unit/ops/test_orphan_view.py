"""Who an owner note speaks of: exactly one process of one boot, and nobody that has its number now."""

from __future__ import annotations

import os
from typing import Any

import pytest

from vmlockctl.host.process import boot_id, identify
from vmlockctl.ops.orphans import view
from vmlockctl.ops.orphans.view import noted_process, was_noted_here, was_noted_in_another_boot
from vmlockctl.ops.status import EXCLUSIVE, Lease

LEASE = Lease("0" * 32, "/leases/" + "0" * 32, 0, None, EXCLUSIVE, 1, [], None, [])


def noted(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    process = identify(os.getpid())
    assert process is not None
    note = {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id, **fields}
    monkeypatch.setattr(view, "owner_note", lambda _lease: note)


def test_the_process_of_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    noted(monkeypatch)
    found = noted_process(LEASE)
    assert found is not None
    assert found.pid == os.getpid()
    assert was_noted_here(LEASE)
    assert not was_noted_in_another_boot(LEASE)


@pytest.mark.parametrize(
    "other", [{"start_time": 1}, {"boot_id": "another"}, {"pid": 0}, {"pid": 1 << 40}, {"pid": None}]
)
def test_another_process(monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]) -> None:
    noted(monkeypatch, **other)
    assert noted_process(LEASE) is None
    assert was_noted_in_another_boot(LEASE) == ("boot_id" in other)


def test_a_process_that_is_hidden_may_be_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(_pid: int) -> None:
        raise PermissionError

    noted(monkeypatch)
    monkeypatch.setattr(view, "identify", hidden)
    assert noted_process(LEASE) is not None


def test_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "owner_note", lambda _lease: {})
    assert noted_process(LEASE) is None
    assert not was_noted_here(LEASE)
    assert not was_noted_in_another_boot(LEASE), "nobody says so"
    assert boot_id()
