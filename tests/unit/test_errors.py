"""The exit codes are an interface: this table changes only together with the manual and CHANGES."""

from __future__ import annotations

import inspect

import pytest

from vmlockctl import errors
from vmlockctl.errors import EXIT_CODES, OnDiskError, StorageError, VmlockctlError, join_names

# Class -> exit code, stable code, sanlock's number.
TABLE: dict[str, tuple[int, str, object]] = {
    "VmlockctlError": (70, "error", None),
    "UsageError": (64, "usage", None),
    "ConfigError": (78, "config", None),
    "OnDiskError": (65, "on-disk", None),
    "WrongMagic": (65, "wrong-magic", -223),
    "ClearedResource": (65, "cleared-resource", -223),
    "WrongVersion": (65, "wrong-version", -224),
    "WrongSectorSize": (65, "wrong-sector-size", -225),
    "WrongLockspaceName": (65, "wrong-lockspace-name", -226),
    "WrongResourceName": (65, "wrong-resource-name", -227),
    "WrongNumHosts": (65, "wrong-num-hosts", -228),
    "WrongChecksum": (65, "wrong-checksum", -229),
    "WrongGeometry": (65, "wrong-geometry", -230),
    "WrongRequestMagic": (65, "wrong-request-magic", -270),
    "WrongRequestVersion": (65, "wrong-request-version", -271),
    "WrongRindexMagic": (65, "wrong-rindex-magic", -274),
    "WrongRindexVersion": (65, "wrong-rindex-version", -275),
    "WrongRindexLockspace": (65, "wrong-rindex-lockspace", -276),
    "WrongRindexOffset": (65, "wrong-rindex-offset", -277),
    "WrongRindexEntry": (65, "wrong-rindex-entry", -278),
    "WrongDblock": (65, "wrong-dblock", -214),
    "WrongField": (65, "wrong-field", None),
    "TruncatedArea": (65, "truncated-area", -90),
    "ContentionError": (75, "busy", None),
    "LeaseHeld": (75, "lease-held", -243),
    "SharedLeaseHeld": (75, "lease-held-shared", -11),
    "HeldLocally": (75, "lease-held-locally", -17),
    "RaceLost": (75, "race-lost", -244),
    "RequestPending": (75, "request-pending", -273),
    "LverMoved": (75, "lver-moved", -240),
    "HostIdBusy": (75, "host-id-busy", -262),
    "GaveUpWaiting": (124, "gave-up-waiting", None),
    "StorageError": (74, "storage", None),
    "IoTimeout": (74, "io-timeout", -202),
    "NoDirectIo": (74, "no-direct-io", None),
    "NoSuchArea": (66, "no-such", -2),
    "StorageRefused": (77, "permission", -13),
    "CannotCreate": (73, "cannot-create", None),
    "SetupError": (69, "setup", None),
    "NotJoined": (69, "not-joined", -241),
    "DaemonNotRunning": (69, "daemon-not-running", None),
    "HostLeaseLost": (76, "host-lease-lost", -260),
    "LeaseLost": (76, "lease-lost", -251),
    "NotHeld": (66, "not-held", -2),
    "NoSuchDisk": (66, "no-such-disk", None),
    "Refused": (77, "refused", None),
    "ProcessError": (64, "process", None),
    "CommandNotFound": (127, "command-not-found", None),
    "CannotExecute": (126, "cannot-execute", None),
}

CONDITIONS = {
    name: condition
    for name, condition in inspect.getmembers(errors, inspect.isclass)
    if issubclass(condition, VmlockctlError)
}


def test_the_numbers_are_the_designs() -> None:
    assert sorted(EXIT_CODES) == [
        0, 1, 64, 65, 66, 69, 70, 73, 74, 75, 76, 77, 78, 124, 126, 127, 130,
    ]  # fmt: skip
    assert all(EXIT_CODES.values())


def test_no_condition_is_missing_here() -> None:
    assert set(CONDITIONS) - set(TABLE) == set()


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str) -> None:
    condition = CONDITIONS[name]
    assert (condition.exit_code, condition.code, condition.sanlk_rv) == TABLE[name]
    assert condition.exit_code in EXIT_CODES


def test_codes_are_unique() -> None:
    codes = [condition.code for condition in CONDITIONS.values()]
    assert len(set(codes)) == len(codes)


def test_the_bases_are_cut_by_what_to_do() -> None:
    assert issubclass(errors.IoTimeout, StorageError)
    assert issubclass(errors.SharedLeaseHeld, errors.LeaseHeld)
    assert issubclass(errors.LeaseHeld, errors.ContentionError)
    assert not issubclass(errors.HostLeaseLost, errors.ContentionError)
    assert not issubclass(errors.WrongDblock, StorageError)


def test_a_message_with_hint_and_details() -> None:
    error = VmlockctlError("what is wrong", hint="what to do", details={"a": 1})
    assert str(error) == error.message == "what is wrong"
    assert (error.hint, error.details) == ("what to do", {"a": 1})
    assert VmlockctlError.hint is None
    assert VmlockctlError("x").details == {}


def test_the_hint_of_a_class_stands_unless_it_is_replaced() -> None:
    assert errors.RaceLost("x").hint == errors.RaceLost.hint
    assert errors.RaceLost("x", hint="y").hint == "y"


def test_what_is_found_and_what_is_expected() -> None:
    assert OnDiskError("odd").message == "odd"
    assert OnDiskError("odd", found=0).message == "odd, found 0"
    assert OnDiskError("odd", expected="1").message == "odd, expected 1"
    error = OnDiskError("odd", found=3, expected=4)
    assert error.message == "odd, found 3, expected 4"
    assert error.details == {"found": 3, "expected": 4}
    assert error.at("/x", 512) is error
    assert str(error) == "/x:512: odd, found 3, expected 4"


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_join_names(names: list[str], text: str) -> None:
    assert join_names(names) == text
