"""Who has a disk open on this machine, asked by identity and not by name.

A disk is found again under any name, after a rename, and after it was deleted: a file is its file
system's device number and its inode, a block device is its device number. /proc/PID/fd answers for
every process, but following one of its links asks the file system, and a dead NFS server never answers.
So each look is as cheap and as harmless as it can be:

1. ``readlink`` of the descriptor, which no file system sees: sockets, pipes and the like end here;
2. /proc/PID/fdinfo, which no file system sees either: the open mode, the mount and the inode number
   (Linux 5.14). Almost every descriptor of another file ends here;
3. the mount table says which device that mount is;
4. only where it cannot (btrfs and overlayfs have device numbers of their own, a lazily unmounted file
   system is in no table, kernels before 5.14 give no inode) or for what may be a block device (a path
   with ``/dev/`` in it) the link is followed.

Not seen: a mapping whose descriptor was closed, what the kernel itself holds open (loop devices), and a
thread with a descriptor table of its own beside a living main thread.
"""

from __future__ import annotations

import os
import stat

from vmlockctl.fastjson import dumps, loads
from vmlockctl.host.process import live_threads, parse_stat, read_proc, read_stat
from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterator
    from typing import Optional

# Link texts that can be no disk; only an absolute path can (not "socket:[1]", "anon_inode:[eventfd]").
_NEVER_A_DISK = (
    "/memfd:",
    "/dev/null",
    "/dev/zero",
    "/dev/pts/",
    "/dev/tty",
    "/dev/random",
    "/dev/urandom",
    "/dev/kvm",
    "/dev/net/",
    "/dev/vhost",
    "/dev/fuse",
    "/proc/",
    "/sys/",
)
# Their files' device numbers are not those of the mount.
_OWN_DEVICE_NUMBERS = (b"btrfs", b"overlay", b"bcachefs", b"aufs", b"unionfs")
_ACCESS_MODE = os.O_WRONLY | os.O_RDWR
_WRITING_MODES = (os.O_WRONLY, os.O_RDWR)
_LINKS_OF_ONE_THREAD = 3  # "." and ".." and the thread
_ROUNDS = 3
_CHUNK = 16  # processes that are looked into at a time, where two share the work


class Identity(NamedTuple):
    kind: str  # "file" or "block"
    dev: int  # of the file system; of a block device its own
    ino: int  # 0 for a block device

    @classmethod
    def of_stat(cls, found: os.stat_result) -> Identity:
        """Name the disk behind a stat result; every node of a block device is that device."""
        if stat.S_ISBLK(found.st_mode):
            return cls("block", found.st_rdev, 0)
        return cls("file", found.st_dev, found.st_ino)

    @classmethod
    def of_path(cls, path: str) -> Identity:
        """Name the disk behind a path, symbolic links followed. Raises ``OSError``."""
        return cls.of_stat(os.stat(path))


class Opener(NamedTuple):
    pid: int
    start_time: int  # clock ticks after boot
    comm: str
    writable: bool  # any of its descriptors


class OpenersFound(NamedTuple):
    openers: dict[Identity, list[Opener]]  # only disks that somebody has open
    unreadable: int  # processes that we may not look into, so they may be openers too


def find_openers(
    identities: Collection[Identity], *, skip: Container[int] = (), proc: str = "/proc"
) -> OpenersFound:
    """Find every process that has one of these disks open, except the pids in ``skip``.

    Looks again at what was started meanwhile: a descriptor may pass from a process that is about to end
    to its child.
    """
    scan = _Scan(identities, proc)
    scan.look_into_all(set(), skip)
    return OpenersFound(scan.openers, scan.unreadable)


