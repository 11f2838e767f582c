"""The layer table of the design, held by a test.

Imports are read from the source, also those inside functions and under TYPE_CHECKING: a layer that knows
another's types knows that layer. What the hot commands really load is seen by running them.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import run_command, standing_process
from tests.support.vmhost import VmHost

PACKAGE = Path(__file__).parent.parent / "vmlockctl"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

# The base modules, each of which may import those before it.
BASE = ("errors", "records", "fastjson", "units", "clock", "text", "log", "specs", "config")

MAY_IMPORT = {
    "ondisk": {"base"},
    "lease": {"base", "ondisk"},
    "storage": {"base", "lease.steps"},
    "host": {"base"},
    "daemon": {"base", "ondisk", "lease", "storage", "host"},
    "managers": {"base", "ondisk", "lease", "storage", "host", "daemon"},
    "ops": {"base", "ondisk", "lease", "storage", "host", "daemon", "managers"},
    "cli": {"base", "ops"},
    "__main__": {"cli"},
}

# A module or a name of a module -> the layers and files that may use it.
ONLY_HOMES = {
    "time": {"clock.py"},
    "tomllib": {"config.py"},
    "tomli": {"config.py"},
    "struct": {
        "ondisk",
        "host/imagelocks.py",  # struct flock, as fcntl wants it
        "host/blockusers.py",  # struct loop_info64, as ioctl gives it
        "host/sanlockd.py",  # the messages of sanlock's socket
    },
    "psutil": {"host"},
    "subprocess": {"host"},
    "fcntl.flock": {"host"},
    "fcntl.lockf": {"host"},
    "os.pidfd_open": {"host"},
    "signal.pidfd_send_signal": {"host"},
    "mmap": {"storage"},
    "os.preadv": {"storage"},
    "os.pwritev": {"storage"},
    "os.O_DIRECT": {"storage"},
    "random": {"ops"},
    "syslog": {"log.py"},
    "click": {"cli"},
    "rich": {"cli"},
    "sys.exit": {"cli"},
    "os.abort": set(),
}

# What has no I/O, no clock and no threads cannot import the ways to them.
PURE_LAYERS = {"ondisk", "lease"}
IMPURE = {"os", "io", "socket", "select", "selectors", "signal", "threading", "pathlib", "tempfile", "fcntl"}

# Names that need no import to be used.
ONLY_HOME_CALLS = {"print": {"cli"}, "exit": set(), "quit": set(), "breakpoint": set()}

NEVER_ON_THE_HOT_PATH = {"click", "rich", "psutil", "tomli", "tomllib", "dataclasses", "inspect"}

MODULES = sorted(PACKAGE.rglob("*.py"))
MODULE_IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each imported dotted name and its line; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def used_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield what is imported, and each ``module.attribute`` that is used."""
    yield from imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}", node.lineno


def layer_of(module: str) -> str:
    """Return the layer of ``vmlockctl.LAYER...``, or ``base`` for a base module."""
    first = module.split(".")[1]
    return "base" if first in BASE else first


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def may_import(importer: str, imported: str) -> bool:
    layer, target = layer_of(importer), layer_of(imported)
    if layer == "base" and target == "base":
        return BASE.index(imported.split(".")[1]) < BASE.index(importer.split(".")[1])
    if layer == target:
        return True
    allowed = MAY_IMPORT.get(layer, set())
    return target in allowed or any(within(imported, f"vmlockctl.{module}") for module in allowed)


def is_home(path: Path, homes: set[str]) -> bool:
    relative = str(path.relative_to(PACKAGE))
    return any(relative == home or relative.startswith(home + "/") for home in homes)


def module_name(path: Path) -> str:
    return ".".join(["vmlockctl", *path.relative_to(PACKAGE).with_suffix("").parts])


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_layers(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    wrong = [
        f"line {line}: {name}"
        for name, line in imported_names(parse(path))
        # "from vmlockctl import __version__" is open to all.
        if name.startswith("vmlockctl.") and name != "vmlockctl.__version__"
        if not may_import(module_name(path), name)
    ]
    assert not wrong, f"{module_name(path)} may not import these"


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_every_module_belongs_to_a_layer(path: Path) -> None:
    if path != PACKAGE / "__init__.py":
        assert layer_of(module_name(path)) in {"base", *MAY_IMPORT}


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_only_homes(path: Path) -> None:
    wrong = [
        f"line {line}: {name}"
        for name, line in used_names(parse(path))
        for restricted, homes in ONLY_HOMES.items()
        if within(name, restricted) and not is_home(path, homes)
    ]
    wrong += [
        f"line {node.lineno}: {node.func.id}()"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ONLY_HOME_CALLS and not is_home(path, ONLY_HOME_CALLS[node.func.id])
    ]
    assert not wrong, f"{path.name} is not the home of these"


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_ondisk_and_lease_are_pure(path: Path) -> None:
    if not is_home(path, PURE_LAYERS):
        return
    assert not [(name, line) for name, line in imported_names(parse(path)) if name.split(".")[0] in IMPURE]
    opens = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    ]
    assert not opens


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_proc_is_read_in_host_only(path: Path) -> None:
    wrong = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.startswith("/proc/") and not is_home(path, {"host"})
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_imports_are_absolute(path: Path) -> None:
    assert not [
        node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.level
    ]


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    too_long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long


# Runs one command and writes the names of all loaded modules, just before the process would end or, with
# "run", become the command.
PROBE = """
import json, os, sys

exit_now = os._exit

def report(status=0):
    with open(report_path, "w") as out:
        json.dump(sorted(sys.modules), out)
    sys.stderr.flush()
    exit_now(status)

os._exit = report
os.execv = os.execve = os.execvp = os.execvpe = lambda *_: report()
report_path = sys.argv[1]
sys.argv = ["vmlockctl", *sys.argv[2:]]
from vmlockctl.cli.main import main
main()
"""


def modules_loaded_by(host: VmHost, report: Path, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROBE, str(report), *arguments]
    done = run_command(command, environment=host.environment)
    assert done.returncode == 0, done
    return set(json.loads(report.read_text()))


def modules_of_a_bare_python() -> set[str]:
    """Return what the interpreter loads by itself: the .pth files of an environment may load anything."""
    listing = run_command([sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"])
    return set(json.loads(listing.stdout))


def test_hot_commands_load_nothing_slow(host: VmHost, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    slow = NEVER_ON_THE_HOT_PATH - modules_of_a_bare_python()
    with standing_process() as process:
        hot_commands = {
            "acquire": ["--pid", str(process.pid), str(disk)],
            "release": ["--pid", str(process.pid), str(disk)],
            "run": ["--disk", str(disk), "--", "true"],
        }
        loaded = {
            verb: modules_loaded_by(host, tmp_path / "modules.json", verb, *arguments) & slow
            for verb, arguments in hot_commands.items()
        }
    assert loaded == {verb: set() for verb in hot_commands}
