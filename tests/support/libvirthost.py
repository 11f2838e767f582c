"""One host that runs the real libvirt with sanlock or virtlockd, in a mount namespace of its own.

libvirt's directories are compiled in, so its world is put over them: a private /run, and directories of the
test over those in /etc and /var. The machine stays as it was, and everything that the host starts is found
again, and ended, by the namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4
from xml.sax.saxutils import escape

from tests.support.filesystems import need_root
from tests.support.programs import Child, Result, find_program, is_running, kill_together, run_command
from tests.support.vmhost import OUR_COMMAND, PathLike
from tests.support.waiting import wait_for

PROGRAMS = ("libvirtd", "virsh", "virtlockd", "virt-sanlock-cleanup", "sanlock", "qemu-system-x86_64")
LEASE_DIR = "/var/lib/libvirt/sanlock"  # inside the namespace
NAME = "lvhost"
_OURS = ("etc", "lib", "cache", "log")

_QEMU_CONF = """
security_driver = "none"
cgroup_controllers = []
namespaces = []
user = "root"
group = "root"
dynamic_ownership = 0
stdio_handler = "file"
lock_manager = "{lock_manager}"
"""
_SANLOCK_CONF = """
auto_disk_leases = 1
host_id = 1
io_timeout = 1
"""
_MOUNTS = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/libvirt /run/sanlock /run/lock
mount --bind {0}/etc /etc/libvirt
mount --bind {0}/lib /var/lib/libvirt
mount --bind {0}/cache /var/cache/libvirt
mount --bind {0}/log /var/log/libvirt
touch {0}/ready
exec sleep infinity
"""
_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    {disks}
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""
_DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>
<target dev='{target}' bus='virtio'/>{more}</disk>"""


class LibvirtHost:
    """``start`` brings up sanlock or virtlockd, and libvirtd; ``close`` ends all that runs inside."""

    def __init__(self, directory: Path, *, lock_manager: str) -> None:
        need_root()
        self.directory, self.lock_manager = directory, lock_manager
        for name in _OURS:
            (directory / name).mkdir(parents=True)
        (directory / "etc" / "qemu").mkdir()
        (directory / "lib" / "sanlock").mkdir()
        self.configure("qemu.conf", _QEMU_CONF.format(lock_manager=lock_manager))
        self.configure("qemu-sanlock.conf", _SANLOCK_CONF)
        self.configure("libvirtd.conf", 'auth_unix_rw = "none"\n')
        self._daemons: dict[str, Child] = {}
        self._keeper = Child(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNTS.format(directory)]
        )
        wait_for("the mount namespace", (directory / "ready").exists, within=10)

    @property
    def prefix(self) -> list[str]:
        """What runs a command as one of this host."""
        return ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--"]

    @property
    def lease_dir(self) -> Path:
        """The lease directory, as it is seen from outside."""
        return self.directory / "lib" / "sanlock"

    @property
    def lock_daemon_pid(self) -> int:
        return self._daemons["sanlock" if self.lock_manager == "sanlock" else "virtlockd"].pid

    @property
    def status_dir(self) -> Path:
        """Where libvirt records the running domains, seen from outside."""
        return self.seen("/run/libvirt/qemu")

    def seen(self, path: str) -> Path:
        """A path of this host as it is reached from outside."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def configure(self, name: str, text: str) -> None:
        (self.directory / "etc" / name).write_text(text)

    def command(self, *arguments: str, within: float = 60) -> Result:
        return run_command([*self.prefix, *arguments], environment=self.environment, timeout_seconds=within)

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("VMLOCKCTL", "XDG"))
        }
        return {**kept, "SANLOCK_PRIVILEGED": "0", "VMLOCKCTL_RUN_DIR": str(self.directory / "vmlockctl")}

    def call(self, *arguments: PathLike) -> Result:
        """What an operator types on this host after ``vmlockctl``."""
        return self.command(*OUR_COMMAND, *map(os.fspath, arguments))

    # -- daemons --------------------------------------------------------------------------------

    def start(self) -> None:
        if self.lock_manager == "sanlock":
            self._start_daemon(
                "sanlock", "daemon", "-D", "-w", "0", "-U", "root", "-G", "root", "-l", "0", "-h", "0",
                "-e", NAME,
            )  # fmt: skip
            self._wait_for_answer("sanlock", "client", "status")
        else:
            self._start_daemon("virtlockd")
            self._wait_for_file("/run/libvirt/virtlockd-sock")
        self.start_libvirtd()

    def start_libvirtd(self) -> None:
        """Start libvirtd; it answers when it has joined the lockspace, or has failed to."""
        self._start_daemon("libvirtd")
        self._wait_for_answer("virsh", "list")

    def _start_daemon(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as log:
            self._daemons[name] = Child(
                [*self.prefix, find_program(name), *arguments],
                environment=self.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def _wait_for_answer(self, program: str, *arguments: str) -> None:
        command = (find_program(program), *arguments)
        wait_for(f"{program}'s answer", lambda: self.command(*command).returncode == 0, within=30)

    def _wait_for_file(self, path: str) -> None:
        wait_for(path, self.seen(path).exists, within=10)

    def close(self) -> None:
        namespace = os.readlink(f"/proc/{self._keeper.pid}/ns/mnt")
        while pids := [pid for pid in _processes_in(namespace) if pid != self._keeper.pid]:
            kill_together(pids)
        for daemon in self._daemons.values():
            daemon.kill()
        self._keeper.kill()

    # -- domains --------------------------------------------------------------------------------

    def virsh(self, *arguments: str) -> Result:
        return self.command(find_program("virsh"), *arguments)

    def succeed(self, *arguments: str) -> Result:
        result = self.virsh(*arguments)
        assert result.returncode == 0, result
        return result

    def define(self, name: str, *disks: str) -> None:
        """Define a domain with these ``<disk>`` elements."""
        self.succeed("define", str(self.domain_xml(name, *disks)))

    def domain_xml(self, name: str, *disks: str) -> Path:
        emulator = find_program("qemu-system-x86_64")
        text = _DOMAIN.format(name=escape(name), uuid=uuid4(), emulator=emulator, disks="".join(disks))
        return self.xml(text)

    def xml(self, text: str) -> Path:
        """A file with this text, for virsh."""
        file = self.directory / "virsh.xml"
        file.write_text(text)
        return file

    def run(self, name: str, disk: Path, *, more: str = "") -> int:
        """Define and start a domain with one disk; return the pid of its QEMU."""
        self.define(name, disk_element(disk, more=more))
        self.succeed("start", name)
        return self.pid_of(name)

    def pid_of(self, name: str) -> int:
        found = re.search(r"<domstatus [^>]*pid='(\d+)'", (self.status_dir / f"{name}.xml").read_text())
        assert found is not None
        pid = int(found[1])
        assert is_running(pid)
        return pid

    def forget(self, name: str) -> None:
        """Kill libvirtd, lose its record of a running domain, and start it again."""
        self._daemons["libvirtd"].kill()
        for suffix in ("xml", "pid"):
            (self.status_dir / f"{name}.{suffix}").unlink(missing_ok=True)
        self.start_libvirtd()

    def restart_libvirtd(self) -> None:
        """Kill -9 it and start it again; the VMs stay."""
        self._daemons["libvirtd"].kill()
        self.start_libvirtd()


def disk_element(path: Path, *, target: str = "vda", more: str = "") -> str:
    return _DISK.format(path=path, target=target, more=more)


def _processes_in(namespace: str) -> list[int]:
    """Everything that runs in a mount namespace."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if (
                entry.isdigit()
                and os.readlink(f"/proc/{entry}/ns/mnt") == namespace
                and is_running(int(entry))
            ):
                found.append(int(entry))
    return found


@contextlib.contextmanager
def libvirt_host(directory: Path, *, lock_manager: str) -> Iterator[LibvirtHost]:
    host = LibvirtHost(directory, lock_manager=lock_manager)
    try:
        host.start()
        yield host
    finally:
        host.close()