class Search:
    """``find_openers`` for one disk: a forked process begins at once, and the caller helps it when it can.

    The forked process is also the first to touch the disk: storage that hangs keeps it, not the caller.
    For callers that have started no thread yet. Neither of the two processes is found.
    """

    def __init__(self, path: str) -> None:
        self._identity: Optional[Identity] = None
        self._has_ended = False
        self._pids = [name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
        count = min(len(self._pids) // _CHUNK + 1, 255)
        self._chunks = [self._pids[number::count] for number in range(count)]
        # Whoever is free takes the next byte, which is the number of a chunk.
        self._queue, filler = os.pipe()
        os.write(filler, bytes(range(count)))
        os.close(filler)
        answer, theirs = os.pipe()
        self._helper = os.fork()
        if self._helper == 0:
            try:
                self._help(path, theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        self._answer = open(answer, "rb")  # noqa: SIM115 - it is read in parts

    def _help(self, path: str, theirs: int) -> None:
        # Whoever reads what the caller prints does not wait for us.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        with open(theirs, "wb") as file:
            identity = _disk_at(path)
            file.write(dumps(identity).encode() + b"\n")
            file.flush()
            if identity is not None:
                scan = self._take_part(identity)
                found = [[*opener] for opener in scan.openers.get(identity, [])]
                file.write(dumps([scan.unreadable, found]).encode())

    def _take_part(self, identity: Identity) -> _Scan:
        scan = _Scan([identity], "/proc")
        while number := os.read(self._queue, 1):
            for name in self._chunks[number[0]]:
                scan.look_into(name)
        return scan

    def answers(self, within_seconds: float) -> bool:
        """Whether the disk, or the path of none, was looked at; False where the storage does not answer."""
        import select

        if not select.select([self._answer], [], [], within_seconds)[0]:
            return False
        line = self._answer.readline()
        self._identity = Identity(*found) if line and (found := loads(line.decode())) else None
        return True

    def is_for(self, identity: Identity) -> bool:
        """Whether it is this disk that is searched for."""
        return self._identity == identity

    def result(self) -> OpenersFound:
        """Everything that is found; to be asked once. Where the helper does not tell, we look ourselves."""
        assert self._identity is not None
        identity = self._identity
        scan = self._take_part(identity)
        answer = self._answer.read()
        os.waitpid(self._helper, 0)
        self._has_ended = True
        try:
            unreadable, found = loads(answer.decode())
        except ValueError:
            return find_openers([identity], skip={os.getpid()})
        scan.unreadable += unreadable
        scan.openers.setdefault(identity, []).extend(Opener(*opener) for opener in found)
        scan.look_into_all(set(self._pids), {os.getpid(), self._helper})
        return OpenersFound({identity: sorted(scan.openers[identity])}, scan.unreadable)

    def close(self) -> None:
        """End the helper, whatever it does; one that hangs ends when the kernel lets it."""
        if not self._has_ended:
            import signal

            os.kill(self._helper, signal.SIGKILL)
            os.waitpid(self._helper, os.WNOHANG)
        os.close(self._queue)
        self._answer.close()


def _disk_at(path: str) -> Optional[Identity]:
    """The disk at a path that can be open, looked at so that attributes kept from before are no answer."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            return None
    except (OSError, ValueError):
        return None
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        pass
    return Identity.of_stat(found)


def has_writer(path: str) -> Optional[bool]:
    """Whether anybody at all has a file open for writing, as the kernel knows; None where it does not tell.

    A read lease (fcntl(2)) is granted only while nobody has. It is given back at once; it needs the file's
    owner or root, and a local file system.
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


class _Scan:
    """One search; its mount tables are read at most once per process, and only if an inode matches."""

    def __init__(self, identities: Collection[Identity], proc: str) -> None:
        self.openers: dict[Identity, list[Opener]] = {}
        self.unreadable = 0
        self._proc = proc
        self._wanted = frozenset(identities)
        self._wanted_inodes = {b"%d" % disk.ino for disk in self._wanted if disk.kind == "file"}
        self._wants_block = any(disk.kind == "block" for disk in self._wanted)
        self._mounts: dict[bytes, int] = {}
        self._mounts_read: set[str] = set()

    def look_into_all(self, seen: set[str], skip: Container[int]) -> None:
        """Look into every process, and into those that were started meanwhile; not those ``seen`` before."""
        for _ in range(_ROUNDS):
            pids = [name for name in os.listdir(self._proc) if name.isdecimal() and name not in seen]
            if not pids:
                break
            seen.update(pids)
            for name in pids:
                if int(name) not in skip:
                    self.look_into(name)

    def look_into(self, pid: str) -> None:
        """Note what this process has open; one that vanishes meanwhile has nothing open."""
        try:
            found = self._disks_of(f"{self._proc}/{pid}")
        except PermissionError:
            if self._may_hold_files(int(pid)):
                self.unreadable += 1
            return
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            return
        if not found:
            return
        try:
            about = parse_stat(read_proc(f"{self._proc}/{pid}/stat"))
        except FileNotFoundError:
            return
        for disk, writable in found.items():
            opener = Opener(int(pid), about.start_time, about.comm, writable)
            self.openers.setdefault(disk, []).append(opener)

    def _disks_of(self, directory: str) -> dict[Identity, bool]:
        """Map each wanted disk that the process has open to whether it may write it."""
        names = os.listdir(f"{directory}/fd")
        if names:
            return self._disks_in(directory, names)
        # A kernel thread, a zombie, or a process whose main thread has ended: then its other threads,
        # which the link count of their directory betrays, still have its files.
        if os.stat(f"{directory}/task").st_nlink > _LINKS_OF_ONE_THREAD:
            for thread in live_threads(int(directory.rpartition("/")[2]))[:1]:
                thread_directory = f"{directory}/task/{thread}"
                return self._disks_in(thread_directory, os.listdir(f"{thread_directory}/fd"))
        return {}

    def _disks_in(self, directory: str, names: list[str]) -> dict[Identity, bool]:
        found: dict[Identity, bool] = {}
        links = f"{directory}/fd/"
        for name, target in _targets(links, names):
            if target[0] != "/" or target.startswith(_NEVER_A_DISK):
                continue
            try:
                opened = self._opened_disk(directory, name, target)
            except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
                continue
            except PermissionError:
                raise
            except OSError:  # a file system that can no longer tell (ESTALE, EIO): it may be a wanted disk
                self.unreadable += 1
                continue
            if opened is not None:
                disk, writable = opened
                found[disk] = found.get(disk, False) or writable
        return found

    def _opened_disk(self, directory: str, name: str, target: str) -> Optional[tuple[Identity, bool]]:
        """Tell which wanted disk a descriptor is, if any, and whether it may write."""
        info = _read_start(f"{directory}/fdinfo/{name}")
        _, has_ino, rest = info.partition(b"\nino:\t")
        ino = rest[: rest.index(b"\n")] if has_ino else None  # none before Linux 5.14
        may_be_block = self._wants_block and "/dev/" in target
        may_be_file = ino in self._wanted_inodes if has_ino else bool(self._wanted_inodes)
        if not (may_be_block or may_be_file):
            return None
        fields = dict(line.split(b":\t", 1) for line in info.split(b"\n", 3)[:3])
        flags = int(fields[b"flags"], 8)
        if flags & os.O_PATH:  # a name, not an open file
            return None
        disk = self._identify(f"{directory}/fd/{name}", ino, None if may_be_block else fields[b"mnt_id"])
        return (disk, flags & _ACCESS_MODE in _WRITING_MODES) if disk in self._wanted else None

    def _identify(self, link: str, ino: Optional[bytes], mount_id: Optional[bytes]) -> Optional[Identity]:
        """Name an open file, following its link only if inode and mount do not tell; None if unwanted."""
        if mount_id is not None:
            device = self._mounted_device(link.rpartition("/fd/")[0], mount_id)
            if device is not None and ino is not None:
                return Identity("file", device, int(ino))
            if device is not None and all(device != wanted.dev for wanted in self._wanted):
                return None
        return Identity.of_stat(os.stat(link))

    def _mounted_device(self, directory: str, mount_id: bytes) -> Optional[int]:
        """Tell the device number of a mount, or None where only the file itself can tell.

        Mount ids are unique on a machine, but a table shows only the mounts of one mount namespace.
        """
        for table in (f"{self._proc}/self/mountinfo", f"{directory}/mountinfo"):
            if mount_id not in self._mounts and table not in self._mounts_read:
                self._mounts_read.add(table)
                self._mounts.update(_parse_mountinfo(read_proc(table)))
        return self._mounts.get(mount_id)

    def _may_hold_files(self, pid: int) -> bool:
        """Tell whether a process that we may not look into can have a file open at all."""
        try:
            about = read_stat(pid)
        except PermissionError:
            return True
        return about is not None and not about.is_kernel_thread and not about.is_zombie


def _targets(links: str, names: list[str]) -> list[tuple[str, str]]:
    """What each link says, without those that are gone meanwhile."""
    try:
        return list(zip(names, map(os.readlink, [links + name for name in names])))
    except (FileNotFoundError, ProcessLookupError):
        return [(name, target) for name in names for target in _target(links + name)]


def _target(link: str) -> list[str]:
    try:
        return [os.readlink(link)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read_start(path: str) -> bytes:
    """Read the start of a /proc file, with one call; the lines that we need are the first ones."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 512)
    finally:
        os.close(descriptor)


def _parse_mountinfo(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield mount id and device number, where the files of the mount have that device number.

    ``36 35 98:0 /root /mount/point options [optional ...] - fstype source super-options``
    """
    for line in content.splitlines():
        fields = line.split(b" ")
        fstype = fields[fields.index(b"-") + 1]
        if not fstype.startswith(_OWN_DEVICE_NUMBERS):
            major, minor = fields[2].split(b":")
            yield fields[0], os.makedev(int(major), int(minor))
