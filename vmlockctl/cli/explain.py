"""``vmlockctl explain``. Next: ``cli/explanations.py``."""

from __future__ import annotations

from vmlockctl.ops.explain_search import Begun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmlockctl.cli.params import Context


def execute(context: Context, values: dict[str, Any], words: list[str]) -> int:
    text = " ".join(words)
    begun = Begun(text)
    # While it is at work, the rest of the program is loaded, and the lockspace is read.
    from vmlockctl.cli.explanations import explain

    try:
        return explain(context, text, begun, observe=values["observe"], watch=values["watch"])
    finally:
        begun.close()
