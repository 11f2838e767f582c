"""The file system that a disk lies on, as the mount table names it: who keeps its locks depends on it."""

from __future__ import annotations

import os

from vmlockctl.host.process import read_proc
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class Filesystem(NamedTuple):
    type: str  # as the kernel calls it: ext4, nfs4, fuse.sshfs
    source: str  # the device, or SERVER:/EXPORT
    point: str  # where it is mounted

    @property
    def server(self) -> str:
        """The name of an NFS or SMB server; an IPv6 address without its brackets."""
        if self.source.startswith("//"):
            return self.source[2:].partition("/")[0]
        return self.source.rpartition(":/")[0].strip("[]")


def filesystem_of(path: str) -> Optional[Filesystem]:
    """The mount through which this path is seen; None where it cannot be told."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = read_proc(f"/proc/self/fdinfo/{descriptor}")
    finally:
        os.close(descriptor)
    mount_id = next(line.split()[1] for line in info.splitlines() if line.startswith(b"mnt_id:"))
    return parse_mount(read_proc("/proc/self/mountinfo"), mount_id)


def parse_mount(table: bytes, mount_id: bytes) -> Optional[Filesystem]:
    """``36 35 98:0 /root /mount/point options [optional ...] - fstype source super-options``."""
    for line in table.splitlines():
        fields = line.split(b" ")
        if fields[0] == mount_id:
            fstype, source = fields[fields.index(b"-") + 1 :][:2]
            return Filesystem(_text(fstype), _text(source), _text(fields[4]))
    return None


def _text(field: bytes) -> str:
    r"""A space is ``\040`` there."""
    return os.fsdecode(field.decode("unicode_escape").encode("latin-1"))
