"""What to do about a disk in use: the safe next steps in order, each with its command and why it is safe.

And what must not be done: how operators have destroyed disks (libvirt-and-qemu.md sections 0 and 7).
"""

from __future__ import annotations

import os

from vmlockctl.host.libvirt import Domain
from vmlockctl.ops.explain_disk import Disk
from vmlockctl.ops.explain_world import World
from vmlockctl.ops.explanation import BUSY, FREE, LEASE, LOCKD, OPEN, QEMU, STALE, Advice, Explanation, Holder
from vmlockctl.ops.status import FREE_MODE, Lease
from vmlockctl.text import format_seconds, safe, shell_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def summarise(answer: Explanation) -> str:
    """The verdict in one sentence, the first thing that is read."""
    disk = safe(answer.disk)
    damaged = "its lease is damaged"
    if answer.verdict == BUSY:
        names = list(dict.fromkeys(map(_short, _each_once(answer.holders))))
        when = f"; it can be taken in {format_seconds(answer.free_in)}" if answer.free_in is not None else ""
        also = f"; and {damaged}" if answer.damaged else ""
        return f"{disk}: in use by {', and by '.join(names)}{when}{also}"
    if answer.damaged:
        return f"{disk}: nobody can tell: {damaged}"
    if answer.verdict == FREE:
        return f"{disk}: free: nobody holds it"
    if answer.verdict == STALE:
        return f"{disk}: can be taken now: whoever held its lease is gone"
    return f"{disk}: nobody is seen to hold it, but not everything could be looked at"


def _each_once(holders: Sequence[Holder]) -> Iterator[Holder]:
    """Those that block; of several by one process here, the one that knows the VM."""
    blocking = [holder for holder in holders if holder.blocks]
    for holder in blocking:
        same = [each for each in blocking if each.pid == holder.pid and holder.pid and _is_here(each)]
        yield next((each for each in same if each.vm), holder) if _is_here(holder) else holder


def _short(holder: Holder) -> str:
    vm = f"VM {safe(holder.vm)!r}" if holder.vm else ""
    if holder.layer == LEASE and holder.host is not None and not holder.host["this_host"]:
        host = f"host {safe(str(holder.host['host_name'] or '?'))!r} ({holder.host['state']})"
        return f"{vm} on {host}" if vm else host
    process = f"process {holder.pid} ({safe(holder.process)})" if holder.pid else safe(holder.process)
    if not process:
        nobody = "a lock that no process of this machine holds"
        return vm or (nobody if holder.layer == QEMU else "this host's lease")
    return f"{vm}, {process}" if vm else process


def advise(
    answer: Explanation, disk: Disk, leases: Sequence[Lease], overlays: Sequence[str], world: World
) -> tuple[list[Advice], list[str]]:
    """The next steps in order, and what must not be done."""
    name = shell_word(answer.disk)
    blocking = [holder for holder in answer.holders if holder.blocks]
    dont = [*_dont(blocking), *_dont_while_paused(disk, leases, world)]
    if overlays:
        dont.append(
            f"do not write it: {', '.join(map(safe, overlays))} would be destroyed, which stands on it"
        )
    advice: list[Advice] = []
    stopped: set[int] = set()
    for holder in blocking:
        if holder.pid is None or holder.pid not in stopped:
            advice += _steps(holder, disk, name, leases, world)
        if holder.pid is not None and _is_here(holder):
            stopped.add(holder.pid)  # one step ends all that this process holds
    if answer.damaged:
        advice += _damage_steps(next(lease for lease in leases if lease.damage))
        dont.append("do not format the lease while any VM may use the disk: a second host could start it")
    elif disk.found is None and not blocking:
        why = "it only reads; --fix removes nothing that may be held"
        advice.append(Advice("see what is left of a disk that is gone", "vmlockctl check-orphans", why))
    elif answer.verdict in (FREE, STALE):
        advice.append(_start(name, overlays, is_stale=answer.verdict == STALE))
    if any("run as root" in text or "Permission denied" in text for text in answer.unseen):
        advice.append(Advice("look again as root", f"sudo vmlockctl explain {name}", "it only reads"))
    is_watched = world.seen is None or world.seen.observed_by != "nobody"
    if not is_watched and any(not _is_here(holder) for holder in blocking):
        advice.append(
            Advice("watch the hosts, to know which of them are alive", f"vmlockctl explain --watch {name}", "it only reads")
        )  # fmt: skip
    return list(dict.fromkeys(advice)), list(dict.fromkeys(dont))


