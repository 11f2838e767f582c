"""What libvirt says of locks (libvirt-and-qemu.md sections 2.5 and 3), the misleading words first."""

from __future__ import annotations

from vmlockctl.ops.messages.entry import LIBVIRT, Message

_STATUS = "sanlock client status"
_WHO = "vmlockctl explain DISK"
_LOG = "the log of libvirtd (journalctl -u libvirtd): the join failed there, with the real reason"
_REJOIN = (
    "restart libvirtd, which joins when it starts (or sanlock client add_lockspace); it never tries again"
)

MESSAGES = (
    Message(
        "acquire: No space left on device", LIBVIRT,
        "sanlock has not joined the lockspace, or has lost it. It has nothing to do with disk space",
        ("the join failed when libvirtd started", "the sanlock daemon was restarted since",
         "the storage of the lockspace failed, and its VMs were stopped"),
        (_STATUS, _LOG), (_REJOIN,), (-28,),
        (r"Failed to acquire lock: No space left on device", r"lock.*No space left on device"),
        ("do not clean up the disk for it",),
    ),
    Message(
        "acquire: File exists", LIBVIRT,
        "this same host holds the lease already. It has nothing to do with a file that exists",
        ("another VM of this host uses the disk", "a 'sanlock client command' holds it",
         "the disk was attached while this VM was paused: its lease is taken twice at the resume"),
        (_STATUS, _WHO),
        ("stop the other VM",
         "after an attach while paused: vmlockctl explain VM has the command that lets go of that disk's lease; then virsh resume"),
        (-17,), (r"Failed to acquire lock: File exists",),
        ("do not rely on virsh detach-disk meanwhile: it says 'detached', but a paused guest lets no disk go",),
    ),
    Message(
        "acquire: Message too long", LIBVIRT,
        "the lease file, or the lockspace file, is cut short or empty. It has nothing to do with a message",
        ("a crash between creating and formatting the lease file: libvirt takes 'exists' for 'formatted'",
         "a full disk when it was created", "somebody truncated it"),
        ("ls -l LEASE_DIR", "vmlockctl dump-leases LEASE_FILE"),
        ("if no VM uses the disk: move the short file away; the next start makes a new one",), (-90,),
        (r"Failed to acquire lock: Message too long", r"Message too long"),
        ("do not delete a lease file of full size: it may be held",),
    ),
    Message(
        "acquire: Resource temporarily unavailable", LIBVIRT,
        "other hosts hold the lease shared, and it was wanted exclusively",
        ("the disk is <shareable/> in VMs of other hosts, and not here",
         "a host that died held it shared, and is not dead for the others yet"),
        (_WHO,), ("stop the VMs that share it, or make it <shareable/> here too",), (-11,),
        (r"Failed to acquire lock: Resource temporarily unavailable",),
    ),
    Message(
        "acquire: Is a directory", LIBVIRT, "there is a directory where the lease file should be",
        ("somebody made it",), ("ls -ld LEASE_DIR/*",), ("remove the directory, if it is empty",), (-21,),
        (r"Failed to acquire lock: Is a directory",),
    ),
    Message(
        "acquire: No such file or directory", LIBVIRT, "the lease file is missing",
        ("a <lease> names a path that is not there", "a cleanup removed it between two steps of the start",
         "the lease directory is not mounted here"),
        ("ls -l LEASE_DIR", "mount"), ("mount the directory; or try again, the next start makes the file",), (-2,),
        (r"Failed to acquire lock: No such file or directory",),
    ),
    Message(
        "acquire: Permission denied", LIBVIRT, "the sanlock daemon may not open the lease file",
        ("the file is 0600 of another user: only 'group' is set in qemu-sanlock.conf, not 'user'",
         "root_squash on NFS", "SELinux"),
        ("ls -lZ LEASE_DIR", "grep -E '^(user|group)' /etc/libvirt/qemu-sanlock.conf"),
        ("set user = \"sanlock\" there, chown the files", "restorecon -R LEASE_DIR"), (-13, -1),
        (r"Failed to acquire lock: (Permission denied|Operation not permitted)",),
    ),
    Message(
        "Failed to open socket to sanlock daemon", LIBVIRT, "the sanlock daemon of this host does not run",
        ("it was never started, or was stopped", "it was killed: then VMs that still run here are unprotected"),
        ("systemctl status sanlock wdmd", "vmlockctl check-orphans"),
        ("systemctl start sanlock, then restart libvirtd",), (),
        (r"Failed to open socket to sanlock daemon",),
        ("while VMs still run here: do not start sanlock under its old host name; others would take over at once",),
    ),
    Message(
        "Unable to add lockspace", LIBVIRT, "sanlock could not join the lockspace; VMs will not start afterwards",
        ("the reason stands behind the colon: explain that too",), (_STATUS, _LOG), (_REJOIN,), (),
        (r"Unable to add lockspace (?P<path>\S+?):",),
    ),
    Message(
        "Unable to create lockspace", LIBVIRT, "the lease directory is not there",
        ("it is not mounted", "disk_lease_dir names another place"),
        ("mount", "grep disk_lease_dir /etc/libvirt/qemu-sanlock.conf"), ("mount it; restart libvirtd",), (),
        (r"Unable to create lockspace (?P<path>\S+?):", r"Lockspace .* does not yet exist"),
    ),
    Message(
        "no host ID is set", LIBVIRT, "libvirt is to make leases by itself and has no host id for it",
        ("host_id is missing in /etc/libvirt/qemu-sanlock.conf",), (), ("set host_id = N, another on every host",),
        (), (r"Automatic disk lease mode enabled, but no host ID is set",),
    ),
    Message(
        "no leases specified", LIBVIRT, "the VM has writable disks and no lease, and leases are required",
        ("auto_disk_leases = 0, and the domain has no <lease>",), (),
        ("set auto_disk_leases = 1 and host_id, or add a <lease>",), (),
        (r"Read/write, exclusive access, disks were present, but no leases specified",),
    ),
    Message(
        "Too many resources", LIBVIRT, "sanlock takes at most 8 leases for one process",
        ("the VM has more than 8 writable disks",), (), ("give it fewer disks, or one <lease> for several",), (),
        (r"Too many resources \d+ for object",),
    ),
    Message(
        "Failure action is not supported", LIBVIRT, "<on_lockfailure> names what sanlock cannot do",
        ("restart and ignore are not supported",), (), ("use poweroff or pause, or leave it out",), (),
        (r"Failure action \w+ is not supported by sanlock",),
    ),
    Message(
        "virtlockd: resource is locked", LIBVIRT, "virtlockd holds the disk for another VM of this host or cluster",
        ("another VM uses the disk", "virtlockd was killed and restarted: its lock of a VM that is gone leaked"),
        (_WHO, "virsh list --all"),
        ("stop the other VM; if none runs: restart virtlockd when no VM of this host runs",), (),
        (r"Lockspace resource '(?P<disk>[^']*)' is locked",),
    ),
    Message(
        "virtlockd is absent", LIBVIRT, "libvirtd cannot reach virtlockd", ("virtlockd does not run",),
        ("systemctl status virtlockd.socket",), ("systemctl start virtlockd.socket",), (),
        (r"Failed to connect socket to '[^']*virtlockd",),
    ),
    Message(
        "migration: lock state", LIBVIRT, "source and destination do not lock in the same way",
        ("lock_manager differs between the hosts", "an old libvirt on one side"),
        ("grep lock_manager /etc/libvirt/qemu.conf, on both hosts",), ("set the same lock_manager on both",), (),
        (r"lock driver \S+ different from target", r"lock state for migration", r"migrate.*with lock manager",
         r"Migration with lock driver"),
    ),
    Message(
        "Unable to release lease", LIBVIRT, "a lease could not be given back at a pause or a stop",
        ("the lease was overwritten or taken while it was held", "the lock daemon was restarted"),
        (_WHO, _STATUS), ("look whether another host runs the VM before you resume it",), (),
        (r"Unable to release lease", r"Failed to (release|inquire) lock", r"Lockspace resource .* is not locked"),
    ),
)  # fmt: skip
