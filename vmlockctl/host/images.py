"""What a disk image is, and what it stands on: format and backing chain, told by qemu-img.

``qemu-img info -U`` takes no lock and is never evidence for a decision: only diagnosis reads it. Where there
is no qemu-img the chain is unknown, and the caller says so.
"""

from __future__ import annotations

import os
import subprocess

from vmlockctl.fastjson import loads
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

_SECONDS = 5.0


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
