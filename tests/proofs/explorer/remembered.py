"""What a suspended procedure still remembers: two that remember the same go on in the same way.

A generator cannot be copied, but it can be compared. Its future is decided by where each of its frames
stands, the locals that are read again before they are written, and the evaluation stack (the iterators
of its loops, an exception that is being handled). What it has forgotten, such as the image of a read
that was already judged, tells histories apart and futures not.

``remembered`` gives None where it meets a value that it cannot compare: then the history itself is
what tells two procedures apart, which is finer and as sound. ``tests.proofs.test_explore`` compares both.
"""

from __future__ import annotations

import dis
import gc
import sys
import types
from collections.abc import Hashable, Set
from functools import cache
from typing import Any, Optional

from tests.proofs.explorer.image import Image

_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))
_BY_NAME = frozenset((types.FunctionType, types.BuiltinFunctionType, types.ModuleType))
_HEADER = frozenset((types.FunctionType, types.CodeType, types.FrameType))  # of the frame itself
_ITERATORS = frozenset((type(iter(range(0))), type(iter([])), type(iter(())), enumerate))
_LEAVES = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
_ALWAYS_JUMPS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE"}
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)


class _Incomparable(Exception):
    pass


def remembered(procedure: Any, constants: Set[int] = frozenset()) -> Optional[Hashable]:
    """A value that is equal for two suspended generators only if they go on in the same way.

    ``constants``: the ids of objects that are kept, and of which no equals are made.
    """
    frames: list[Hashable] = []
    try:
        while procedure is not None:
            inner = procedure.gi_yieldfrom
            frames.append(_frame(procedure, inner, constants))
            procedure = inner
    except _Incomparable:
        return None
    return tuple(frames)


def _frame(procedure: Any, inner: Any, constants: Set[int]) -> Hashable:
    frame = procedure.gi_frame
    values = frame.f_locals
    names = _live_locals(frame.f_code)[frame.f_lasti]
    kept = tuple([(name, _value(values[name], constants)) for name in names if name in values])
    stack = tuple([_value(item, constants) for item in _stack(procedure, values, inner)])
    return id(frame.f_code), frame.f_lasti, kept, stack


def _stack(procedure: Any, values: dict[str, Any], inner: Any) -> list[Any]:
    """What the frame refers to besides its locals: each local accounts for one reference."""
    locals_left: dict[int, int] = {}
    for value in values.values():
        locals_left[id(value)] = locals_left.get(id(value), 0) + 1
    frame, items = procedure.gi_frame, []
    known = (inner, values, frame.f_globals, frame.f_builtins)
    # Until Python 3.10 a generator refers to its frame, and the frame to the stack.
    for value in gc.get_referents(frame if sys.version_info < (3, 11) else procedure):
        if locals_left.get(id(value)):
            locals_left[id(value)] -= 1
        elif type(value) not in _HEADER and not any(value is other for other in known):
            items.append(value)
    return items


def _value(value: Any, constants: Set[int]) -> Hashable:
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if id(value) in constants or kind in _BY_NAME:
        return kind, id(value)
    if kind is list or isinstance(value, tuple):
        return kind, tuple([_value(item, constants) for item in value])
    if kind is dict:
        return kind, tuple([(_value(key, constants), _value(item, constants)) for key, item in value.items()])
    if kind is Image:
        return kind, value.whole()
    if kind is range:
        return kind, value.start, value.stop, value.step
    if kind in _ITERATORS:
        return kind, _value(value.__reduce__(), constants)
    if kind is types.CellType:
        return kind, _value(value.cell_contents, constants)
    if isinstance(value, BaseException):
        return kind, _value(value.args, constants), _value(vars(value), constants)
    if isinstance(value, type):
        return kind, id(value)
    raise _Incomparable(kind)


@cache
def _live_locals(code: Any) -> dict[int, tuple[str, ...]]:
    """For each instruction: the locals that may be read after it before they are written.

    An exception can arise anywhere, so what any handler reads counts everywhere.
    """
    instructions = list(dis.get_instructions(code))
    handlers = {i.argval for i in instructions if i.opname.startswith("SETUP_")}
    handlers |= {i.offset for i in instructions if i.opname == "PUSH_EXC_INFO"}
    after: dict[int, set[int]] = {}
    for number, i in enumerate(instructions):
        after[i.offset] = set(handlers)
        if i.opcode in _JUMPS:
            after[i.offset].add(i.argval)
        if i.opname not in _LEAVES | _ALWAYS_JUMPS and number + 1 < len(instructions):
            after[i.offset].add(instructions[number + 1].offset)
    cells = {*code.co_cellvars, *code.co_freevars}
    before: dict[int, set[str]] = {i.offset: set() for i in instructions}
    changed = True
    while changed:
        changed = False
        for i in reversed(instructions):
            live = set(cells).union(*(before[target] for target in after[i.offset]))
            if i.opname == "STORE_FAST":
                live.discard(i.argval)
            else:
                live |= _names(i, code)
            if live != before[i.offset]:
                before[i.offset], changed = live, True
    return {
        i.offset: tuple(sorted(cells.union(*(before[target] for target in after[i.offset]))))
        for i in instructions
    }


def _names(instruction: dis.Instruction, code: Any) -> set[str]:
    if "FAST" not in instruction.opname:
        return set()
    value = instruction.argval
    return set(value) if isinstance(value, tuple) else {value} & set(code.co_varnames)
