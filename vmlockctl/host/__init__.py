"""What this machine knows: its processes, run directory, QEMU command lines and other lock managers."""
