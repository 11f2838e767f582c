"""Crash points: every I/O call of every command that writes, met by every fault (faults.md 2b and 3d, G5)."""
