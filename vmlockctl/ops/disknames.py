"""Which disk a lease named by an MD5 stands for, by every source that may know it.

A lease file is named by the MD5 of its disk's path, which nothing turns back (libvirt-and-qemu.md, pain 22).
Our own claim says it outright; the owner note and every other source is a guess that the digest proves:
the disks of libvirt's domains, the command lines of running QEMUs, and directories of images.
"""

from __future__ import annotations

import os

from vmlockctl.host.libvirt import domains
from vmlockctl.host.qemus import running_qemus
from vmlockctl.records import NamedTuple
from vmlockctl.specs import is_resource_name, resource_name
from vmlockctl.storage.patience import names_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Optional


class DiskName(NamedTuple):
    path: str
    source: str  # who knows it, in words


def noted_disk(note: Mapping[str, Any], resource: str) -> Optional[str]:
    """The disk that an owner note tells, if the lease is that disk's: a note is no evidence by itself."""
    disk = note.get("disk")
    return disk if isinstance(disk, str) and resource_name(disk) == resource else None


class DiskNames:
    """Disks by resource name. A source is asked only when the ones before it did not know, and asked once."""

    def __init__(self, image_directories: Sequence[str] = ()) -> None:
        self._known: dict[str, DiskName] = {}
        self._sources: list[Callable[[], Iterator[DiskName]]] = [_of_libvirt, _of_qemus]
        if image_directories:
            self._sources.append(lambda: _of_directories(image_directories))

    def find(self, resource: str) -> Optional[DiskName]:
        """The disk of a resource; None where no source knows it, or its name is no digest of a path."""
        if not is_resource_name(resource):
            return None
        while resource not in self._known and self._sources:
            for found in self._sources.pop(0)():
                for path in names_of(found.path):
                    self._known.setdefault(resource_name(path), DiskName(path, found.source))
        return self._known.get(resource)


def _of_libvirt() -> Iterator[DiskName]:
    for domain in domains():
        paths = [*(disk.path for disk in domain.disks), *domain.backing]
        yield from (DiskName(path, f"libvirt domain {domain.name}") for path in paths)


def _of_qemus() -> Iterator[DiskName]:
    for qemu in running_qemus():
        yield from (DiskName(disk.path, f"QEMU process {qemu.pid}") for disk in qemu.disks)


def _of_directories(directories: Sequence[str]) -> Iterator[DiskName]:
    for directory in directories:
        given = os.path.join(os.getcwd(), directory)
        for parent, _, names in os.walk(given):
            yield from (DiskName(os.path.join(parent, name), f"a file in {given}") for name in names)
