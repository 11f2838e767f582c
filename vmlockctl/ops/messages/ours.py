"""What vmlockctl says: its conditions and exit codes, which name most of this themselves."""

from __future__ import annotations

from vmlockctl.ops.messages.entry import OURS, Message

_WHO = "vmlockctl explain {disk}"
_STATUS = "vmlockctl status"

MESSAGES = (
    Message(
        "lease-held", OURS, "the disk's lease is held by another host",
        ("the VM, or another with this disk, runs there", "that host died, and is not dead for the others yet"),
        (_WHO, _STATUS), ("stop it there, or wait with --wait: a dead host's lease expires by itself",), (75,),
        (r"vmlockctl: .*its lease is held (?:exclusive|shared)", r"vmlockctl: .*the lease .* is held by host"),
        ("do not delete the lease file",),
    ),
    Message(
        "lease-held-locally", OURS, "the disk is in use by a process of this host",
        ("the VM is started a second time", "a tool or another VM has the disk open"), (_WHO,),
        ("stop the process that is named",), (),
        (r"vmlockctl: .*is in use (?:exclusive|shared) by (?:process|a process)", r"vmlockctl: .*is open for writing"),
    ),
    Message(
        "race-lost", OURS, "another host won the lease in the same moment",
        ("two hosts started the VM at once",), (_WHO,), ("look where it runs; try again if it runs nowhere",), (),
        (r"vmlockctl: .*(?:won the lease|changed hands)",),
    ),
    Message(
        "not-joined", OURS, "this host is not in the lockspace, or its daemon does not run",
        ("add-host was never run, or remove-host was", "the join is not finished yet",
         "the daemon was killed, with its standby"),
        (_STATUS,), ("vmlockctl add-host TARGET --host-id N", "vmlockctl daemon"), (69,),
        (r"vmlockctl: .*has not joined", r"vmlockctl: .*daemon .*(?:cannot be started|not running)"),
    ),
    Message(
        "host-lease-lost", OURS, "this host could not renew its host lease in time: its VMs are, or were, stopped",
        ("the lease directory's storage hung or failed", "somebody took or formatted this host id",
         "the whole host was frozen"),
        (_STATUS, "the log (journalctl -t vmlockctl)"),
        ("mend the storage; the daemon joins again by itself, then start the VMs again",), (76,),
        (r"vmlockctl: .*host lease .*lost", r"vmlockctl: .*no longer ours", r"host lease lost:"),
        ("do not start the VMs elsewhere before this host is dead there, or was seen to be off",),
    ),
    Message(
        "io-timeout", OURS, "the storage did not answer in time; what was asked of it may still happen",
        ("the storage or the network to it hangs", "io_timeout is too short for it"),
        (_STATUS, "the kernel log (dmesg)"), ("mend the storage; what was unknown is settled then",), (74,),
        (r"vmlockctl: .*(?:no answer from the storage|an earlier I/O has not come back)",),
    ),
    Message(
        "damaged", OURS, "what is on the disk there cannot be understood; nothing was written",
        ("a torn or lost write", "another program's file", "a copied, renamed or truncated lease file"),
        ("vmlockctl dump-leases LEASE_FILE",),
        ("make sure that no VM uses the disk, keep a copy, move the file away; the next acquire makes a new one",),
        (65,), (r"vmlockctl: .*(?:wrong (?:magic|checksum|version|lockspace|resource)|has a wrong checksum|absurd)",),
        ("do not format it while any VM may use the disk",),
    ),
    Message(
        "no-such", OURS, "there is no such lockspace, lease or disk; or this host does not hold the lease",
        ("a typing mistake", "the lease directory is not mounted", "it was released already"), (_STATUS,), (), (66,),
        (r"vmlockctl: .*no such (?:lockspace|disk)", r"vmlockctl: .*holds no lease"),
    ),
    Message(
        "refused", OURS, "permission is denied, or a safety check said no; the hint names the way past it, if any",
        ("another user's process or file", "a process may still write the disk", "a disk with names no lease covers"),
        (), ("do what the hint says",), (77,), (r"vmlockctl: .*may still (?:write|open) the disk",),
    ),
    Message("usage", OURS, "the command line is wrong", ("see vmlockctl COMMAND --help",), numbers=(64,)),
    Message("bug", OURS, "vmlockctl has a bug", ("run it again with --debug and report what it prints",),
            numbers=(70,), patterns=(r"vmlockctl: unexpected:",)),
    Message("cannot-create", OURS, "it exists already, or there is no room for it",
            ("a lockspace with hosts in it is there", "a full disk"), (_STATUS,), (), (73,)),
    Message("config", OURS, "the configuration is wrong, or more than one lockspace is possible",
            ("an unknown key in /etc/vmlockctl.toml", "several lockspaces are joined and none is named"),
            (), ("name one with -L, or mend the file",), (78,)),
    Message("gave-up-waiting", OURS, "--wait ran out of time", ("the lease was busy for that long",), (_WHO,),
            ("wait longer, or stop the holder",), (124,), (r"vmlockctl: gave up waiting",)),
    Message("interrupted", OURS, "Ctrl-C; the disk is consistent", ("somebody interrupted it",), numbers=(130,)),
    Message("cannot-execute", OURS, "run: the command cannot be executed, or was not found",
            ("no such program, or no execute permission",), numbers=(126, 127)),
)  # fmt: skip
