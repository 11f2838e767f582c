"""Suspended generators compare equal only if they go on in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.proofs.explorer.remembered import remembered


def after(procedure: Any, *results: Any) -> Any:
    """What a generator remembers when it was told these results."""
    next(procedure)
    for result in results:
        procedure.send(result)
    state = remembered(procedure)
    assert state is not None
    return state


def test_the_turn_of_a_loop_is_remembered() -> None:
    def loop() -> Iterator[None]:
        for _ in range(3):
            yield

    def items(values: list[int]) -> Iterator[None]:
        for _ in sorted(values):
            yield

    assert after(loop()) == after(loop())
    assert after(loop()) != after(loop(), None)
    assert after(items([1, 2])) != after(items([1, 2]), None)
    assert after(items([1, 2])) != after(items([1, 3]))


def test_what_is_not_read_again_is_forgotten() -> None:
    def look() -> Any:
        image = yield
        kept = len(image)
        again = yield
        image = again
        yield kept, image

    assert after(look(), b"one") == after(look(), b"two"), "only the length is kept"
    assert after(look(), b"one") != after(look(), b"three")
    assert after(look(), b"one", b"x") == after(look(), b"two", b"y"), "what it asks for is not part of it"


def test_what_a_handler_reads_is_remembered() -> None:
    def careful() -> Any:
        image = yield
        try:
            yield
        except ValueError:
            yield image

    assert after(careful(), b"one") != after(careful(), b"two")


def test_inner_frames_and_handled_errors_count() -> None:
    def inner(value: int) -> Any:
        yield
        yield value

    def outer() -> Any:
        number = yield
        try:
            raise ValueError(number)
        except ValueError:
            yield from inner(number % 2)
            raise

    assert after(outer(), 1) != after(outer(), 2)
    assert after(outer(), 1) != after(outer(), 3), "the error that is raised again says so"


def test_what_cannot_be_compared_is_told() -> None:
    def keeps() -> Any:
        thing = object()
        yield
        yield thing

    procedure = keeps()
    next(procedure)
    assert remembered(procedure) is None
