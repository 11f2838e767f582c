"""Block nodes of QEMU: trees of formats, filters and protocols, and which files at their feet are written.

A node has children: inline (``file: {...}``), or by the name of another node (``file: NAME``). What
decides whether a file is written is the way down to it from a node that no other node uses: it is
written if on any such way no node is read-only. A protocol node under a read-only format node is opened
for writing all the same, but nothing writes it. A backing file is read-only by default, but not if it
says otherwise, or if it is a node of its own that does not say so: QEMU takes the write lock of a qcow2
base that is not read-only.
"""

from __future__ import annotations

from vmlockctl.host.qemu_options import is_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Union

    Tree = dict[str, Union[str, "Tree"]]

# Options that hold a child; those of quorum stand in a list of their own.
CHILD_KEYS = frozenset(("file", "backing", "data-file", "image", "raw", "test", "log", "header"))
CHILD_LIST_KEYS = frozenset(("children", "extents"))
# Drivers whose image is no local file or device, or that have none at all: nothing that can be leased.
_NOT_LOCAL = (
    "fat vvfat null-aio null-co nbd rbd http https ftp ftps tftp ssh iscsi iser nvme gluster gluster+tcp"
    " gluster+unix gluster+rdma nfs sheepdog vxhs dmg+http nvme-io_uring virtio-blk-vfio-pci"
    " virtio-blk-vhost-user virtio-blk-vhost-vdpa archipelago"
)
NOT_LOCAL = frozenset(_NOT_LOCAL.split())
CDROM_DRIVER = "host_cdrom"
_PATH_PREFIXES = ("file:", "host_device:", "host_cdrom:")


def make_tree(pairs: Iterable[tuple[str, Any]]) -> Tree:
    """Nest options: ``file.filename=x`` and JSON's ``{"file": {"filename": "x"}}`` are one thing."""
    tree: Tree = {}
    for dotted, value in pairs:
        *parents, key = dotted.split(".")
        branch = tree
        for parent in parents:
            below = branch.get(parent)
            if not isinstance(below, dict):
                below = branch[parent] = {}
            branch = below
        branch[key] = _convert(value)
    return tree


def _convert(value: Any) -> Union[str, Tree]:
    if isinstance(value, dict):
        return make_tree(value.items())
    if isinstance(value, list):
        return make_tree((str(index), item) for index, item in enumerate(value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def parse_json(text: str) -> Tree:
    """Decode QEMU's JSON, which also takes strings in single quotes. Raises ``ValueError``."""
    import json

    try:
        found = json.loads(text)
    except ValueError as error:
        try:
            found = json.loads(_double_quoted(text))
        except ValueError:
            raise error from None
    if not isinstance(found, dict):
        raise TypeError("not an object")
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    return make_tree(found.items())


def _double_quoted(text: str) -> str:
    r"""Turn 'a "b" \'c\'' into "a \"b\" 'c'", and leave what stands in double quotes alone."""
    converted = []
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            character += next(characters, "")
            character = "'" if character == "\\'" else character
        elif quote and character == quote:
            quote, character = "", '"'
        elif not quote and character in "'\"":
            quote, character = character, '"'
        elif character == '"':
            character = '\\"'
        converted.append(character)
    return "".join(converted)


def parse_filename(filename: str) -> Tree:
    """Decode what QEMU takes where a file name is due: a path, ``PROTOCOL:...`` or ``json:{...}``.

    Empty for what is no local image. Raises ``ValueError`` for damaged JSON.
    """
    if filename.startswith("json:"):
        return parse_json(filename[len("json:") :])
    before_colon, colon, rest = filename.partition(":")
    if not colon or "/" in before_colon:
        return {"filename": filename} if filename else {}
    if f"{before_colon}:" in _PATH_PREFIXES:
        return {"driver": before_colon, "filename": rest}
    if before_colon == "blkdebug":  # blkdebug:CONFIG:IMAGE
        return {"driver": before_colon, "image": parse_filename(rest.partition(":")[2])}
    if before_colon == "blkverify":  # blkverify:RAW:IMAGE
        raw, _, image = rest.partition(":")
        return {"driver": before_colon, "raw": parse_filename(raw), "test": parse_filename(image)}
    return {}


def written_files(tree: Tree, named: Mapping[str, Tree], *, writable: bool) -> Iterator[tuple[str, bool]]:
    """Yield every local file under a node, and whether it may be written on this way to it."""
    driver = tree.get("driver")
    if driver in NOT_LOCAL:
        return
    writable = writable and not is_on(tree.get("read-only")) and driver != CDROM_DRIVER
    filename = tree.get("filename")
    if isinstance(filename, str) and filename:
        yield filename, writable
    for key, child in _children(tree):
        is_backing = key == "backing"
        if isinstance(child, dict):
            below_writable = "read-only" in child if is_backing else writable
            yield from written_files(child, named, writable=below_writable)
        elif child in named:
            others = {name: node for name, node in named.items() if name != child}  # no way is a ring
            yield from written_files(named[child], others, writable=writable or is_backing)


def named_nodes(trees: Iterable[Tree]) -> dict[str, Tree]:
    """Map node names to nodes, inline ones too."""
    named = {}
    for tree in trees:
        name = tree.get("node-name")
        if isinstance(name, str):
            named[name] = tree
        named.update(named_nodes(child for _, child in _children(tree) if isinstance(child, dict)))
    return named


def used_names(trees: Iterable[Tree]) -> set[str]:
    """Collect the names by which nodes refer to their children."""
    names: set[str] = set()
    for tree in trees:
        for _, child in _children(tree):
            if isinstance(child, str):
                names.add(child)
            else:
                names |= used_names([child])
    return names


def _children(tree: Tree) -> Iterator[tuple[str, Union[str, Tree]]]:
    for key, value in tree.items():
        if key in CHILD_KEYS:
            yield key, value
        elif key in CHILD_LIST_KEYS and isinstance(value, dict):
            yield from ((key, child) for child in value.values())
