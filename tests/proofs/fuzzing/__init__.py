"""What ``tests/proofs/fuzz.py`` is made of: mutations, scenes, and the readers that are given both."""
