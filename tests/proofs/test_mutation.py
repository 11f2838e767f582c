"""Mutation testing of the codecs and the durations (``mutation``); needs the extra of that name."""

from __future__ import annotations

from tests.proofs import mutation


def test_the_list_of_equivalent_mutants_can_be_read() -> None:
    assert all(reason for reason in mutation.equivalents().values())
