"""``faults.rst`` names a test that exists, for every fault that it says is provoked."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PROVOKED, NOT_YET = (
    part.split(".. list-table::")[1]
    for part in (TOP / "tests" / "faults.rst").read_text(encoding="utf-8").split("\nNot provoked yet\n")
)
TEST = re.compile(r"``(tests/[\w/]+\.py)::(\w+)``")


def rows_of(table: str) -> list[list[str]]:
    """The cells of every row, without the headings."""
    rows = [re.split(r"\n {5}- ", row) for row in table.split("\n   * - ")[1:]]
    return [[" ".join(cell.split()) for cell in row] for row in rows[1:]]


ROWS = rows_of(PROVOKED)


@cache
def names_in(path: Path) -> set[str]:
    """The functions of a module, as pytest collects them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_row_names_a_test_that_exists(row: list[str]) -> None:
    assert len(row) == 4, row
    assert all(row), "a fault, what must happen, how it is provoked, and by which test"
    named = TEST.fullmatch(row[3])
    assert named is not None, row[3]
    path, name = named.groups()
    assert name.startswith("test_"), name
    assert name in names_in(TOP / path), f"{path} has no test {name}"


def test_no_fault_is_named_twice() -> None:
    faults = [row[0] for row in ROWS]
    assert len(faults) >= 120
    assert sorted(set(faults)) == sorted(faults)


def test_what_is_not_provoked_yet_is_said() -> None:
    """Rows move from there to the table above, never the other way."""
    assert len(rows_of(NOT_YET)) <= 1
