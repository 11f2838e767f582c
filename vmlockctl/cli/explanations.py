"""What ``vmlockctl explain`` prints. Next: ``ops/explain.py`` and ``ops/explain_error.py``."""

from __future__ import annotations

from vmlockctl import clock
from vmlockctl.cli.output import columns, is_terminal, print_json
from vmlockctl.errors import EXIT_BUSY, EXIT_DATA, EXIT_NO_SUCH, EXIT_OK, NoSuchDisk
from vmlockctl.ops.explain import are_there, explain_disk, find_disks, wait_for_disk
from vmlockctl.ops.explain_world import look_around, session_for
from vmlockctl.ops.explanation import BUSY, NOBODY_KNOWS, Explanation, Holder
from vmlockctl.ops.session import open_session
from vmlockctl.ops.status import Lookout
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Optional

    from vmlockctl.cli.params import Context
    from vmlockctl.ops.explain_error import Explained
    from vmlockctl.ops.explain_search import Begun

_WATCH_SECONDS = 1.0
_CLEAR = "\x1b[H\x1b[2J"


def explain(context: Context, text: str, begun: Begun, *, observe: float, watch: bool) -> int:
    """Explain a disk or an error; ``begun`` is used for the first look at a disk."""
    wait_for_disk(begun.search, text)
    if text.startswith("-") and _explain_error(context, text):  # a number such as -243
        return EXIT_OK
    session = session_for(open_session(run_dir=context.run_dir, lockspace=context.lockspace), text)
    with Lookout(session, again=watch) as lookout:
        first: Optional[Begun] = begun
        while True:
            world = look_around(lookout, observe_seconds=observe)
            disks = find_disks(world, text)
            if not are_there(disks) and _explain_error(context, text):
                return EXIT_OK
            answers = [explain_disk(world, disk, first) for disk in disks]
            first = None
            if not answers:
                raise _nothing_known(text)
            if watch and is_terminal():
                print(_CLEAR, end="")
            _show(context, answers)
            if not watch or not any(answer.verdict == BUSY for answer in answers):
                return max(map(_exit_code, answers))
            clock.sleep(_WATCH_SECONDS)


def _exit_code(answer: Explanation) -> int:
    if answer.damaged:
        return EXIT_DATA
    return {BUSY: EXIT_BUSY, NOBODY_KNOWS: EXIT_NO_SUCH}.get(answer.verdict, EXIT_OK)


# -- a disk ------------------------------------------------------------------------------------------


def _show(context: Context, answers: Sequence[Explanation]) -> None:
    if context.json:
        objects = [_as_json(answer) for answer in answers]
        print_json(objects[0] if len(objects) == 1 else {**objects[0], "disks": objects})
        return
    for number, answer in enumerate(answers):
        if number:
            print()
        for line in _lines(answer):
            print(line)


def _lines(answer: Explanation) -> Iterator[str]:
    """The verdict first, then the evidence, then the advice."""
    yield answer.summary
    if answer.holders:
        yield ""
        yield from columns([(holder.layer, holder.text) for holder in answer.holders])
    if answer.facts:
        yield ""
        yield from columns(answer.facts)
    for text in answer.unseen:
        yield f"not seen: {safe(text)}"
    if answer.advice:
        yield ""
        yield "what to do:"
    for number, step in enumerate(answer.advice, start=1):
        yield f"  {number}. {safe(step.text)}" + (f" ({safe(step.why)})" if step.why else "")
        if step.command:
            yield f"       {safe(step.command)}"
    for text in answer.dont:
        yield f"  {safe(text)}"


def _as_json(answer: Explanation) -> dict[str, Any]:
    """The keys of the design first; more stand beside them."""
    return {
        "disk": answer.disk,
        "resource": answer.resource,
        "verdict": answer.verdict,
        "holders": [_holder_json(holder) for holder in answer.holders],
        "free_in": answer.free_in,
        "advice": [step._asdict() for step in answer.advice],
        "dont": answer.dont,
        "summary": answer.summary,
        "names": list(answer.names),
        "facts": [{"name": name, "value": value} for name, value in answer.facts],
        "unseen": answer.unseen,
        "damaged": answer.damaged,
    }


def _holder_json(holder: Holder) -> dict[str, Any]:
    since = holder.since
    return {**holder._asdict(), "since_utc": None if since is None else clock.rfc3339(since)}


# -- an error ----------------------------------------------------------------------------------------


def _nothing_known(text: str) -> NoSuchDisk:
    return NoSuchDisk(
        f"{safe(text)!r} is no disk, no VM, no process that uses one, and no error that is known",
        hint="name a path, or paste the whole line",
        details={"text": text},
    )


def _explain_error(context: Context, text: str) -> bool:
    """Say what an error means; False where it is none that is known."""
    from vmlockctl.ops.explain_error import explain_error

    found = explain_error(text)
    if context.json and found:
        print_json({"text": text, "errors": [_error_json(explained) for explained in found]})
        return True
    for number, explained in enumerate(found):
        if number:
            print()
        for line in _error_lines(explained):
            print(line)
    return bool(found)


def _error_lines(explained: Explained) -> Iterator[str]:
    from vmlockctl.ops.explain_error import commands_of

    message = explained.message
    numbers = ", ".join(str(number) for number in message.numbers)
    yield (
        f"{message.name}" + (f" ({numbers})" if numbers else "") + f", of {message.layer}: {message.meaning}"
    )
    look, do, dont = commands_of(explained)
    for heading, texts in (("usual causes", message.causes), ("look at", look), ("do", do)):
        if texts:
            yield f"{heading}:"
        yield from (f"  {number}. {safe(text)}" for number, text in enumerate(texts, start=1))
    yield from (f"  {safe(text)}" for text in dont)


def _error_json(explained: Explained) -> dict[str, Any]:
    from vmlockctl.ops.explain_error import commands_of

    message = explained.message
    look, do, dont = commands_of(explained)
    return {
        "name": message.name,
        "layer": message.layer,
        "numbers": list(message.numbers),
        "meaning": message.meaning,
        "causes": list(message.causes),
        "look": list(look),
        "do": list(do),
        "dont": list(dont),
        "disk": explained.disk,
    }
