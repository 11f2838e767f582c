"""The long proofs: ``python -m tests.proofs NAME`` runs one to full size; the tests run a slice of each."""
