"""Hosts, clocks, storage and faults in virtual time, for the shipped procedures of ``lease`` (``simulate``).

clockwork   the event heap, and the tasks that it resumes
disk        the sectors, and what a read may see of them
weather     what goes wrong with an I/O, and what else happens then
machine     one host: clocks, power, daemon, watchdog, and the stopping of its VMs
renewing    the daemon's renewals
leasing     the commands, and the daemon's work on leases
converting  looks that confirm what was written, and conversions
checker     who holds what, and the counter that nothing else protects
scenario    one world from one seed: its size, its speed, its faults, its phases
memo        pure codec functions, remembered
"""
