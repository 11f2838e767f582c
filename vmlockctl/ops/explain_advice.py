"""What to do about a disk in use: the safe next steps in order, each with its command and why it is safe.

And what must not be done: how operators have destroyed disks (libvirt-and-qemu.md sections 0 and 7).
"""

from __future__ import annotations

import shlex

from vmlockctl.host.libvirt import Domain
from vmlockctl.ops.explanation import BUSY, FREE, LEASE, LOCKD, OPEN, QEMU, STALE, Advice, Explanation, Holder
from vmlockctl.ops.status import Lease, Status
from vmlockctl.text import format_seconds, safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional


def summarise(answer: Explanation) -> str:
    """The verdict in one sentence, the first thing that is read."""
    disk = safe(answer.disk)
    if answer.damaged:
        return f"{disk}: nobody can tell: its lease is damaged"
    if answer.verdict == FREE:
        return f"{disk}: free: nobody holds it"
    if answer.verdict == STALE:
        return f"{disk}: can be taken now: whoever held its lease is gone"
    if answer.verdict != BUSY:
        return f"{disk}: nobody is seen to hold it, but not everything could be looked at"
    blocking = [holder for holder in answer.holders if holder.blocks]
    names = list(dict.fromkeys(_short(holder) for holder in blocking))
    when = f"; it can be taken in {format_seconds(answer.free_in)}" if answer.free_in is not None else ""
    return f"{disk}: in use by {', and by '.join(names)}{when}"


def _short(holder: Holder) -> str:
    vm = f"VM {safe(holder.vm)!r}" if holder.vm else ""
    if holder.layer == LEASE and holder.host is not None and not holder.host["this_host"]:
        host = f"host {safe(str(holder.host['host_name'] or '?'))!r} ({holder.host['state']})"
        return f"{vm} on {host}" if vm else host
    process = f"process {holder.pid} ({safe(holder.process)})" if holder.pid else safe(holder.process)
    if not process:
        return vm or (
            "a lock that no process of this machine holds" if holder.layer == QEMU else "this host's lease"
        )
    return f"{vm}, {process}" if vm else process


def advise(
    answer: Explanation, leases: Sequence[Lease], domains: Sequence[Domain], seen: Optional[Status]
) -> tuple[list[Advice], list[str]]:
    """The next steps in order, and what must not be done."""
    disk = shlex.quote(answer.disk)
    blocking = [holder for holder in answer.holders if holder.blocks]
    advice: list[Advice] = []
    if answer.damaged:
        path = shlex.quote(next(lease.path for lease in leases if lease.damage))
        advice += [
            Advice("look at the records", f"vmlockctl dump-leases {path}", "it only reads"),
            Advice("make sure on every host that no VM uses the disk, keep a copy of the lease file, and move it away",
                   why="the next acquire makes a new one; a VM that still ran would be unprotected"),
        ]  # fmt: skip
        return advice, ["do not format the lease while any VM may use the disk: a second host could start it"]
    if answer.verdict == FREE:
        return [
            Advice("start the VM", f"vmlockctl run --disk {disk} -- COMMAND", "it takes the lease first")
        ], []
    if answer.verdict == STALE:
        why = "the protocol itself proves that the owner is gone, or refuses"
        return [
            Advice(
                "start the VM: the lease is taken over by itself",
                f"vmlockctl run --disk {disk} -- COMMAND",
                why,
            )
        ], []
    stopped: set[int] = set()
    for holder in blocking:
        if holder.pid is None or holder.pid not in stopped:
            advice += _steps(holder, disk, domains)
        if holder.pid is not None and _is_here(holder):
            stopped.add(holder.pid)  # one step ends all that this process holds
    if any("run as root" in text for text in answer.unseen):
        advice.append(Advice("look again as root", f"sudo vmlockctl explain {disk}", "it only reads"))
    if (
        seen is not None
        and seen.observed_by == "nobody"
        and any(holder.layer == LEASE for holder in blocking)
    ):
        advice.append(
            Advice("watch the hosts, to know which of them are alive", f"vmlockctl explain --observe 30 {disk}",
                   "it only reads")
        )  # fmt: skip
    return list(dict.fromkeys(advice)), _dont(blocking)


