"""sanlock's numbers and the words of ``sanlock_strerror`` (sanlock-format.md section 7), as virsh shows them too."""

from __future__ import annotations

from vmlockctl.ops.messages.entry import SANLOCK, Message

_WHO = "vmlockctl explain DISK"
_STATUS = "vmlockctl status"
_RACE = (
    "two hosts started a VM with this disk in the same moment, and the other one won",
    "a high-availability manager starts the VM on several hosts at once: then it is normal, and harmless",
)
_DAMAGE_DO = (
    "stop every VM that uses the disk, on every host; make sure of it",
    "vmlockctl dump-leases LEASE_FILE, and keep a copy of the file",
    "move the lease file away; the next acquire makes a new one",
)
_NOT_WHILE_HELD = (
    "do not format or delete the lease while any VM may use the disk: a second host could start it"
)
_STORAGE_LOOK = ("vmlockctl selftest DIR", "the kernel log (dmesg) and the storage server's own log")

MESSAGES = (
    Message(
        "SANLK_ACQUIRE_IDLIVE", SANLOCK, "another host holds the lease, and that host is alive",
        ("the VM, or another VM with this disk, runs on another host",
         "the VM was started there by a high-availability manager a moment ago"),
        (_WHO, _STATUS), ("stop the VM on the host that is named, or start it there instead",),
        (-243,), (r"Lease is held by another host(?! for)",),
        ("do not delete the lease file: the disk would be written by two hosts",),
    ),
    Message(
        "SANLK_ACQUIRE_OWNED", SANLOCK, "another host won the lease in the same moment (in another ballot)",
        _RACE, (_WHO,), ("look where it runs now; try again if it runs nowhere",),
        (-244,), (r"Lease was acquired by another host in other ballot",),
    ),
    Message(
        "SANLK_ACQUIRE_OTHER", SANLOCK,
        "another host won the lease in the same moment (this one finished the other's ballot)",
        _RACE, (_WHO,), ("look where it runs now; try again if it runs nowhere",),
        (-245,), (r"Lease was acquired by another host in local commit",),
    ),
    Message(
        "SANLK_ACQUIRE_SHRETRY", SANLOCK, "a shared lease was not to be had in eight attempts: others took turns",
        ("many hosts acquire the disk shared at once", "another host holds it exclusively, again and again"),
        (_WHO,), ("try again",), (-246,), (r"Lease is held by another host for shared acquire",),
    ),
    Message(
        "SANLK_ACQUIRE_OWNED_RETRY", SANLOCK,
        "the owner is silent and not yet dead: its lease may be taken over in a while",
        ("the host that runs the VM crashed, was reset or lost its storage",
         "the daemon of that host hangs, and its VM still runs"),
        (_WHO, _STATUS),
        ("wait: a host is dead after 8 x io_timeout + 60 seconds (140 by default) of silence",
         "vmlockctl acquire --wait DISK, or run --wait, takes it as soon as that is safe"),
        (-247,), (r"Lease is owned by another host",),
        ("do not shorten the wait by deleting the lease: the VM there may still write",),
    ),
    Message(
        "SANLK_ACQUIRE_LVER", SANLOCK, "the lease was held by somebody since the version that was expected",
        ("the VM ran elsewhere while it was paused here: its disk may have changed under it",),
        (_WHO,), ("do not resume the paused VM; start it afresh",), (-240,),
    ),
    Message(
        "SANLK_ACQUIRE_LOCKSPACE", SANLOCK, "this host has not joined the lockspace, or lost it during the acquire",
        ("the daemon was restarted and nobody joined again", "the storage of the lockspace failed",
         "the join failed earlier: the daemon's log says why"),
        ("sanlock client status", "vmlockctl status"),
        ("vmlockctl add-host TARGET --host-id N, or restart libvirtd, which joins when it starts",),
        (-241,), (r"Lease lockspace is not found",),
    ),
    Message(
        "SANLK_ACQUIRE_IDDISK", SANLOCK, "the lockspace of the lease cannot be opened on this host",
        ("the lease directory is not mounted here", "permissions, or a read-only mount"),
        ("mount", "ls -l LEASE_DIR/__LIBVIRT__DISKS__"), ("mount it, or mend the permissions",),
        (-242,), (r"Lease lockspace disk cannot be opened",),
    ),
    Message(
        "SANLK_HOSTID_BUSY", SANLOCK, "the host id is in use by another host",
        ("two hosts are configured with the same host_id",
         "this host crashed and came back under another name: its own old record must die first",
         "the daemon of this machine runs twice"),
        (_STATUS, "grep host_id /etc/libvirt/qemu-sanlock.conf, on every host"),
        ("give each host an id of its own: vmlockctl add-host TARGET --host-id auto finds a free one",
         "keep host names unique and the same over reboots (our_host_name in sanlock.conf)"),
        (-262,), (r"Lease host ID is being used by another host",),
        ("do not give a second host the id, or the name, of one that runs: both would stop their VMs",),
    ),
    Message(
        "SANLK_RENEW_OWNER", SANLOCK, "the host id was taken by another host: this host's leases are lost",
        ("two hosts with the same id and the same name", "somebody formatted the lockspace while it was in use",
         "this host was frozen or paused for so long that others took it for dead"),
        (_STATUS, "vmlockctl dump-leases LEASE_DIR/__LIBVIRT__DISKS__"),
        ("find the other host and give it an id of its own", "start the VMs again when status says live"),
        (-260,), (r"Lease renew owner is incorrect", r"delta_renew not owner"),
    ),
    Message(
        "SANLK_RENEW_DIFF", SANLOCK, "the record of this host id changed between two renewals of this host",
        ("another program writes this host id ('sanlock direct', a second daemon, a clone of this host)",
         "the storage lost or mixed up a write"),
        (_STATUS, *_STORAGE_LOOK), ("stop the other program; then start the VMs again",),
        (-261,), (r"Lease renew data has changed", r"delta_renew reread mismatch"),
    ),
    Message(
        "SANLK_RELEASE_LVER", SANLOCK, "the lease has another version than the one that was to be released",
        ("the lease was formatted or deleted while it was held",
         "a host that was slow put an older record back (harmless)"),
        (_WHO,), ("look whether another host ran the VM meanwhile; check the disk before it is used",),
        (-250,), (r"Lease release version is incorrect",),
    ),
    Message(
        "SANLK_RELEASE_OWNER", SANLOCK, "the lease belongs to somebody else, or to nobody, at its release",
        ("another host took it over: this host was silent for too long", "it was formatted while it was held"),
        (_WHO,), ("look whether another host ran the VM meanwhile; check the disk before it is used",),
        (-251,), (r"Lease release owner is incorrect",),
    ),
    Message(
        "SANLK_LEADER_MAGIC", SANLOCK, "there is no lease at that place: zeros, garbage, or a cleared one",
        ("the lease file was created and never formatted (a crash in between)",
         "a wrong path or offset", "the file was overwritten"),
        ("vmlockctl dump-leases LEASE_FILE",),
        ("if no VM uses the disk: move the file away; the next start makes a new one",),
        (-223,), (r"Lease does not exist on storage", r"verify_leader .*wrong magic"), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_LEADER_VERSION", SANLOCK, "the lease was written by an incompatible version",
        ("a much newer or older sanlock formatted it", "damage"),
        ("vmlockctl dump-leases LEASE_FILE", "sanlock client version, on every host"),
        ("run the same version on every host",), (-224,),
        (r"Lease format version on storage is not recognized", r"verify_leader .*wrong version"),
    ),
    Message(
        "SANLK_LEADER_SECTORSIZE", SANLOCK, "the lease was formatted for another sector size",
        ("hosts that see 512-byte and 4096-byte sectors on the same storage", "a copy of the lease from elsewhere"),
        ("vmlockctl dump-leases LEASE_FILE",), ("format it anew for the sector size of all hosts",),
        (-225,), (r"Lease sector size is inconsistent",), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_LEADER_LOCKSPACE", SANLOCK, "the lease belongs to another lockspace",
        ("it was copied from another lease directory", "two lockspaces share a directory"),
        ("vmlockctl dump-leases LEASE_FILE",), _DAMAGE_DO, (-226,),
        (r"Lease lockspace name is incorrect", r"verify_leader .*wrong space name"), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_LEADER_RESOURCE", SANLOCK, "the lease is another disk's: its name is not the file's name",
        ("the lease file was copied or renamed", "a wrong offset"),
        ("vmlockctl dump-leases LEASE_FILE",), _DAMAGE_DO, (-227,),
        (r"Lease resource name is incorrect", r"verify_leader .*wrong resource name"), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_LEADER_NUMHOSTS", SANLOCK, "the lease has no place for this host id",
        ("it was formatted for fewer hosts than there are",), ("vmlockctl dump-leases LEASE_FILE",),
        ("use a lower host id, or format it for more hosts",), (-228,), (r"Lease num_hosts is incorrect",),
    ),
    Message(
        "SANLK_LEADER_CHECKSUM", SANLOCK, "the lease record is damaged: its checksum is wrong",
        ("a torn or lost write of the storage", "a program that wrote into the file"),
        ("vmlockctl dump-leases LEASE_FILE", *_STORAGE_LOOK), _DAMAGE_DO, (-229,),
        (r"Lease checksum error in leader", r"verify_leader .*wrong checksum"), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_DBLOCK_CHECKSUM", SANLOCK, "one host's ballot record in the lease is damaged, and blocks everybody",
        ("a torn or lost write of the storage", "a program that wrote into the file"),
        ("vmlockctl dump-leases LEASE_FILE", *_STORAGE_LOOK), _DAMAGE_DO, (-214,),
        (r"Lease checksum error in dblock",), (_NOT_WHILE_HELD,),
    ),
    Message(
        "SANLK_DBLOCK_LVER", SANLOCK, "another host is ahead in the contest for the lease (a newer version)",
        (*_RACE, "if it lasts: a slow host put an old record back, or one host's ballot record is damaged"),
        ("vmlockctl dump-leases LEASE_FILE",),
        ("try again; if it lasts, one 'vmlockctl acquire' of the disk puts the old record right",),
        (-212,), (r"acquired by another host in new ballot",),
    ),
    Message(
        "SANLK_DBLOCK_MBAL", SANLOCK, "another host is ahead in the contest for the lease (a higher ballot)",
        _RACE, (_WHO,), ("try again",), (-213,), (r"acquired by another host in current ballot",),
    ),
    Message(
        "SANLK_AIO_TIMEOUT", SANLOCK,
        "the storage did not answer within io_timeout; the write may still happen, so its outcome is unknown",
        ("the storage or the network to it hangs or is overloaded", "io_timeout is too short for this storage"),
        _STORAGE_LOOK, ("mend the storage; what was unknown is settled when it answers",),
        (-202,), (r"\bIO timeout\b", r"aio timeout", r"renewal error -202", r"delta_renew read timeout"),
        ("do not assume that what timed out was not written",),
    ),
    Message(
        "SANLK_WD_ERROR", SANLOCK, "the watchdog daemon cannot be reached",
        ("wdmd does not run", "no watchdog device (/dev/watchdog): load softdog or the hardware's driver"),
        ("systemctl status wdmd", "ls -l /dev/watchdog*"),
        ("systemctl start wdmd", "or run sanlock without it (use_watchdog = 0): less safe"), (-203,),
        (r"Watchdog device error", r"wdmd_connect failed", r"activate_watchdog failed"),
    ),
    Message(
        "SANLK_DBLOCK_READ", SANLOCK, "the storage failed in the middle of an acquire",
        ("I/O errors, a path that was lost, storage that hangs",), _STORAGE_LOOK, ("mend the storage, try again",),
        (-210, -211), (r"Lease (read|write) error in dblock",),
    ),
    Message(
        "SANLK_LEADER_READ", SANLOCK, "the storage failed at the lease record",
        ("I/O errors, a path that was lost, storage that hangs",), _STORAGE_LOOK, ("mend the storage, try again",),
        (-220, -221), (r"Lease (read|write) error in leader",),
    ),
    Message(
        "SANLK_LEADER_DIFF", SANLOCK, "the copies of the lease on several disks disagree",
        ("one of the disks was replaced or cut off",), ("vmlockctl dump-leases LEASE_FILE",), (), (-222,),
        (r"Lease read inconsistent",),
    ),
    Message(
        "SANLK_ADDLS_SIZES", SANLOCK, "sector size and align size do not go together",
        ("512 goes with 1M; 4096 with 1M, 2M, 4M or 8M",), (), ("name a valid pair",), (-230,),
    ),
    Message(
        "SANLK_ADDLS_INVALID_HOSTID", SANLOCK, "the host id is beyond what the lockspace has room for",
        ("host ids go from 1 to 2000; with 4096-byte sectors and 1M areas to 250",),
        ("vmlockctl dump-leases LEASE_DIR/__LIBVIRT__DISKS__",), ("choose a lower host id",), (-231,),
        (r"Unable to add lockspace .*Unknown error",),
    ),
    Message(
        "SANLK_REQUEST_MAGIC", SANLOCK, "the request record of the lease is damaged, or of another version",
        ("damage, or a lease that was never formatted as a whole",), ("vmlockctl dump-leases LEASE_FILE",), (),
        (-270, -271), (r"[Rr]equest block invalid",),
    ),
    Message(
        "SANLK_REQUEST_OLD", SANLOCK, "the request is over: the lease, or another request, is newer",
        ("somebody acquired the lease meanwhile", "another host asks for it too"), (_WHO,),
        ("ask again: vmlockctl request DISK",), (-272, -273), (r"newer (lease|request) version",),
    ),
    Message(
        "SANLK_RINDEX", SANLOCK, "the resource index of the lease volume is damaged or another's",
        ("damage, or a volume that was never formatted as an index",), ("vmlockctl dump-leases DEVICE",),
        ("sanlock client rebuild -x INDEX, when no host uses it",), (-274, -275, -276, -277, -278),
    ),
    Message(
        "SANLK_ERROR", SANLOCK, "a general error: an aborted join, or the release of something not held",
        ("the lockspace is being removed", "a release of a lease that is not held"),
        ("sanlock client log_dump",), (), (-201,), (r"\bGeneral error\b",),
    ),
    Message(
        "check_our_lease", SANLOCK,
        "the host lease was not renewed in time: VMs are about to be stopped, or are being stopped",
        ("the storage of the lockspace hangs or fails", "the daemon is starved of CPU or memory",
         "(corrupt) somebody took or overwrote this host id"),
        (_STATUS, *_STORAGE_LOOK), ("mend the storage; the VMs can be started again when the host has joined again",),
        (), (r"check_our_lease (warning|failed|corrupt)", r"set killing_pids"),
    ),
)  # fmt: skip
