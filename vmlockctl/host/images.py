"""What a disk image is, what it stands on, and what stands on it, told by the headers of images.

Only diagnosis reads this, never a decision. Of raw and qcow2 the headers tell enough, other
formats are left to ``qemu-img info -U``. Who stands on an image nothing but the other images can tell.

    OFFSET  SIZE  of a qcow2 header, big endian
         0     4  magic "QFI" 0xfb
         4     4  version: 1 is qcow, an older format
         8     8  where the name of the backing file is; 0: it has none
        16     4  the length of that name, at most 1023
"""

from __future__ import annotations

import os
import stat

from vmlockctl.fastjson import loads
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Optional

RAW, QCOW2 = "raw", "qcow2"

_SECONDS = 4.0
_HEADER_BYTES = 512
_QCOW2_MAGIC = b"QFI\xfb"
_MAX_NAME_BYTES = 1023
# Where the formats that QEMU recognises say what they are; whatever says nothing is raw.
_OTHER_MAGICS = (
    (0, b"KDMV"),
    (0, b"COWD"),
    (0, b"# Disk DescriptorFile"),
    (0, b"conectix"),
    (0, b"vhdxfile"),
    (0, b"QED\0"),
    (0, b"LUKS\xba\xbe"),
    (0, b"WithoutFreeSpace"),
    (0, b"WithouFreSpacExt"),
    (0, b"Bochs Virtual HD Image"),
    (64, b"\x7f\x10\xda\xbe"),  # vdi
)


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


def backing_chain(path: str, read: Optional[Callable[[str], Optional[Image]]] = None) -> Chain:
    """The image and everything below it. Never raises: what cannot be told is in ``problem``.

    ``read``: ``read_image``, or another way to it.
    """
    read = read or read_image
    images: list[Image] = []
    below: Optional[str] = path
    while below is not None:
        if any(image.path == below for image in images):
            return Chain(tuple(images), f"{below} stands on itself")
        try:
            image = read(below)
        except OSError as error:
            return Chain(tuple(images), f"{below}: {error.strerror}")
        if image is None:
            return _told_by_qemu_img(path)
        images.append(image)
        below = image.backing
    return Chain(tuple(images))


def read_image(path: str) -> Optional[Image]:
    """An image by its header; None for a format that is not understood here. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        header = os.pread(descriptor, _HEADER_BYTES, 0) if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else b""
        if any(header[offset : offset + len(magic)] == magic for offset, magic in _OTHER_MAGICS):
            return None
        if not header.startswith(_QCOW2_MAGIC) or len(header) < 20:
            return Image(path, RAW, None)
        version, offset, length = (int.from_bytes(header[a:b], "big") for a, b in ((4, 8), (8, 16), (16, 20)))
        if version < 2 or length > _MAX_NAME_BYTES or offset >> 63:
            return None
        name = os.fsdecode(os.pread(descriptor, length, offset)) if offset else ""
    finally:
        os.close(descriptor)
    return Image(path, QCOW2, _beside(path, name) if name else None)


def _beside(path: str, name: str) -> str:
    """A backing file as a path: relative names begin at the image, others ("nbd:...") stay as they are."""
    name = name.removeprefix("file:")
    return name if ":" in name.split("/")[0] else os.path.join(os.path.dirname(path), name)


def _told_by_qemu_img(path: str) -> Chain:
    import subprocess  # takes longer to load than all of the above

    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "--", path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        return Chain((), "neither raw nor qcow2, and qemu-img is not installed")
    except subprocess.TimeoutExpired:
        return Chain((), f"qemu-img gave no answer within {_SECONDS:g} s")
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return Chain((), lines[-1] if lines else f"qemu-img ended with {done.returncode}")
    return Chain(tuple(_image(entry) for entry in loads(done.stdout.decode("utf-8", "surrogateescape"))))


def _image(entry: dict[str, Any]) -> Image:
    path = str(entry.get("filename", ""))
    backing = entry.get("full-backing-filename") or entry.get("backing-filename")
    return Image(path, str(entry.get("format", "")), _beside(path, str(backing)) if backing else None)


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
        image = read_image(path)
    except OSError:
        return False
    below = image.backing if image is not None else None
    return below is not None and (below in wanted or os.path.realpath(below) in wanted)