def _is_here(holder: Holder) -> bool:
    return holder.host is None or bool(holder.host["this_host"])


def _steps(holder: Holder, disk: str, domains: Sequence[Domain]) -> list[Advice]:
    if holder.layer == LEASE:
        return _lease_steps(holder, disk)
    domain = next((d for d in domains if holder.pid and d.pid == holder.pid), None)
    if domain is not None:
        name = shlex.quote(domain.name)
        return [
            Advice(
                f"stop VM {safe(domain.name)!r}, if it may stop",
                f"virsh shutdown {name}",
                "the guest ends in order",
            )
        ]
    if holder.layer == LOCKD:
        return [
            Advice("stop the VM whose disk virtlockd holds", "virsh list --all", "the lock ends with the VM")
        ]
    if holder.layer == QEMU and holder.pid is None:
        return [
            Advice("find the other client at the file's server (Linux NFSv4)", "nfsdclnts -t lock", "it only reads"),
            Advice("a client that died lets go by itself after the server's lease time (90 s by default)",
                   why="NFSv3 locks stay until that client is back, or are cleared at the server"),
        ]  # fmt: skip
    if holder.pid is not None:
        ends = "a process that is asked to end (SIGTERM) lets QEMU close the image in order"
        return [Advice(f"end process {holder.pid}, if it may end", f"kill {holder.pid}", ends)]
    if holder.process.startswith("/dev/loop"):
        return [
            Advice("detach the loop device", f"losetup -d {holder.process}", "it waits for whoever uses it")
        ]
    return [Advice(f"unmount or remove {safe(holder.process)}", why="the kernel has the disk open for it")]


def _lease_steps(holder: Holder, disk: str) -> list[Advice]:
    host = holder.host or {}
    if host.get("this_host"):
        if holder.pid is None:
            return [
                Advice(
                    "see what is left of it",
                    "vmlockctl check-orphans",
                    "it only reads; --fix releases what is proven",
                )
            ]
        return [Advice(f"end process {holder.pid}, if it may end; its lease is released with it", f"kill {holder.pid}",
                       "the daemon releases only when the process is gone")]  # fmt: skip
    name = safe(str(host.get("host_name") or "?"))
    release = f"vmlockctl release --evidence {disk}"
    if host.get("state") == "unknown":
        return [
            Advice(f"find out whether host {name!r} is dead, and release the lease then", release,
                   "it watches for as long as the proof takes; an owner that shows a sign of life keeps its lease"),
        ]  # fmt: skip
    if holder.takeover_in is None:
        return [
            Advice(f"stop the VM on host {name!r}, or start it there", "", "its host releases the lease with it"),
            Advice("or ask that host to let it go", f"vmlockctl request {disk}", "its host ends the VM in order, then releases"),
        ]  # fmt: skip
    return [
        Advice(f"wait {format_seconds(holder.takeover_in)}: host {name!r} is silent",
               f"vmlockctl run --wait --disk {disk} -- COMMAND", "it takes the lease as soon as the host is certainly dead"),
        Advice(f"or, only if you know that host {name!r} is powered off or fenced, release it now",
               f"{release} --i-know {host.get('host_id')}:{host.get('generation')}",
               "a host that renews is never overridden, and your word is logged; one that is only unreachable or paused "
               "writes on when it wakes"),
    ]  # fmt: skip


def _dont(blocking: Sequence[Holder]) -> list[str]:
    layers = {holder.layer for holder in blocking}
    dont = []
    if LEASE in layers:
        dont.append("do not delete or format the lease file: a second host could then start the VM")
    if QEMU in layers:
        dont.append(
            "do not use -U, force-share or locking=off to get past the lock: two writers destroy the disk"
        )
    if OPEN in layers:
        dont.append("do not start a VM on the disk meanwhile: what has it open may write it")
    return dont
