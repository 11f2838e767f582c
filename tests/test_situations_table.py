"""``situations.rst`` names a test for every situation, and every test of ``explain`` has its row there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_faults_table import TOP, names_in, rows_of

TEST = re.compile(r"``(tests/[\w/]+\.py)::(\w+)(\[[^]]+\])?``")
MODULES = sorted((TOP / "tests" / "host").glob("test_explain*.py"))
ROWS = rows_of((TOP / "tests" / "situations.rst").read_text(encoding="utf-8"))


def named_test(row: list[str]) -> tuple[Path, str]:
    named = TEST.fullmatch(row[2])
    assert named is not None, row
    return TOP / named[1], named[2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_row_names_a_test_that_exists(row: list[str]) -> None:
    assert len(row) == 3 and all(row), row
    path, name = named_test(row)
    assert name in names_in(path), f"{path} has no test {name}"


def test_every_test_has_a_row() -> None:
    made = {(path, name) for path in MODULES for name in names_in(path) if name.startswith("test_")}
    assert made == {named_test(row) for row in ROWS}


def test_no_situation_is_listed_twice() -> None:
    situations = [row[0] for row in ROWS]
    assert len(situations) >= 30
    assert sorted(set(situations)) == sorted(situations)
