"""The outer grammar of a QEMU command line: options, their arguments, and what stands inside those.

An option takes exactly one argument or none, and only a table tells which: in ``-append -hda`` the
second word is the kernel's command line. The tables are facts of QEMU 7.2, each option tried on the
program; options that only other versions have are from their documentation.
"""

from __future__ import annotations

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Optional

_WITHOUT_ARGUMENT = (
    "S async-teardown audio-help daemonize enable-kvm enable-sync-profile full-screen h help"
    " mem-prealloc no-acpi no-fd-bootchk no-hpet no-reboot no-shutdown no-user-config nodefaults"
    " nographic old-param only-migratable portrait preconfig s semihosting singlestep snapshot usb"
    " version win2k-hack xen-attach xen-domid-restrict"
    # of older and newer versions
    " alt-grab ctrl-grab curses enable-fips enable-hax jitdump localtime no-frame no-kvm no-kvm-irqchip"
    " no-kvm-pit no-kvm-pit-reinjection no-quit nodefconfig nouserconfig one-insn-per-tb perfmap"
    " rtc-td-hack sdl show-cursor tdf xen-create"
)
_WITH_ARGUMENT = (
    "D L M accel acpitable action add-fd append audio audiodev bios blockdev boot cdrom chardev chroot"
    " compat cpu d debugcon device dfilter display drive dtb dump-vmstate echr fda fdb fsdev fw_cfg g"
    " gdb global hda hdb hdc hdd icount incoming initrd iscsi k kernel loadvm m machine mem-path mon"
    " monitor msg mtdblock name net netdev nic numa object option-rom overcommit parallel pflash pidfile"
    " plugin prom-env qmp qmp-pretty qtest qtest-log readconfig rotate rtc runas sandbox sd seed"
    " semihosting-config serial set smbios smp spice tpmdev trace usbdevice uuid vga virtfs vnc"
    " watchdog-action xen-domid"
    # of older and newer versions
    " balloon bt clock kvm-shadow-memory realtime run-with soundhw startdate tb-size watchdog"
    " writeconfig"
)
WITHOUT_ARGUMENT = frozenset(_WITHOUT_ARGUMENT.split())
WITH_ARGUMENT = frozenset(_WITH_ARGUMENT.split())

_TRUE = frozenset(("on", "yes", "true", "y"))


class Option(NamedTuple):
    name: str  # without dashes; empty for a bare word, which QEMU takes for a disk image
    argument: str
    text: str  # as it was written


def options(words: Sequence[str]) -> Iterator[Option]:
    """Yield the options of a command line, its program name left out."""
    index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else None
        index += 1
        if not word.startswith("-"):
            yield Option("", word, word)
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if following is not None and _takes_argument(name, following):
            index += 1
            yield Option(name, following, f"{word} {following}")
        else:
            yield Option(name, "", word)


def _takes_argument(name: str, following: str) -> bool:
    if name in WITH_ARGUMENT or name in WITHOUT_ARGUMENT:
        return name in WITH_ARGUMENT
    # An option of another version: rather see a disk too many than one too few.
    return not following.startswith("-")


def split_pairs(text: str, *, implied_key: str = "") -> list[tuple[str, str]]:
    """Split ``key=value,key=value``, where ``,,`` in a value is a comma.

    A first word without ``=`` is the value of ``implied_key``; any other is a switch: ``readonly`` is
    ``readonly=on``, ``noreadonly`` is ``readonly=off``.
    """
    pairs: list[tuple[str, str]] = []
    while text:
        comma, equals = text.find(","), text.find("=")
        if equals >= 0 and (comma < 0 or equals < comma):
            key = text[:equals]
            value, text = _take_value(text[equals + 1 :])
        elif implied_key and not pairs:
            key = implied_key
            value, text = _take_value(text)
        else:
            key, _, text = text.partition(",")
            value = "on"
            if key.startswith("no"):
                key, value = key[2:], "off"
        pairs.append((key, value))
    return pairs


def _take_value(text: str) -> tuple[str, str]:
    """Take a value up to the first single comma; return it and what follows."""
    value = ""
    while True:
        before, comma, text = text.partition(",")
        value += before
        if not comma or not text.startswith(","):
            return value, text
        value, text = value + ",", text[1:]


def is_on(value: object) -> bool:
    """Decode a boolean of a command line or of JSON; in doubt it is off, for a disk is then writable."""
    return value is True or (isinstance(value, str) and value in _TRUE)


def last_value(pairs: list[tuple[str, str]], key: str) -> Optional[str]:
    """Find a value by its key; of several, QEMU takes the last."""
    return dict(pairs).get(key)
