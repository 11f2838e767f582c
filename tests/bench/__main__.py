"""Measure, and print one table: what was measured, the target, met or missed.

A missed target is a result, not a failure: the status is 0 unless something could not be measured.
"""

from __future__ import annotations

import argparse
import compileall
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import vmlockctl
from tests.bench.commands import measure_acquire, measure_dump
from tests.bench.daemon import measure_daemon
from tests.bench.explain import measure_explain
from tests.bench.harness import CannotMeasure, Figure

VERDICTS = {True: "met", False: "MISSED", None: ""}


def print_figure(figure: Figure) -> None:
    print(
        f"{figure.what:<44} {figure.value:>12}  {figure.target:<10} {VERDICTS[figure.met]}".rstrip(),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--dir", default="/var/tmp", help="where to work; needs O_DIRECT, 3 GiB (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="the median of so many (%(default)s)")
    parser.add_argument("--rest", type=int, default=60, help="seconds to watch the daemon (%(default)s)")
    parser.add_argument(
        "only", nargs="*", metavar="MEASURE", help="acquire, dump, daemon, explain; default: all"
    )
    arguments = parser.parse_args()
    measures: dict[str, Callable[[Path], list[Figure]]] = {
        "acquire": partial(measure_acquire, rounds=arguments.rounds),
        "dump": partial(measure_dump, rounds=arguments.rounds),
        "explain": partial(measure_explain, rounds=arguments.rounds),
        "daemon": partial(measure_daemon, rest_seconds=arguments.rest),
    }
    if unknown := set(arguments.only) - set(measures):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    # As any installed package is; an editable one may not be, where PYTHONDONTWRITEBYTECODE is set.
    compileall.compile_dir(str(Path(vmlockctl.__file__).parent), quiet=1)
    status = 0
    for name in arguments.only or measures:
        with tempfile.TemporaryDirectory(prefix="vmlockctl-bench-", dir=arguments.dir) as directory:
            try:
                for figure in measures[name](Path(directory)):
                    print_figure(figure)
            except CannotMeasure as problem:
                print(f"{name}: not measured: {problem}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
