"""The parts of check-orphans: what may be wrong, one concept a file, and what is safe to do about it."""
