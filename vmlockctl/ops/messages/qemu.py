"""What QEMU and its tools say when an image is locked (libvirt-and-qemu.md section 4.3)."""

from __future__ import annotations

from vmlockctl.ops.messages.entry import QEMU, Message

_WHO = "vmlockctl explain {disk}"
_NO_FORCE = "do not use -U or locking=off to get past it: two writers destroy the file system inside"

MESSAGES = (
    Message(
        "shared \"write\" lock", QEMU, "somebody writes the image, and this program needs that nobody does",
        ("a VM runs with the disk, and a tool (qemu-img info, check, convert) or a read-only VM wants it",
         "it is the backing file of what is started here, and a VM runs with it as its own disk",
         "one of two VMs has share-rw (<shareable/>), the other has not"),
        (_WHO,), ("stop the VM that writes it; or, only to look: qemu-img info -U {disk}",), (),
        (r"Failed to get shared \"(?P<permission>[\w ]+)\" lock",),
        ("what -U reads while a VM writes may be inconsistent: never convert or copy with it",),
    ),
    Message(
        "\"write\" lock", QEMU, "this QEMU wants to write the image, and somebody forbids writers",
        ("another VM has the image, also a paused one",
         "a tool has it open (qemu-img, qemu-nbd, a backup), or an overlay of it is in use: it is a backing file",
         "no process of this host: another NFS client's, or a lock that the storage did not let go"),
        (_WHO,), ("stop or end the holder that is named",), (),
        (r"Failed to get \"(?P<permission>[\w ]+)\" lock",), (_NO_FORCE,),
    ),
    Message(
        "Failed to lock byte", QEMU, "the file system refuses file locks as such; nobody need hold the image",
        ("NFSv3 without lockd, or mounted nolock", "SMB or a FUSE file system without locks", "permissions"),
        ("findmnt -T {disk}",), ("mount it with locks (NFSv4), or move the image to a file system that has them",),
        (), (r"Failed to (un)?lock byte (?P<byte>\d+)",),
        ("locking=off takes away the protection on this host: only with leases, and knowingly",),
    ),
    Message(
        "Is another process using the image", QEMU, "the image is locked; the line before says which way",
        ("another VM or a tool has the image open",), (_WHO,), ("stop or end the holder that is named",), (),
        (r"(?s)\A(?!.*Failed to get).*Is another process using the image(?: \[(?P<disk>[^\]]*)\])?",), (_NO_FORCE,),
    ),
    Message(
        "force-share", QEMU, "force-share=on (-U) goes with read-only images alone",
        ("it was given for a writable image",), (), ("add read-only=on, or leave force-share out",), (),
        (r"force-share=on can only be used with read-only images",),
    ),
    Message(
        "no OFD locks", QEMU, "the kernel has no open-file-description locks: QEMU falls back to weaker ones",
        ("a kernel older than 3.15",), (), ("run a newer kernel",), (),
        (r"OFD locking syscall is unavailable",),
    ),
)  # fmt: skip
