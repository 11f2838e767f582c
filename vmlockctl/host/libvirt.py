"""The domains that libvirt knows, read from its own files: they answer when libvirtd does not.

A defined domain is ``/etc/libvirt/qemu/NAME.xml``; a running one, with its pid, state and reason, is
``/run/libvirt/qemu/NAME.xml`` (libvirt-and-qemu.md section 7). A QEMU that libvirt started and whose status
file is gone is forgotten: libvirt lists its domain as shut off.
"""

from __future__ import annotations

import os

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Optional
    from xml.etree.ElementTree import Element

DEFINED_DIR = "/etc/libvirt/qemu"
RUNNING_DIR = "/run/libvirt/qemu"
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

    @property
    def is_running(self) -> bool:
        return self.pid != 0


def domains(*, defined_dir: str = DEFINED_DIR, running_dir: str = RUNNING_DIR) -> list[Domain]:
    """Every domain, the running ones as they run, and the others as they are defined."""
    running = {domain.name: domain for domain in _read_directory(running_dir)}
    defined = [domain for domain in _read_directory(defined_dir) if domain.name not in running]
    return [*running.values(), *defined]


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
        if os.stat(path).st_size > _MAX_XML_BYTES:
            return None
        root = ET.parse(path).getroot()  # noqa: S314 - libvirt's own files, writable by root only
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
    )


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
