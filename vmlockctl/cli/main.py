"""The entry point: the one place that turns a condition into text on stderr and an exit status.

``acquire``, ``release``, ``run`` and ``daemon`` are parsed by ``params``, because wrapper scripts call
them on every VM start and loading click takes longer than the acquire. Whatever ``params`` does not
understand (help, a typing mistake, every other command) goes to click, which knows the same tables.
"""

from __future__ import annotations

import os
import sys

from vmlockctl.cli import params
from vmlockctl.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, VmlockctlError
from vmlockctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Optional


def main(argv: Optional[list[str]] = None) -> NoReturn:
    """Run one command and exit with the status of the table in ``errors``."""
    arguments = sys.argv[1:] if argv is None else argv
    status = _run(arguments)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    # Not sys.exit: a thread that hangs in the storage must not keep the process waiting for it.
    os._exit(status)


def _run(arguments: list[str]) -> int:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug, as_json = "--debug" in own, "--json" in own
    try:
        return _dispatch(arguments)
    except VmlockctlError as error:
        if debug:
            _print_traceback()
        report(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("vmlockctl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough ("| head"); nothing more may be written, not even by a flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the last place where our own bug can be told
        if debug:
            _print_traceback()
        bug = VmlockctlError(
            f"unexpected: {type(error).__name__}: {error}",
            hint="this is a bug of vmlockctl; run it again with --debug and report what it prints",
        )
        report(bug, as_json=as_json)
        return EXIT_BUG


def _dispatch(arguments: list[str]) -> int:
    invocation = params.parse(arguments)
    if invocation is not None:
        return invocation.execute()
    from vmlockctl.cli.app import run_click

    return run_click(arguments)


def report(error: VmlockctlError, *, as_json: bool) -> None:
    """One line of what, one of what to do; or one object."""
    if as_json:
        import json

        content = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "sanlk_rv": error.sanlk_rv,
            "details": error.details,
        }
        print(json.dumps({"error": content}, default=str), file=sys.stderr)
        return
    print(f"vmlockctl: {_one_line(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {_one_line(error.hint)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return (
        safe(text)
        .encode(sys.stderr.encoding or "utf-8", "backslashreplace")
        .decode(sys.stderr.encoding or "utf-8")
    )


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()
