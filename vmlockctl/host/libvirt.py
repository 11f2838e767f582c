"""The domains that libvirt knows, read from its own files: they answer when libvirtd does not.

A defined domain is ``/etc/libvirt/qemu/NAME.xml``; a running one, with its pid, state and reason, is
``/run/libvirt/qemu/NAME.xml`` (libvirt-and-qemu.md section 7). A user's own libvirtd has both below the XDG
directories of the user. A QEMU that libvirt started and whose status file is gone is forgotten: libvirt lists
its domain as shut off.
"""

from __future__ import annotations

import os
import stat

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Optional
    from xml.etree.ElementTree import Element

DEFINED_DIR = "/etc/libvirt/qemu"
RUNNING_DIR = "/run/libvirt/qemu"
_USERS_RUNTIME_DIR = "/run/user"
_MAX_XML_BYTES = 8 << 20  # far beyond any domain


class DomainDisk(NamedTuple):
    path: str
    target: str  # vda
    readonly: bool
    shareable: bool


class Domain(NamedTuple):
    """``state`` is libvirt's word with its reason, ``defined`` for one that does not run."""

    name: str
    uuid: str
    state: str
    reason: str
    pid: int  # 0: not running
    disks: tuple[DomainDisk, ...]
    backing: tuple[str, ...]  # images below the disks, as far as libvirt wrote them down
    source: str  # the file that says so
    uid: int = 0  # whose file it is

    @property
    def is_running(self) -> bool:
        return self.pid != 0

    @property
    def is_paused(self) -> bool:
        return self.state == "paused"

    @property
    def is_of_a_user(self) -> bool:
        """Whether a user's own libvirtd has it: virsh must be told to ask that one."""
        return os.path.dirname(self.source) not in (DEFINED_DIR, RUNNING_DIR)


def domains(*, defined_dir: str = DEFINED_DIR, running_dir: str = RUNNING_DIR) -> list[Domain]:
    """Every domain, the running ones as they run, and the others as they are defined.

    Those of the machine, and of the users' own libvirtds as far as we may look there.
    """
    running = {_key(domain): domain for domain in _read_directory(running_dir)}
    defined = {_key(domain): domain for domain in _read_directory(defined_dir)}
    for directory in _user_running_dirs():
        running.update(
            (_key(domain), domain) for domain in _read_directory(directory) if _is_believed(domain)
        )
    defined.update((_key(domain), domain) for domain in _read_directory(_user_defined_dir()))
    return [*running.values(), *(domain for key, domain in defined.items() if key not in running)]


def _key(domain: Domain) -> str:
    return domain.uuid or domain.name


def _user_defined_dir() -> str:
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "libvirt", "qemu")


def _user_running_dirs() -> list[str]:
    """Ours, and for root everybody's."""
    runtime = [os.environ.get("XDG_RUNTIME_DIR") or ""]
    try:
        runtime += [os.path.join(_USERS_RUNTIME_DIR, uid) for uid in sorted(os.listdir(_USERS_RUNTIME_DIR))]
    except OSError:
        pass
    return [os.path.join(each, "libvirt", "qemu", "run") for each in dict.fromkeys(filter(None, runtime))]


def _is_believed(domain: Domain) -> bool:
    """Whether the process is of the user whose file names it: a user can write anything there."""
    try:
        return domain.uid == os.stat(f"/proc/{domain.pid}").st_uid
    except OSError:
        return False


def unreadable_records(directories: Sequence[str] = (DEFINED_DIR, RUNNING_DIR)) -> list[str]:
    """The directories of libvirt's records that are there and may hold domains that we cannot see."""
    found = []
    for directory in directories:
        try:
            os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            found.append(f"{directory}: {error.strerror}")
    return found


def _read_directory(directory: str) -> Iterator[Domain]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".xml"))
    except OSError:
        return
    for name in names:
        domain = read_domain(os.path.join(directory, name))
        if domain is not None:
            yield domain


def read_domain(path: str) -> Optional[Domain]:
    """A domain from its definition or its status file; None where it is neither, or not to be read."""
    from xml.etree import ElementTree as ET  # 12 ms to load, and only diagnosis needs it

    try:
        content, uid = _read_regular(path)
        root = ET.fromstring(content)  # noqa: S314 - expat itself bounds what entities grow to
    except (OSError, ET.ParseError):
        return None
    domain = root if root.tag == "domain" else root.find("domain")
    if domain is None:
        return None
    is_status = root.tag == "domstatus"
    return Domain(
        name=domain.findtext("name") or "",
        uuid=domain.findtext("uuid") or "",
        state=root.get("state", "") if is_status else "defined",
        reason=root.get("reason", "") if is_status else "",
        pid=_number(root.get("pid")) if is_status else 0,
        disks=tuple(_disks(domain)),
        backing=tuple(_backing(domain)),
        source=path,
        uid=uid,
    )


def _read_regular(path: str) -> tuple[bytes, int]:
    """A file of at most ``_MAX_XML_BYTES``, and its owner; a user may have put anything there."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        return (file.read(_MAX_XML_BYTES) if stat.S_ISREG(found.st_mode) else b""), found.st_uid


def _number(text: Optional[str]) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _disks(domain: Element) -> Iterator[DomainDisk]:
    for disk in domain.iterfind("./devices/disk"):
        path = _source_path(disk.find("source"))
        if path is not None:
            target = disk.find("target")
            yield DomainDisk(
                path,
                target.get("dev", "") if target is not None else "",
                disk.find("readonly") is not None or disk.get("device") == "cdrom",
                disk.find("shareable") is not None,
            )


def _source_path(source: Optional[Element]) -> Optional[str]:
    if source is None:
        return None
    return source.get("file") or source.get("dev") or source.get("dir") or source.get("path")


def _backing(domain: Element) -> Iterator[str]:
    for store in domain.iterfind("./devices/disk//backingStore/source"):
        path = _source_path(store)
        if path is not None:
            yield path


def read_conf(path: str) -> dict[str, str]:
    """``key = "text"`` and ``key = 1`` lines of a libvirt configuration file; {} where there is none."""
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                key, equals, value = line.split("#", 1)[0].partition("=")
                if equals:
                    found[key.strip()] = value.strip().strip("\"'")
    except OSError:
        pass
    return found


def lockd_directory(path: str = "/etc/libvirt/qemu-lockd.conf") -> Optional[str]:
    """Where virtlockd keeps a file per disk, named by the SHA-256 of its path; None: it locks the image."""
    return read_conf(path).get("file_lockspace_dir") or None
