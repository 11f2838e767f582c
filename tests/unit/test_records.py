"""Our ``NamedTuple`` behaves as the standard one, as far as the package and its tests use it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from vmlockctl.records import NamedTuple


class Pair(NamedTuple):
    """Two fields."""

    left: int
    right: str = "r"

    @property
    def both(self) -> str:
        return f"{self.left}{self.right}"

    @classmethod
    def of(cls, left: int) -> Pair:
        return cls(left)


class Alone(NamedTuple):
    pass


def test_fields_and_defaults() -> None:
    pair = Pair(1)
    assert (pair.left, pair.right) == (1, "r")
    assert pair == (1, "r") == Pair(left=1) == Pair(1, right="r") == Pair.of(1)
    assert pair.both == "1r"
    assert Pair._fields == ("left", "right")
    assert hash(pair) == hash((1, "r"))
    assert repr(pair) == "Pair(left=1, right='r')"
    assert isinstance(pair, tuple)
    assert Alone() == ()


def test_replace_asdict_make() -> None:
    pair = Pair(1)
    assert pair._replace(right="x") == Pair(1, "x")
    assert pair._replace(left=0, right="") == Pair(0, "")
    assert pair._asdict() == {"left": 1, "right": "r"}
    assert Pair._make([3, "y"]) == Pair(3, "y")
    assert type(pair._replace(left=2)) is Pair


def call(*values: Any, **named: Any) -> Any:
    return Pair(*values, **named)


def test_wrong_arguments() -> None:
    for wrong in (call, lambda: call(1, "a", 3), lambda: call(1, middle=2), lambda: call(right="x")):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError):
        Pair(1)._replace(middle=2)  # type: ignore[call-arg]


def test_immutable() -> None:
    with pytest.raises(AttributeError):
        Pair(1).left = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Pair(1).other = 2  # type: ignore[attr-defined]


def test_a_value_given_twice_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        call(1, left=2)


def test_copies() -> None:
    assert copy.copy(Pair(1)) == Pair(1)
    assert copy.deepcopy(Pair(1)) == Pair(1)
    assert pickle.loads(pickle.dumps(Pair(1))) == Pair(1)
