"""``faults.rst`` names a test that exists for every fault that it says is provoked."""

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
NAMED = re.findall(r"``(tests/[\w/]+\.py)::(\w+)``", PROVOKED)
ROWS = PROVOKED.count("   * - ") - 1  # without the headings


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_a_test() -> None:
    assert len(NAMED) == ROWS >= 45


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)), ids=str)
def test_the_test_exists(path: str, name: str) -> None:
    assert name in names_in(TOP / path)


def test_what_is_not_provoked_yet_is_said() -> None:
    """Rows move from there to the table above, never the other way."""
    assert NOT_YET.count("   * - ") - 1 <= 8
