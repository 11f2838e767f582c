"""README, manual page and completions say what the program does: its commands, options and exit codes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from vmlockctl.cli.app import group
from vmlockctl.errors import EXIT_CODES

TOP = Path(__file__).parent.parent
README = (TOP / "README.rst").read_text(encoding="utf-8")
MANUAL = TOP / "man" / "vmlockctl.8"
COMPLETION = TOP / "completions" / "vmlockctl.bash"

# What only our own daemon passes on is not offered to people.
INTERNAL = {"--background"}


def commands() -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def long_options(command: click.Command) -> set[str]:
    context = click.Context(command)
    flags = {flag for parameter in command.get_params(context) for flag in parameter.opts}
    return {flag for flag in flags if flag.startswith("--")} - INTERNAL


def completed(*words: str) -> set[str]:
    """Return what bash would offer for the last of these words."""
    call = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vmlockctl; printf "%s\\n" "${COMPREPLY[@]}"'
    offered = subprocess.run(
        ["bash", "-c", f". {COMPLETION}; {call}", "bash", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(offered.stdout.split())


def codes_in(text: str) -> list[int]:
    """Return the numbers of an exit code table, whose rows may join some: ``126, 127``."""
    return [
        int(code) for row in re.findall(r"^\d+(?:, \d+)*", text, re.MULTILINE) for code in row.split(", ")
    ]


def test_the_readme_lists_the_exit_codes() -> None:
    table = README.split("Exit codes\n")[1].split("\nWith ``run``")[0]
    assert codes_in(table) == sorted(EXIT_CODES)


def test_the_manual_lists_the_exit_codes() -> None:
    section = MANUAL.read_text(encoding="utf-8").split(".SH EXIT STATUS\n")[1].split(".SH")[0]
    assert codes_in(section) == sorted(EXIT_CODES)


def test_the_manual_names_every_command_and_option() -> None:
    manual = MANUAL.read_text(encoding="utf-8").replace("\\-", "-")
    wanted = {option for command in commands().values() for option in long_options(command)}
    wanted |= set(commands())
    assert sorted(name for name in wanted - {"--help"} if name not in manual) == []


def test_bash_completes_the_commands() -> None:
    assert completed("vmlockctl", "") == set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_bash_completes_the_options(name: str) -> None:
    assert completed("vmlockctl", name, "--") == long_options(commands()[name]) | {"--help"}


def test_bash_leaves_the_command_of_run_alone() -> None:
    assert completed("vmlockctl", "run", "--", "qemu", "--") == set()


@pytest.mark.real("groff")
def test_the_manual_is_clean() -> None:
    command = ["groff", "-man", "-ww", "-Tutf8", "-z", str(MANUAL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
