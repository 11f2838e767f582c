"""Where the self-test is played: two hosts, their disks and VMs, and nothing of the user's own set-up.

Everything is in a new sub-directory of DIR (the lockspace and the disks) and in a private temporary
directory (two run directories, which are two hosts). Whatever ends the test, its VMs and daemons are seen
to be gone before these are removed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from vmlockctl import clock
from vmlockctl.daemon.claims import ClaimStore
from vmlockctl.daemon.control import daemon_pid
from vmlockctl.daemon.hoststate import LockspaceDir
from vmlockctl.errors import (
    EXIT_OK,
    CannotExecute,
    IoTimeout,
    NoDirectIo,
    NoSuchArea,
    OnDiskError,
    StorageError,
    StorageRefused,
    UsageError,
    VmlockctlError,
    storage_error,
)
from vmlockctl.host.children import (
    Child,
    Interrupts,
    kill_all_of,
    processes_of,
    terminate,
    version_of,
)
from vmlockctl.host.openers import Identity
from vmlockctl.host.rundir import RunDir
from vmlockctl.host.spawn import own_command
from vmlockctl.ops.dump_leases import dump
from vmlockctl.ops.status import EXCLUSIVE, FREE_MODE, lease_of
from vmlockctl.records import NamedTuple
from vmlockctl.specs import LIBVIRT_LOCKSPACE, resource_name
from vmlockctl.storage.device import open_direct
from vmlockctl.storage.worker import Worker
from vmlockctl.text import format_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Optional, TypeVar

    T = TypeVar("T")

QEMU, STAND_IN = "qemu", "stand-in"

_PREFIX = "vmlockctl-selftest."
_IO_TIMEOUT = 1
_DISK_BYTES = 4 << 20
_STOP_SECONDS = 5.0
_COMMAND_SECONDS = 60.0
_STORAGE_SECONDS = 10.0
_SETTLE_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.01

# What each QEMU must be told to have a machine that a virtio disk fits in.
_MACHINES: dict[str, tuple[str, ...]] = {
    "x86_64": (),
    "i386": (),
    "aarch64": ("-machine", "virt"),
    "arm": ("-machine", "virt"),
    "ppc64": (),
    "riscv64": ("-machine", "virt"),
    "s390x": (),
}
_QEMU_OPTIONS = ("-display", "none", "-S", "-nodefaults", "-monitor", "none", "-serial", "none")
# Does to a disk what matters of a VM: it has it open for writing until it is stopped.
_STAND_IN_CODE = "import os, signal, sys; os.open(sys.argv[1], os.O_RDWR); signal.pause()"


class Tool(NamedTuple):
    """What plays the VM."""

    name: str
    program: str
    version: str
    options: tuple[str, ...] = ()

    def command(self, disk: str) -> list[str]:
        """The end of a ``run`` command line that opens ``disk``."""
        if self.name == STAND_IN:
            return ["--disk", disk, "--", self.program, "-I", "-S", "-c", _STAND_IN_CODE, disk]
        drive = f"file={disk.replace(',', ',,')},format=raw,if=virtio"
        return ["--", self.program, *self.options, *_QEMU_OPTIONS, "-drive", drive]


class Host(NamedTuple):
    label: str
    name: str
    host_id: int


HOST_A = Host("A", "host-a.selftest", 1)
HOST_B = Host("B", "host-b.selftest", 2)
HOSTS = (HOST_A, HOST_B)


def find_tool() -> Tool:
    """Real QEMU where it is installed, this machine's own first; otherwise a stand-in."""
    machines = sorted(_MACHINES, key=lambda machine: machine != os.uname().machine)
    candidates = [(f"qemu-system-{machine}", _MACHINES[machine]) for machine in machines]
    for name, options in [*candidates, ("qemu-kvm", ()), ("/usr/libexec/qemu-kvm", ())]:
        program = shutil.which(name)
        version = version_of(program) if program is not None and _is_binary(program) else None
        if program is not None and version is not None:
            return Tool(QEMU, program, version, options)
    return Tool(STAND_IN, sys.executable, f"Python {sys.version.split()[0]}")