def _is_here(holder: Holder) -> bool:
    return holder.host is None or bool(holder.host["this_host"])


def _start(name: str, overlays: Sequence[str], *, is_stale: bool) -> Advice:
    if overlays:
        return Advice(
            "start the VM with an image that stands on this one, never with this one",
            f"vmlockctl run --disk {shell_word(overlays[0])} -- COMMAND",
            "images below are taken shared",
        )
    command = f"vmlockctl run --disk {name} -- COMMAND"
    if is_stale:
        why = "the protocol itself proves that the owner is gone, or refuses"
        return Advice("start the VM: the lease is taken over by itself", command, why)
    return Advice("start the VM", command, "it takes the lease first")


def _damage_steps(lease: Lease) -> list[Advice]:
    return [
        Advice("look at the records", f"vmlockctl dump-leases {shell_word(lease.path)}", "it only reads"),
        Advice("make sure on every host that no VM uses the disk, keep a copy of the lease file, and move it away",
               why="the next acquire makes a new one; a VM that still ran would be unprotected"),
    ]  # fmt: skip


# -- what each holder needs ------------------------------------------------------------------------


def _steps(holder: Holder, disk: Disk, name: str, leases: Sequence[Lease], world: World) -> list[Advice]:
    domain = next((d for d in world.domains if holder.pid and d.pid == holder.pid), None)
    if domain is not None and _is_here(holder):
        return _domain_steps(domain, leases, world)
    if holder.layer == LEASE:
        return _lease_steps(holder, name)
    if holder.layer == LOCKD:
        return _lockd_steps(disk, leases, world)
    if holder.layer == QEMU and holder.pid is None:
        return _server_steps(holder)
    if holder.forgotten:
        return [
            Advice("shut the guest down from inside, if it can be reached (ssh, its console)",
                   why="libvirt cannot stop what it does not know to run; virsh start would be refused or write it twice"),
            Advice(f"or end process {holder.pid}: like cutting the guest's power", f"kill {holder.pid}",
                   "QEMU closes the image in order; then start the domain through libvirt"),
        ]  # fmt: skip
    if holder.pid is not None:
        ends = "a process that is asked to end (SIGTERM) lets QEMU close the image in order"
        return [Advice(f"end process {holder.pid}, if it may end", f"kill {holder.pid}", ends)]
    if holder.kind == "loop":
        return [
            Advice("detach the loop device", f"losetup -d {holder.process}", "it waits for whoever uses it")
        ]
    if holder.kind == "mount":
        return [
            Advice("unmount it, if nothing uses it", f"umount {shell_word(holder.process)}",
                   "it is refused while anything there is open"),
        ]  # fmt: skip
    return [
        Advice(f"remove {holder.process}, if nothing uses it", f"dmsetup remove {shell_word(holder.process)}",
               "it is refused while the device is open"),
    ]  # fmt: skip


def _virsh(domain: Domain) -> str:
    """The command that reaches the libvirtd of a domain, which may be another user's own."""
    if not domain.is_of_a_user:
        return "virsh"
    runtime, uid = domain.source.partition("/libvirt/")[0], domain.uid
    ours = "" if uid == os.geteuid() else f"sudo -u '#{uid}' XDG_RUNTIME_DIR={shell_word(runtime)} "
    return f"{ours}virsh -c qemu:///session"


def _domain_steps(domain: Domain, leases: Sequence[Lease], world: World) -> list[Advice]:
    virsh, name = _virsh(domain), shell_word(domain.name)
    shut_down = Advice(
        f"stop VM {domain.name!r}, if it may stop", f"{virsh} shutdown {name}", "the guest ends in order"
    )
    if not domain.is_paused:
        return [shut_down]
    held = [
        lease for lease in leases if any(o.get("through") and o["pid"] == domain.pid for o in lease.owners)
    ]
    if held and world.seen is not None:
        space = world.seen.lockspace.space_name
        resume = Advice(
            "then resume the VM", f"{virsh} resume {name}", "libvirt takes the leases again, or refuses"
        )
        return [*(_release_attached(lease, space, domain.pid) for lease in held), resume]
    return [
        Advice(f"VM {domain.name!r} is paused, and can end only when it runs again", f"{virsh} resume {name}",
               "libvirt takes its leases again, or refuses"),
        shut_down,
        Advice("or end it as it is: like cutting its power", f"{virsh} destroy {name}", "what the guest had not written is lost"),
    ]  # fmt: skip


