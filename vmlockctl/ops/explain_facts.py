"""What is told of a disk beside its holders: names, format, chain, lease files, libvirt's domains."""

from __future__ import annotations

import stat

from vmlockctl.host.images import Chain, overlays_of
from vmlockctl.host.libvirt import Domain
from vmlockctl.host.process import exists
from vmlockctl.ops.explain_disk import Disk
from vmlockctl.ops.status import Lease
from vmlockctl.records import NamedTuple
from vmlockctl.storage.patience import answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Optional


class Facts(NamedTuple):
    """What is told of a disk, as heading and value; and the images that stand on it."""

    told: list[tuple[str, str]]
    overlays: list[str]


def facts_of(
    disk: Disk, chain: Chain, leases: Sequence[Lease], domains: Sequence[Domain], forgotten: Mapping[str, int]
) -> Facts:
    """Everything about the disk that is no holder of it.

    ``forgotten``: the processes, by the uuid of their domain, that libvirt does not know to run.
    """
    told = [("also named", name) for name in disk.names[1:]]
    if disk.found is None:
        told.append(("disk", disk.missing if disk.is_silent else f"it is not there: {disk.missing}"))
    overlays: list[str] = []
    if disk.found is not None and stat.S_ISREG(disk.found.st_mode):
        paths = [each.path for domain in domains for each in domain.disks]
        overlays = overlays_of(disk.names, filter(answers, paths))
        if disk.found.st_nlink > 1:
            told.append(("hard links", f"{disk.found.st_nlink}: names that no lease covers"))
    if chain.images:
        told.append(("format", chain.images[0].format))
        told += [("stands on", below) for below in chain.below]
    elif chain.problem:
        told.append(("format", f"unknown: {chain.problem}"))
    told += [("is below", overlay) for overlay in overlays]
    for lease in leases:
        told.append(("lease file", f"{lease.path} ({lease.mode}, {_version(lease)})"))
        told += [("damaged", f"{lease.path}:{d['offset']}: {d['text']}") for d in lease.damage]
    for domain in domains:
        if disk.is_disk_of(domain) or disk.is_below(domain):
            told.append(("libvirt", _domain_fact(domain, disk, forgotten.get(domain.uuid))))
    return Facts(told, overlays)


def _version(lease: Lease) -> str:
    return "never acquired" if lease.lver == 0 else f"version {lease.lver}"


def _domain_fact(domain: Domain, disk: Disk, forgotten_pid: Optional[int]) -> str:
    reason = f" ({domain.reason})" if domain.reason else ""
    how = "as its disk" if disk.is_disk_of(domain) else "below one of its disks"
    running = f", process {domain.pid}" if domain.is_running else ""
    if domain.is_running and not exists(domain.pid):
        running += ", which is gone"
    if not domain.is_running and forgotten_pid:
        running = f", listed as shut off, but its process {forgotten_pid} runs: libvirt has forgotten it"
    return f"domain {domain.name!r} has it {how}: {domain.state}{reason}{running}"
