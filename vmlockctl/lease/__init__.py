"""Delta leases and Disk Paxos as procedures that *yield* their I/O and waits: no I/O, no clock here."""
