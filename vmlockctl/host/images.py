"""What a disk image is, and what it stands on: format and backing chain, told by qemu-img.

``qemu-img info -U`` takes no lock and is never evidence for a decision: only diagnosis reads it. Where there
is no qemu-img the chain is unknown, and the caller says so. Who stands on an image nothing but the other
images can tell: the header of a qcow2 file names what it stands on.

    OFFSET  SIZE  of a qcow2 header, big endian
         0     4  magic "QFI" 0xfb
         8     8  where the name of the backing file is; 0: it has none
        16     4  the length of that name, at most 1023
"""

from __future__ import annotations

import os
import stat
import subprocess

from vmlockctl.fastjson import loads
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Optional

_SECONDS = 5.0
_QCOW2_MAGIC = b"QFI\xfb"
_MAX_NAME_BYTES = 1023


class Image(NamedTuple):
    path: str
    format: str
    backing: Optional[str]  # absolute; None at the end of the chain


class Chain(NamedTuple):
    """``images`` from the disk down; ``problem`` says why it is not known, or not to its end."""

    images: tuple[Image, ...]
    problem: str = ""

    @property
    def below(self) -> tuple[str, ...]:
        """The images that this disk stands on."""
        return tuple(image.path for image in self.images[1:])


def backing_chain(path: str) -> Chain:
    """The image and everything below it. Never raises: what cannot be told is in ``problem``."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "--", path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        return Chain((), "qemu-img is not installed")
    except subprocess.TimeoutExpired:
        return Chain((), f"qemu-img gave no answer within {_SECONDS:g} s")
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return Chain((), lines[-1] if lines else f"qemu-img ended with {done.returncode}")
    return Chain(tuple(_image(entry) for entry in loads(done.stdout.decode("utf-8", "surrogateescape"))))


def _image(entry: dict[str, Any]) -> Image:
    path = str(entry.get("filename", ""))
    backing = entry.get("full-backing-filename") or entry.get("backing-filename")
    if isinstance(backing, str) and not backing.startswith(("/", "json:")) and ":" not in backing:
        backing = os.path.join(os.path.dirname(path), backing)
    return Image(path, str(entry.get("format", "")), str(backing) if backing else None)


def overlays_of(names: Iterable[str], candidates: Iterable[str]) -> list[str]:
    """The candidates, and the files beside the image, that have it as their backing file.

    ``names`` are the paths of the image. What cannot be read is passed over.
    """
    wanted = frozenset(names)
    paths = [*candidates]
    for directory in dict.fromkeys(os.path.dirname(name) for name in wanted):
        try:
            with os.scandir(directory) as entries:
                paths += sorted(entry.path for entry in entries if entry.is_file())
        except OSError:
            continue
    return [path for path in dict.fromkeys(paths) if path not in wanted and _stands_on(path, wanted)]


def _stands_on(path: str, wanted: frozenset[str]) -> bool:
    try:
        below = backing_file(path)
    except OSError:
        return False
    return below is not None and (below in wanted or os.path.realpath(below) in wanted)


def backing_file(path: str) -> Optional[str]:
    """What the header of a qcow2 image names; None for another format. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        header = os.pread(descriptor, 20, 0)
        offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
        if not header.startswith(_QCOW2_MAGIC) or not offset or not 0 < length <= _MAX_NAME_BYTES:
            return None
        name = os.fsdecode(os.pread(descriptor, length, offset & (2**63 - 1)))
    finally:
        os.close(descriptor)
    return os.path.join(os.path.dirname(path), name.removeprefix("file:"))