def _is_binary(program: str) -> bool:
    """A script may be a wrapper that takes real leases, with ``vmlockctl run`` or otherwise."""
    try:
        with open(program, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


class Stage:
    """The directories, the two hosts, and every process that was started for them."""

    def __init__(self, interrupts: Interrupts, tool: Tool) -> None:
        self.tool = tool
        self.work = ""
        self._private = ""
        self._interrupts = interrupts
        self._children: list[Child] = []
        self._started = 0

    def open(self, directory: Optional[str]) -> str:
        """Make the directories; return the one that the sub-directory is in."""
        temporary = _temporary_directory()
        with self._interrupts.held():
            self._private = _make_directory(temporary)
            self.work = _choose_directory(directory, temporary)
        return os.path.dirname(self.work)

    def join(self) -> None:
        """Host A joins the new lockspace wait-free, then host B as any host would."""
        common = ("--io-timeout", str(_IO_TIMEOUT))
        for verb, host, options in (
            ("init-lockspace", HOST_A, ("--mode", "0600", *_owner_options())),
            ("add-host", HOST_B, ()),
        ):
            named = ("--host-id", str(host.host_id), "--host-name", host.name)
            self._command(host, verb, self._leases, *common, *named, *options)

    def close(self) -> None:
        """End the VMs, then the daemons; remove the files only when nobody can use them any more."""
        if not self._private:
            return
        survivors = [child.pid for child in self._children if not child.end()]
        for host in () if survivors else HOSTS:
            self._leave(host)
        survivors += kill_all_of([self._run_dir(host) for host in HOSTS])
        if survivors:
            left = [path for path in (self.work, self._private) if path]
            raise StorageError(
                f"{' and '.join(left)}: left there, because process {survivors[0]} survives SIGKILL",
                hint="it is stuck in the kernel: look at the storage, and remove them when it is gone",
                details={"pids": survivors, "paths": left},
            )
        try:
            if self.work:
                _in_time(self.work, "remove", lambda: _remove(self.work))
        finally:
            shutil.rmtree(self._private, ignore_errors=True)

    def make_disk(self, name: str) -> tuple[str, Identity]:
        path = os.path.join(self.work, name)

        def make() -> Identity:
            try:
                _make_sparse(path)
                return Identity.of_path(path)
            except OSError as error:
                raise storage_error(error, path, "cannot create") from None

        return path, _in_time(path, "create", make)

    def start_vm(self, host: Host, vm: str, disk: str) -> Child:
        options = ("--json", "-L", self._leases, "run", "--vm", vm, *self.tool.command(disk))
        return self._start(host, *options)

    def end(self, child: Child) -> None:
        """Stop a child; one that survives is left to ``close``, which reports it."""
        with self._interrupts.held():
            if child.end(grace_seconds=_STOP_SECONDS):
                self._children.remove(child)

    def owner_of(self, disk: str) -> int:
        """The host id that the lease on the disk names; 0 when it is free."""
        path = os.path.join(self._leases, resource_name(disk))
        [area] = _in_time(path, "read", lambda: list(dump([path])))
        lease = lease_of(area, {}, None, 0)
        if lease.mode not in (FREE_MODE, EXCLUSIVE):
            raise OnDiskError(f"{lease.path}: the lease is damaged", found=lease.mode, expected=EXCLUSIVE)
        return int(lease.owners[0]["host_id"]) if lease.owners else 0

    def remove_claim(self, host: Host, disk: str) -> bool:
        """Remove this host's record of a VM, as a lost run directory would; False if there is none."""
        store, resource = self._claims(host), resource_name(disk)
        claim = store.read(resource)
        store.remove(resource)
        return claim is not None

    @property
    def _leases(self) -> str:
        return os.path.join(self.work, "leases")

    def _run_dir(self, host: Host) -> str:
        return os.path.join(self._private, f"host-{host.label.lower()}")

    def _claims(self, host: Host) -> ClaimStore:
        lockspace = os.path.join(self._leases, LIBVIRT_LOCKSPACE)
        directory = RunDir(self._run_dir(host)).lockspace_dir(LIBVIRT_LOCKSPACE, lockspace, 0)
        return ClaimStore(LockspaceDir(directory).claims_path)

    def _start(self, host: Host, *arguments: str) -> Child:
        self._started += 1
        with self._interrupts.held():
            try:
                child = Child(
                    [*own_command(self._run_dir(host)), *arguments],
                    environment=self._environment(),
                    stderr_path=os.path.join(self._private, f"stderr-{self._started}"),
                )
            except OSError as error:
                raise CannotExecute(f"{sys.executable}: cannot be executed: {error.strerror}") from None
            self._children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        """Nothing of the user's own set-up: no configuration, and no sanlock daemon.

        That daemon cannot have joined a lockspace that is new; but one of the same name it may have.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VMLOCKCTL_")}
        return {**kept, "VMLOCKCTL_CONFIG": os.devnull, "SANLOCK_RUN_DIR": self._private}

    def _command(self, host: Host, verb: str, *arguments: str) -> None:
        """Run a command to its end; its error is ours."""
        child = self._start(host, "--json", verb, *arguments)
        status = child.wait(_COMMAND_SECONDS)
        error = error_object(child)
        self.end(child)
        if status is None:
            raise IoTimeout(f"'vmlockctl {verb}' does not end within {format_seconds(_COMMAND_SECONDS)}")
        if status != EXIT_OK:
            raise _error_of(error, f"'vmlockctl {verb}' ended with {status}: {child.last_words()}", status)

    def _leave(self, host: Host) -> None:
        """Let the daemon leave the lockspace, as it does only when no lease is held."""
        run_dir = self._run_dir(host)
        pid = daemon_pid(RunDir(run_dir))
        daemons = [process for process in processes_of(run_dir) if process.pid == pid]
        if not daemons:
            return
        deadline = clock.monotonic() + _SETTLE_SECONDS
        while self._claims(host).all() and clock.monotonic() < deadline:
            clock.sleep(_LOOK_AGAIN_SECONDS)
        terminate(daemons[0], within_seconds=_STOP_SECONDS)


def error_object(child: Child) -> Optional[dict[str, Any]]:
    """The error that a command of ours reported with --json."""
    import json

    try:
        error = json.loads(child.last_words())["error"]
    except (ValueError, TypeError, KeyError):
        return None
    return error if isinstance(error, dict) else None


def _error_of(reported: Optional[dict[str, Any]], otherwise: str, status: int) -> VmlockctlError:
    if reported is None:
        return VmlockctlError(otherwise)
    error = VmlockctlError(reported["message"], hint=reported["hint"], details=reported["details"])
    error.code, error.exit_code, error.sanlk_rv = reported["code"], status, reported["sanlk_rv"]
    return error


def _owner_options() -> tuple[str, ...]:
    """The files are ours, also where libvirt's configuration gives lockspaces to another user."""
    import grp
    import pwd

    try:
        return ("--owner", pwd.getpwuid(os.getuid()).pw_name, "--group", grp.getgrgid(os.getgid()).gr_name)
    except KeyError:
        return ()


def _temporary_directory() -> str:
    try:
        return os.path.realpath(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StorageRefused(str(error.strerror), hint="name a temporary directory with TMPDIR") from None


def _choose_directory(directory: Optional[str], temporary: str) -> str:
    """Make the sub-directory in ``directory``, or in a temporary one on storage that has O_DIRECT."""
    if directory == "":
        raise UsageError("DIR is empty", hint="name a directory on the storage that is to be tested")
    if directory is not None:
        return _make_storage_directory(directory)
    try:
        return _make_storage_directory(temporary)
    except (NoDirectIo, StorageRefused):
        if not os.path.isdir("/var/tmp"):  # noqa: S108 - mkdtemp makes what is used there
            raise
        return _make_storage_directory("/var/tmp")  # noqa: S108 - as above


def _make_storage_directory(parent: str) -> str:
    def make() -> str:
        path = _make_directory(os.path.realpath(parent))
        try:
            probe = os.path.join(path, "probe")
            _make_sparse(probe)
            os.close(open_direct(probe, writable=True))
            os.unlink(probe)
        except NoDirectIo:
            shutil.rmtree(path, ignore_errors=True)
            raise NoDirectIo(f"{parent}: the storage does not support O_DIRECT") from None
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise storage_error(error, parent, "cannot create a file") from None
        return path

    return _in_time(parent, "create a directory", make)


def _make_directory(parent: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    except OSError as error:
        condition = storage_error(error, parent, "cannot create a directory")
        if isinstance(condition, (NoSuchArea, StorageRefused)):
            condition.hint = "name a directory on the storage that is to be tested, where you may write"
        raise condition from None


def _make_sparse(path: str) -> None:
    with open(path, "xb") as file:
        file.truncate(_DISK_BYTES)


def _remove(path: str) -> None:
    """Remove a directory of ours; NFS keeps a name for a moment after the last user is gone."""
    deadline = clock.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if clock.monotonic() > deadline:
                raise storage_error(error, path, "cannot remove") from None
        clock.sleep(_LOOK_AGAIN_SECONDS)


def _in_time(path: str, what: str, action: Callable[[], T]) -> T:
    """Do something to the storage in a thread that can be abandoned. Raises ``IoTimeout``."""
    worker = Worker(path)
    try:
        return worker.call(lambda _buffer: action(), 0, _STORAGE_SECONDS, f"{path}: {what}")
    finally:
        worker.close()
