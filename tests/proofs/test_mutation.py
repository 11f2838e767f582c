"""Mutation testing of the codecs and the durations (``mutation``); needs the extra of that name."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

import pytest

from tests.proofs import mutation


def test_the_list_of_equivalent_mutants_can_be_read() -> None:
    assert all(reason for reason in mutation.equivalents().values())


@pytest.mark.long
@pytest.mark.skipif(not find_spec("mutmut"), reason="mutmut is not installed (pip install '.[mutation]')")
def test_nine_of_ten_mutants_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutation.main(argparse.Namespace(workers=2)) == 0, capsys.readouterr().out
