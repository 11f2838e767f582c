"""The disks on a QEMU command line: what QEMU will open there, and whether it may write it.

Disks are given by ``-drive``, ``-blockdev``, ``-hda`` to ``-hdd``, ``-fda``, ``-fdb``, ``-cdrom``,
``-pflash``, ``-mtdblock``, ``-sd`` and as bare words. Facts of QEMU 7.2, each compared with the files
that the program opened. Where the command line leaves room, a disk is writable: that costs a conflict
at most, the other error costs the disk. Not looked into: ``-readconfig`` files, ``-set``, and backing
and data files that only the image itself names.

``qemu_options`` is the outer grammar, ``qemu_nodes`` what ``-blockdev`` and ``json:`` describe.
"""

from __future__ import annotations

from vmlockctl.errors import UsageError
from vmlockctl.host.qemu_nodes import (
    make_tree,
    named_nodes,
    parse_filename,
    parse_json,
    used_names,
    written_files,
)
from vmlockctl.host.qemu_options import Option, is_on, last_value, options, split_pairs
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Optional

    from vmlockctl.host.qemu_nodes import Tree

_FILE_OPTIONS = frozenset(("hda", "hdb", "hdc", "hdd", "fda", "fdb", "cdrom", "pflash", "mtdblock", "sd"))
_USERS = frozenset(("device", "machine", "M"))  # a node may serve one of these beside another node
_SYSTEM_PREFIXES = ("qemu-system-", ".qemu-system-")
_SYSTEM_NAMES = frozenset(("qemu-kvm", "kvm", "qemu"))


class QemuDisk(NamedTuple):
    path: str
    shared: bool
    source: str  # the option that names it, as it was written


def is_qemu(argv0: str) -> bool:
    """Tell a QEMU system emulator by the name of the program."""
    name = argv0.rpartition("/")[2]
    return name.startswith(_SYSTEM_PREFIXES) or name in _SYSTEM_NAMES


def find_disks(argv: Sequence[str]) -> list[QemuDisk]:
    """Find the disks that this command will open, in the order of the command line.

    The command may start QEMU through another (``numactl ... qemu-system-x86_64 ...``); of one that
    names no QEMU, a wrapper perhaps, only disk options count, not bare words.
    A disk that is named twice is writable if it is writable once. Raises ``UsageError``.
    """
    given = list(_options_of(argv))
    snapshot = any(option.name == "snapshot" for option in given)
    nodes = [(option, *_parse(option, snapshot=snapshot)) for option in given if _names_a_disk(option)]
    named = named_nodes(tree for _, tree, _ in nodes)
    used = used_names(tree for _, tree, _ in nodes)
    used -= {name for option in given if option.name in _USERS for name in _values(option.argument)}
    found: dict[str, QemuDisk] = {}
    for option, tree, writable in nodes:
        if option.name == "blockdev" and tree.get("node-name") in used:
            continue  # what is above it tells
        for path, written in written_files(tree, named, writable=writable):
            if path not in found or (written and found[path].shared):
                found[path] = QemuDisk(path, not written, option.text)
    return list(found.values())


def vm_name(argv: Sequence[str]) -> Optional[str]:
    """Find the guest's name: ``-name NAME`` or ``-name guest=NAME,...``."""
    name = None
    for option in _options_of(argv):
        if option.name == "name":
            name = last_value(split_pairs(option.argument, implied_key="guest"), "guest") or name
    return name


def vm_uuid(argv: Sequence[str]) -> Optional[str]:
    """Find the guest's UUID, as it was written."""
    found = None
    for option in _options_of(argv):
        if option.name == "uuid":
            found = option.argument or found
    return found


def _options_of(argv: Sequence[str]) -> Iterator[Option]:
    """Yield QEMU's options, wherever in the command QEMU begins."""
    start = _find_qemu(argv)
    for option in options(argv[1:start]):
        if option.name:
            yield option
    if start is not None:
        yield from options(argv[start + 1 :])


def _find_qemu(argv: Sequence[str]) -> Optional[int]:
    for index, word in enumerate(argv):
        # "kvm" and "qemu" are users and groups too, and then arguments of sudo.
        if is_qemu(word) and (index == 0 or word.rpartition("/")[2] not in ("kvm", "qemu")):
            return index
    return None


def _names_a_disk(option: Option) -> bool:
    return option.name in ("", "drive", "blockdev") or option.name in _FILE_OPTIONS


def _values(argument: str) -> list[str]:
    """List the values among which a device or a machine names its node; QEMU reports damage itself."""
    try:
        tree = _parse_blockdev(argument)
    except (ValueError, TypeError, RecursionError):
        return []
    return [value for value in tree.values() if isinstance(value, str)]


def _parse(option: Option, *, snapshot: bool) -> tuple[Tree, bool]:
    """Decode an option that names a disk into a block node, and whether it is opened for writing."""
    try:
        if option.name == "blockdev":
            return _parse_blockdev(option.argument), True
        if option.name == "drive":
            return _parse_drive(option.argument, snapshot=snapshot)
        return {"file": _image(option.argument)}, option.name != "cdrom" and not snapshot
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{option.text}: not valid JSON, {error}") from error


def _image(filename: str) -> Tree:
    """Decode the file name of a drive; the drive overrules what ``json:`` says about read-only."""
    tree = parse_filename(filename)
    tree.pop("read-only", None)
    return tree


def _parse_blockdev(argument: str) -> Tree:
    if argument.startswith("{"):
        return parse_json(argument)
    return make_tree(split_pairs(argument, implied_key="driver"))


def _parse_drive(argument: str, *, snapshot: bool) -> tuple[Tree, bool]:
    """Decode ``-drive``: options of a node, and ``file`` is a file name in QEMU's wide sense.

    With ``snapshot=on`` the guest writes into a temporary file, and the image is only read.
    """
    pairs = split_pairs(argument)
    # Of several, the first "readonly" counts and the last "read-only": believe them when they agree.
    read_only = [is_on(value) for key, value in pairs if key in ("readonly", "read-only")]
    given = {key: value for key, value in pairs if key not in ("readonly", "read-only")}
    filename = given.pop("file", "")
    if "format" in given:
        given["driver"] = given.pop("format")
    tree = make_tree(given.items())
    if filename:
        below = tree.get("file")
        tree["file"] = {**_image(filename), **(below if isinstance(below, dict) else {})}
    only_read = given.get("media") == "cdrom" or is_on(given.get("snapshot", "on" if snapshot else "off"))
    return tree, not (only_read or (read_only and all(read_only)))
