"""Whether the disk of a lease is gone, or merely out of this host's sight.

A lease directory outlives the disks, and every host sees it; the file system with the images may not be
mounted here, a logical volume not be active, a directory be another host's own. Only a disk whose place was
looked at is gone.
"""

from __future__ import annotations

import os

from vmlockctl.errors import StorageError
from vmlockctl.host.mounts import unmounted_above
from vmlockctl.records import NamedTuple
from vmlockctl.storage.patience import patiently

THERE, GONE, OUT_OF_SIGHT = "there", "gone", "out of sight"


class Sight(NamedTuple):
    state: str
    evidence: str


def look_for(disk: str) -> Sight:
    """Look for a disk by its path; one whose storage does not answer is out of sight."""
    try:
        return patiently(disk, lambda: _look_for(disk))
    except (StorageError, ValueError) as error:
        return Sight(OUT_OF_SIGHT, f"{disk} cannot be looked at: {error}")


def _look_for(disk: str) -> Sight:
    try:
        os.stat(disk)
        return Sight(THERE, f"{disk} is there")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return Sight(OUT_OF_SIGHT, f"{disk} cannot be looked at: {error.strerror}")
    try:
        return _look_around(disk)
    except OSError as error:
        return Sight(OUT_OF_SIGHT, f"{disk} is not there, and its directory cannot be read: {error.strerror}")


def _look_around(disk: str) -> Sight:
    """Tell "gone" from "not to be seen from here" by what is around it."""
    directory = os.path.dirname(disk)
    if not os.path.isabs(disk):
        return Sight(OUT_OF_SIGHT, f"{disk} is no absolute path, so nobody can look for it")
    if os.path.islink(disk):
        target = os.readlink(disk)
        return Sight(OUT_OF_SIGHT, f"{disk} is a link to {target}, which is not there: it may not be mounted")
    if disk.startswith("/dev/"):
        text = f"{disk} is not there: a device may be detached from this host, or not active on it"
        return Sight(OUT_OF_SIGHT, text)
    unmounted = unmounted_above(disk)
    if unmounted is not None:
        return Sight(OUT_OF_SIGHT, f"{disk} is not there, but {unmounted} of /etc/fstab is not mounted")
    if not os.path.isdir(directory):
        text = f"{disk} is not there, and neither is {directory}: its file system may not be mounted here"
        return Sight(OUT_OF_SIGHT, text)
    others = len(os.listdir(directory))
    if not others and not os.path.ismount(directory):
        text = f"{disk} is not there, but {directory} is empty, as it is where a file system is not mounted"
        return Sight(OUT_OF_SIGHT, text)
    return Sight(GONE, f"{disk} is not there; its directory is, with {others} other entries")