def _release_attached(lease: Lease, space_name: str, pid: int) -> Advice:
    """A way out that was tried: virsh detach-disk claims success, but a paused guest lets no disk go."""
    path = lease.path.replace(":", r"\:")
    resource = shell_word(f"{space_name}:{lease.resource}:{path}:{lease.offset}")
    return Advice(
        "the disk was attached while the VM was paused, so its lease is held already and the resume fails with "
        "'File exists': let go of the lease",
        f"sanlock client release -r {resource} -p {pid}",
        "a paused VM has no lease of its other disks either, and the resume takes all of them",
    )


def _lockd_steps(disk: Disk, leases: Sequence[Lease], world: World) -> list[Advice]:
    users = [d for d in world.domains if d.is_running and disk.is_disk_of(d)]
    if users:
        return [step for domain in users for step in _domain_steps(domain, leases, world)]
    return [
        Advice("see which VMs of this host run", "virsh list", "it only reads"),
        Advice("virtlockd holds it for no VM that runs: a lock that leaked. Restart virtlockd when no VM of this host runs",
               "systemctl restart virtlockd", "with no VM running it holds no lock that is needed"),
    ]  # fmt: skip


def _server_steps(holder: Holder) -> list[Advice]:
    """A lock without a process: where to look for it depends on the file system."""
    server = shell_word(holder.server or "SERVER")
    if holder.filesystem.startswith("fuse"):
        return [
            Advice(f"the lock is kept by the program that serves this file system ({holder.filesystem}); one that does not "
                   "let go of locks keeps it for ever. Stop every VM with disks there, unmount it and mount it again",
                   why="an unmount is refused while anything there is open"),
            Advice("if other machines mount it too, look there with this same command first", why="it only reads"),
        ]  # fmt: skip
    if holder.filesystem == "nfs":
        return [
            Advice("look on the other NFS clients with this same command", why="it only reads"),
            Advice("NFSv3: the locks of a client that crashed stay until it is back and says so; on that client",
                   "sm-notify -f", "the server drops what that client held before, and nobody else's locks"),
        ]  # fmt: skip
    if holder.filesystem in ("cifs", "smb3"):
        return [
            Advice("see at the server who has the file open", f"ssh {server} smbstatus -L", "it only reads")
        ]
    if holder.filesystem == "nfs4" or not holder.filesystem:
        return [
            Advice("see at the file's server which client holds it (Linux NFSv4)", f"ssh {server} nfsdclnts -t lock",
                   "it only reads"),
            Advice("a client that died lets go by itself after the server's lease time (90 s by default)"),
        ]  # fmt: skip
    return [
        Advice(f"look for it outside of this container, or on the other hosts that mount this {holder.filesystem}, with "
               "this same command", why="it only reads"),
    ]  # fmt: skip


def _lease_steps(holder: Holder, disk: str) -> list[Advice]:
    host = holder.host or {}
    if host.get("this_host"):
        if holder.pid is None:
            why = "it only reads; --fix releases what is proven"
            return [Advice("see what is left of it", "vmlockctl check-orphans", why)]
        return [Advice(f"end process {holder.pid}, if it may end; its lease is released with it", f"kill {holder.pid}",
                       "the lease is released only when the process is gone")]  # fmt: skip
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


# -- what must not be done -------------------------------------------------------------------------


def _dont(blocking: Sequence[Holder]) -> Iterator[str]:
    layers = {holder.layer for holder in blocking}
    if LEASE in layers:
        yield "do not delete or format the lease file: a second host could then start the VM"
    if QEMU in layers:
        yield "do not use -U, force-share or locking=off to get past the lock: two writers destroy the disk"
    if LOCKD in layers:
        yield "do not restart virtlockd while VMs run: all their locks would be gone"
    if OPEN in layers:
        yield "do not start a VM on the disk meanwhile: what has it open may write it"
    if any(holder.forgotten for holder in blocking):
        yield "do not start the domain with virsh, here or elsewhere: it runs, though libvirt says shut off"


def _dont_while_paused(disk: Disk, leases: Sequence[Lease], world: World) -> Iterator[str]:
    """What libvirt's way with paused VMs, whose leases it lets go of, makes dangerous."""
    for domain in world.domains:
        is_free = all(lease.mode == FREE_MODE for lease in leases)
        if domain.is_paused and disk.is_disk_of(domain) and is_free:
            yield (
                f"do not start a VM with this disk on another host: VM {domain.name!r} is paused here without a "
                "lease, and would go on writing what it remembers"
            )
