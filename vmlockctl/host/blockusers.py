"""Who uses a disk below or beside any process: loop devices, device-mapper holders, mounts in any namespace.

The kernel holds these open, so no /proc/PID/fd shows them. A loop device is matched by the identity of its
backing file as the kernel states it, not by its path, which may be of another namespace or of a deleted file.
"""

from __future__ import annotations

import fcntl
import os
import struct

from vmlockctl.host.openers import Identity
from vmlockctl.host.process import comm, read_proc
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional

_LOOP_GET_STATUS64 = 0x4C05
# struct loop_info64: u64 lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit; u32 ..., lo_flags
_LOOP_INFO = struct.Struct("=5Q 4I")
_LOOP_INFO_SIZE = 232
_LOOP_READ_ONLY = 0x1


class BlockUse(NamedTuple):
    """One use of a disk by the kernel. ``device`` is a number (``os.makedev``) that may have users itself."""

    kind: str  # loop, holder or mount
    name: str  # /dev/loop0, dm-3, or the mount point
    device: int
    writable: bool
    namespace_pid: int = 0  # a process of the mount namespace where a mount is seen, if it is not ours
    namespace_comm: str = ""


def block_users(identity: Identity, *, sys: str = "/sys", proc: str = "/proc") -> list[BlockUse]:
    """Every loop device, holder and mount over a disk, and over those in turn."""
    found: list[BlockUse] = []
    if identity.kind == "file":
        found += loops_on(identity, sys=sys)
    else:
        found += _users_of_device(identity.dev, sys)
    done: set[int] = set()
    devices = [use.device for use in found]
    if identity.kind == "block":
        devices.append(identity.dev)
    while devices:
        device = devices.pop()
        if device in done:
            continue
        done.add(device)
        more = [use for use in _users_of_device(device, sys) if use not in found]
        found += more
        devices += [use.device for use in more]
    found += mounts_of(done, proc=proc)
    return found


def loops_on(identity: Identity, *, sys: str = "/sys") -> Iterator[BlockUse]:
    """Loop devices whose backing file is this one."""
    for name in _entries(f"{sys}/block"):
        if not name.startswith("loop") or not os.path.exists(f"{sys}/block/{name}/loop"):
            continue
        info = _loop_info(f"/dev/{name}")
        if info is None:
            matches = _same_file(f"{sys}/block/{name}/loop/backing_file", identity)
            writable = _read(f"{sys}/block/{name}/ro") == "0"
        else:
            matches = (info[0], info[1]) == (_kernel_device(identity.dev), identity.ino)
            writable = not info[2] & _LOOP_READ_ONLY
        if matches:
            yield BlockUse("loop", f"/dev/{name}", _device_number(f"{sys}/block/{name}/dev"), writable)


def _loop_info(device: str) -> Optional[tuple[int, int, int]]:
    """Device number and inode of the backing file, and the flags; None where we may not ask."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_SIZE))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    fields = _LOOP_INFO.unpack_from(answer)
    return fields[0], fields[1], fields[8]


def _kernel_device(dev: int) -> int:
    """A device number as the kernel's own structures have it (new_encode_dev)."""
    major, minor = os.major(dev), os.minor(dev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _same_file(name_file: str, identity: Identity) -> bool:
    try:
        return Identity.of_path(_read(name_file)) == identity
    except OSError:
        return False


def _users_of_device(device: int, sys: str) -> list[BlockUse]:
    """What the kernel stacks on a block device: device mapper, md, its partitions' holders, loop on it."""
    base = f"{sys}/dev/block/{os.major(device)}:{os.minor(device)}"
    found = []
    for name in _entries(f"{base}/holders"):
        number = _device_number(f"{sys}/class/block/{name}/dev")
        label = _read(f"{sys}/class/block/{name}/dm/name")
        shown = f"/dev/mapper/{label}" if label else f"/dev/{name}"
        found.append(BlockUse("holder", shown, number, _read(f"{sys}/class/block/{name}/ro") == "0"))
    for name in _entries(base):
        if os.path.exists(f"{base}/{name}/partition"):
            number = _device_number(f"{base}/{name}/dev")
            found += _users_of_device(number, sys)
    return found


def mounts_of(devices: set[int], *, proc: str = "/proc") -> list[BlockUse]:
    """Mounts of these devices, in our mount namespace and in every other one that we may look into."""
    if not devices:
        return []
    found: list[BlockUse] = []
    seen: set[str] = set()
    ours = _namespace(f"{proc}/self")
    for name in ["self", *sorted(filter(str.isdecimal, os.listdir(proc)), key=int)]:
        namespace = _namespace(f"{proc}/{name}")
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        pid = 0 if namespace == ours else int(name)
        for device, point, writable in _mounted(f"{proc}/{name}/mountinfo"):
            if device in devices:
                found.append(BlockUse("mount", point, device, writable, pid, comm(pid) if pid else ""))
    return found


def _namespace(directory: str) -> Optional[str]:
    try:
        return os.readlink(f"{directory}/ns/mnt")
    except OSError:
        return None


def _mounted(table: str) -> Iterator[tuple[int, str, bool]]:
    """(device number, mount point, writable) of each mount; octal escapes of the kernel undone."""
    try:
        lines = read_proc(table).splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(b" ")
        major, minor = fields[2].split(b":")
        point = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
        yield os.makedev(int(major), int(minor)), point, b"rw" in fields[5].split(b",")


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def _device_number(path: str) -> int:
    major, _, minor = _read(path).partition(":")
    return os.makedev(int(major), int(minor)) if major and minor else 0
