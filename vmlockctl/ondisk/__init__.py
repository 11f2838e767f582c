"""Bytes <-> values: no files, no clock, no randomness (sanlock-format.md sections 1 and 2)."""
