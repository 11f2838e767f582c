"""What an operator pastes is recognised, also where its words mislead."""

from __future__ import annotations

import inspect
import re

import pytest

from vmlockctl import errors
from vmlockctl.cli.app import LAZY
from vmlockctl.cli.params import COMMANDS
from vmlockctl.ops import explain_advice
from vmlockctl.ops.explain_error import MESSAGES, commands_of, explain_error

# sanlock-format.md section 7, every number that a person can meet.
SANLOCK_NUMBERS = [
    -number
    for first, last in ((201, 203), (210, 214), (220, 231), (240, 247), (250, 251), (260, 262), (270, 278))
    for number in range(first, last + 1)
]
# The texts of sanlock_strerror, and the number each stands for (libvirt-and-qemu.md, appendix A).
TEXTS = {
    "IO timeout": -202,
    "Watchdog device error": -203,
    "Lease read error in dblock": -210,
    "Lease checksum error in dblock": -214,
    "Lease write error in leader": -221,
    "Lease read inconsistent": -222,
    "Lease does not exist on storage": -223,
    "Lease format version on storage is not recognized": -224,
    "Lease sector size is inconsistent": -225,
    "Lease lockspace name is incorrect": -226,
    "Lease resource name is incorrect": -227,
    "Lease num_hosts is incorrect": -228,
    "Lease checksum error in leader": -229,
    "Lease lockspace is not found": -241,
    "Lease lockspace disk cannot be opened": -242,
    "Lease is held by another host": -243,
    "Lease was acquired by another host in other ballot": -244,
    "Lease was acquired by another host in local commit": -245,
    "Lease is held by another host for shared acquire": -246,
    "Lease is owned by another host": -247,
    "Lease release version is incorrect": -250,
    "Lease release owner is incorrect": -251,
    "Lease renew owner is incorrect": -260,
    "Lease renew data has changed": -261,
    "Lease host ID is being used by another host": -262,
}


@pytest.mark.parametrize("number", SANLOCK_NUMBERS)
def test_every_number_of_sanlock(number: int) -> None:
    assert [number in found.message.numbers for found in explain_error(str(number))] == [True]
    assert [found.message for found in explain_error(f"error {number}")]


@pytest.mark.parametrize(("text", "number"), TEXTS.items())
def test_every_text_of_sanlock_as_virsh_shows_it(text: str, number: int) -> None:
    line = f"error: resource busy: Failed to acquire lock: {text}"
    assert [found.message for found in explain_error(line) if number in found.message.numbers]


@pytest.mark.parametrize(
    ("text", "number", "told"),
    [
        ("No space left on device", -28, "nothing to do with disk space"),
        ("File exists", -17, "this same host holds"),
        ("Message too long", -90, "cut short or empty"),
        ("Resource temporarily unavailable", -11, "other hosts hold the lease shared"),
    ],
)
def test_the_words_that_mislead(text: str, number: int, told: str) -> None:
    line = f"internal error: libvirt:  Lock Driver error : Failed to acquire lock: {text}"
    found = explain_error(line)[0].message
    assert told in found.meaning
    assert number in found.numbers
    assert explain_error(str(number))[0].message == found


def test_one_condition_inside_another() -> None:
    line = "Unable to add lockspace /leases/__LIBVIRT__DISKS__: Lease host ID is being used by another host"
    assert [found.message.name for found in explain_error(line)] == [
        "Unable to add lockspace",
        "SANLK_HOSTID_BUSY",
    ]


def test_qemu_names_the_image_in_its_second_line() -> None:
    text = 'qemu-kvm: Failed to get "write" lock\nIs another process using the image [/a b.img]?'
    found = explain_error(text)
    assert found[0].message.name == '"write" lock'
    assert commands_of(found[0])[0] == ("vmlockctl explain /a b.img",)


@pytest.mark.parametrize("text", ["rubbish", "", "12345678", "-9999", "0"])
def test_what_is_no_error(text: str) -> None:
    assert explain_error(text) == []


def test_names_and_exit_codes() -> None:
    assert explain_error("SANLK_HOSTID_BUSY")[0].message == explain_error("HOSTID_BUSY")[0].message
    assert explain_error("ENOSPC")[0].message.numbers == (-28,)
    for code in set(errors.EXIT_CODES) - {0, 1}:
        assert explain_error(str(code))[0].message.layer == "vmlockctl", code


def test_every_entry_is_whole() -> None:
    names = [message.name for message in MESSAGES]
    assert len(set(names)) == len(names)
    for message in MESSAGES:
        assert message.meaning
        assert message.causes, message.name
        assert message.numbers or message.patterns, message.name


def test_no_advice_names_a_command_that_does_not_exist() -> None:
    told = "\n".join(text for m in MESSAGES for text in (*m.look, *m.do, *m.dont))
    told += inspect.getsource(explain_advice)
    for name in re.findall(r"vmlockctl ([a-z]+(?:-[a-z]+)*)", told):
        assert name in {*LAZY, *COMMANDS}, name
