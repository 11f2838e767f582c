"""What tests ask of ``explain``: the exit status and the answer, and what a right answer must name."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

from tests.support.programs import Result

STATUSES = {"free": 0, "stale": 0, "busy": 75, "unknown": 66}
KEYS = {"schema", "disk", "resource", "verdict", "holders", "free_in", "advice"}


class Host(Protocol):
    """Where ``vmlockctl`` is run."""

    def call(self, *arguments: str) -> Result: ...


class Answer(NamedTuple):
    status: int
    json: dict[str, Any]
    text: str

    @property
    def verdict(self) -> str:
        return str(self.json["verdict"])

    @property
    def holders(self) -> list[dict[str, Any]]:
        return list(self.json["holders"])

    @property
    def layers(self) -> list[tuple[str, str, bool]]:
        return [(holder["layer"], holder["mode"], holder["blocks"]) for holder in self.holders]

    @property
    def commands(self) -> list[str]:
        return [step["command"] for step in self.json["advice"] if step["command"]]

    @property
    def facts(self) -> list[tuple[str, str]]:
        return [(fact["name"], fact["value"]) for fact in self.json["facts"]]

    def holder(self, layer: str) -> dict[str, Any]:
        """The only holder of a layer."""
        found = [holder for holder in self.holders if holder["layer"] == layer]
        assert len(found) == 1, self
        return found[0]


def explain(host: Host, *what: object) -> Answer:
    """Explain as JSON and as text, which must agree."""
    words = [str(word) for word in what]
    result = host.call("explain", "--json", *words)
    assert result.returncode in (0, 65, 66, 75), result
    answer = json.loads(result.stdout)
    assert set(answer) >= KEYS, answer
    expected = 65 if answer["damaged"] else STATUSES[answer["verdict"]]
    assert result.returncode == expected, result
    text = host.call("explain", *words)
    assert text.returncode == result.returncode, text
    return Answer(result.returncode, answer, text.stdout)


def explain_error(host: Host, text: str) -> str:
    """What a pasted error means, in words."""
    result = host.call("explain", text)
    assert result.returncode == 0, result
    return result.stdout
