"""A disk as a person names it, and every other path of it that can be found."""

from __future__ import annotations

import os
import stat

from vmlockctl.errors import IoTimeout
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.openers import Identity
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, is_resource_name
from vmlockctl.storage.patience import is_there, patiently

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

NO_ANSWER = "its storage does not answer"
_ALIAS_PARENTS = ("/dev/disk", "/dev/mapper")


class Disk(NamedTuple):
    """A disk that is to be explained. ``found`` None: it is not there; ``missing`` says why."""

    path: str
    names: tuple[str, ...]  # every path of it that is known, the given one first
    found: Optional[os.stat_result]
    missing: str

    @property
    def is_silent(self) -> bool:
        return self.missing == NO_ANSWER

    @property
    def identity(self) -> Optional[Identity]:
        return Identity.of_stat(self.found) if self.found is not None else None

    @property
    def may_be_locked(self) -> bool:
        return self.found is not None and not stat.S_ISDIR(self.found.st_mode)

    def is_at(self, path: Optional[str]) -> bool:
        """Whether a path means this disk."""
        if path is None or path in self.names:
            return path is not None
        try:
            return self.found is not None and patiently(path, lambda: Identity.of_path(path)) == self.identity
        except (OSError, ValueError, IoTimeout):
            return False

    def is_disk_of(self, domain: Domain) -> bool:
        return any(self.is_at(disk.path) for disk in domain.disks)

    def is_below(self, domain: Domain) -> bool:
        return any(self.is_at(path) for path in domain.backing)


def look_at(path: str) -> Disk:
    """The disk at a path, whether it is there or not."""
    try:
        return patiently(path, lambda: _look_at(path))
    except IoTimeout:
        return Disk(path, (path,), None, NO_ANSWER)


def _look_at(path: str) -> Disk:
    try:
        found, missing = os.stat(path), ""
    except (OSError, ValueError) as error:
        return Disk(path, (path,), None, getattr(error, "strerror", None) or "not there")
    names = [path, os.path.realpath(path)]
    if stat.S_ISBLK(found.st_mode):
        names += _aliases(found.st_rdev)
    elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        names += _links(names[1], found)
    return Disk(path, tuple(dict.fromkeys(names)), found, missing)


def _aliases(device: int) -> Iterator[str]:
    """Other names of a block device under /dev."""
    for parent in _ALIAS_PARENTS:
        for directory, _, entries in os.walk(parent):
            for entry in sorted(entries):
                path = os.path.join(directory, entry)
                try:
                    found = os.stat(path)
                except OSError:
                    continue
                if stat.S_ISBLK(found.st_mode) and found.st_rdev == device:
                    yield path


def _links(path: str, found: os.stat_result) -> Iterator[str]:
    """The hard links of a file in its own directory."""
    try:
        with os.scandir(os.path.dirname(path)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.inode() == found.st_ino and entry.stat(follow_symlinks=False).st_dev == found.st_dev:
                    yield entry.path
    except OSError:
        return


def is_lease_file(path: str) -> bool:
    """Whether a path is that of a lease in a lease directory, as far as its name tells."""
    directory, name = os.path.split(path)
    return is_resource_name(name) and is_there(os.path.join(directory, LIBVIRT_LOCKSPACE))
