"""``python -m tests.proofs NAME [options]``: one proof, to full size unless told otherwise.

Each module of this package that is named here has ``add_arguments(parser)`` and ``main(arguments)``, which
prints one line of figures and returns the exit status: 0 only if nothing was found.
"""

from __future__ import annotations

import argparse
import importlib
import sys

PROOFS = (
    "explore", "mutants", "mutation", "timed", "simulate", "crash", "fuzz", "verdicts", "soak", "fairness",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs")
    commands = parser.add_subparsers(dest="proof", required=True)
    for name in PROOFS:
        module = importlib.import_module(f"tests.proofs.{name}")
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0].replace("%", "%%"))
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    arguments = parser.parse_args()
    return int(arguments.main(arguments))


sys.exit(main())
