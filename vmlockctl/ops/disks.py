"""A disk and its names: every one of them is a hole if it has no lease (faults.md finding 8).

The resource is named by the path as given, as libvirt does it. When the canonical form of that path
differs, its lease is taken too: symlinks resolved; for a block device a stable name under /dev/disk
or /dev/mapper. A name that means another disk after a reboot, and a file with several hard links, are
refused.
"""

from __future__ import annotations

import os
import stat

from vmlockctl.errors import NoSuchDisk, Refused
from vmlockctl.host.openers import Identity
from vmlockctl.records import NamedTuple
from vmlockctl.storage.patience import patiently
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# The first that exists wins, so that every host chooses the same name for one device.
_STABLE_DIRECTORIES = ("/dev/disk/by-id", "/dev/disk/by-path", "/dev/mapper")
_STABLE_PREFIXES = ("wwn-", "dm-uuid-", "nvme-", "scsi-", "ata-", "virtio-")


class Disk(NamedTuple):
    """A disk as it is asked for: ``names`` are the paths whose leases protect it, the given one first."""

    path: str
    names: tuple[str, ...]
    identity: Identity
    shared: bool


def find_disk(path: str, *, shared: bool, allow_alias: bool = False) -> Disk:
    """Look a disk up. Raises ``NoSuchDisk``, ``Refused``, ``IoTimeout``."""
    given = os.path.join(os.getcwd(), path)
    return patiently(given, lambda: _find_disk(given, shared=shared, allow_alias=allow_alias))


def _find_disk(given: str, *, shared: bool, allow_alias: bool) -> Disk:
    try:
        found = os.stat(given)
    except OSError as error:
        raise NoSuchDisk(f"{safe(given)}: no such disk: {error.strerror}", details={"disk": given}) from None
    if stat.S_ISREG(found.st_mode):
        if found.st_nlink > 1 and not allow_alias:
            raise Refused(
                f"{safe(given)}: the disk has {found.st_nlink} hard links: names that no lease covers",
                hint="remove the other links, or say --allow-alias if nobody uses them",
                details={"disk": given, "links": found.st_nlink},
            )
        canonical: Optional[str] = os.path.realpath(given)
    elif stat.S_ISBLK(found.st_mode):
        canonical = _stable_name(os.path.realpath(given))
        if canonical is None and not allow_alias:
            raise Refused(
                f"{safe(given)}: the device has no stable name under /dev/disk, so after a reboot this name "
                "may be another disk",
                hint="say --allow-alias if you are certain of the name",
                details={"disk": given},
            )
    else:
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "neither a file nor a block device"
        raise NoSuchDisk(f"{safe(given)}: not a disk, found {kind}", details={"disk": given})
    names = (given,) if canonical in (None, given) else (given, str(canonical))
    return Disk(given, names, Identity.of_stat(found), shared)


def _stable_name(device: str) -> Optional[str]:
    """The name of a block device that every host and every boot gives it; None if it has none."""
    for directory in _STABLE_DIRECTORIES:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        links = [n for n in names if os.path.realpath(os.path.join(directory, n)) == device]
        if links:
            return os.path.join(directory, min(links, key=_preference))
    return None


def _preference(name: str) -> tuple[int, str]:
    for rank, prefix in enumerate(_STABLE_PREFIXES):
        if name.startswith(prefix):
            return rank, name
    return len(_STABLE_PREFIXES), name
