"""The options of the commands on the hot path, declared once and understood twice.

``parse`` reads a plain, correct call without loading click; ``app`` builds click commands from the same
tables for everything else: help, completion, and the message for a call that is not correct.
"""

from __future__ import annotations

from vmlockctl.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

FLAG = "flag"
TEXT = "text"
INTEGER = "integer"
SECONDS = "seconds"  # --wait[=SECONDS]
NUMBER = "number"  # not negative
MANY = "many"  # repeatable text


class Option(NamedTuple):
    flags: tuple[str, ...]
    dest: str
    kind: str
    help: str
    metavar: str = ""

    @property
    def default(self) -> Any:
        return {FLAG: False, MANY: (), NUMBER: 0.0}.get(self.kind)


class Command(NamedTuple):
    """A command; its module ``vmlockctl.cli.NAME`` has ``execute(context, values, words)``."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: str  # metavar of the positional arguments; "" = none
    words_required: bool = False
    rest_is_command: bool = False
    any_words: bool = False  # what looks like an option and is none is a word
    more_help: str = ""

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


class Context(NamedTuple):
    """The options that every command has."""

    run_dir: Optional[str] = None
    lockspace: Optional[str] = None
    json: bool = False
    debug: bool = False
    quiet: bool = False


COMMON = (
    Option(
        ("-L", "--lockspace"),
        "lockspace",
        TEXT,
        "Lease directory, or sanlock's NAME:HOST_ID:PATH:OFFSET (VMLOCKCTL_LOCKSPACE).",
        "TARGET",
    ),
    Option(("--run-dir",), "run_dir", TEXT, "This host's run directory (VMLOCKCTL_RUN_DIR).", "DIR"),
    Option(("--json",), "json", FLAG, "Print one JSON object; errors too, on stderr."),
    Option(("--debug",), "debug", FLAG, "Print a traceback with an error."),
    Option(("-q", "--quiet"), "quiet", FLAG, "Print no progress and no notices."),
)
_LEASE_OPTIONS = (
    Option(("--wait",), "wait", SECONDS, "Wait for busy leases; at most so long where given.", "SECONDS"),
    Option(("--vm",), "vm", TEXT, "Name of the VM, for people who look for the holder.", "NAME"),
    Option(("--uuid",), "uuid", TEXT, "UUID of the VM.", "UUID"),
    Option(("--lver",), "lver", INTEGER, "Only if nobody held the lease since this version of it.", "N"),
    Option(
        ("--allow-alias",),
        "allow_alias",
        FLAG,
        "Accept a disk that has names which no lease covers.",
    ),
    Option(("--require-level",), "require_level", INTEGER, "Refuse below this guarantee level.", "1|2|3"),
)

ACQUIRE = Command(
    "acquire",
    "Acquire the leases of all DISKs, or none, for a running process.",
    (
        *_LEASE_OPTIONS,
        Option(("--pid",), "pid", INTEGER, "The process; default: the caller's.", "PID"),
        Option(("--shared",), "shared", FLAG, "Shared leases, for disks that are only read."),
    ),
    "DISK...",
    words_required=True,
)
RELEASE = Command(
    "release",
    "Release leases; refused while a process may still write the disk.",
    (
        Option(("--pid",), "pid", INTEGER, "The process that holds them; default: the caller's.", "PID"),
        Option(("--to-shared",), "to_shared", FLAG, "Keep them, as shared leases."),
        Option(("--evidence",), "evidence", FLAG, "Another host's leases, once it is proven to be gone."),
        Option(("--wait",), "wait", SECONDS, "With --evidence: wait until a silent owner is.", "SECONDS"),
        Option(
            ("--i-know",),
            "i_know",
            TEXT,
            "With --evidence: you know this instance to be powered off or fenced.",
            "HOST:GENERATION",
        ),
    ),
    "[DISK]...",
)
RUN = Command(
    "run",
    "Acquire the leases of COMMAND's disks and become COMMAND (same pid).",
    (
        *_LEASE_OPTIONS,
        Option(
            ("--disk",),
            "disk",
            MANY,
            "A disk that COMMAND uses; ',shared' if it is only read.",
            "DISK[,shared]",
        ),
        Option(("--no-auto-disks",), "no_auto_disks", FLAG, "Do not look for disks on COMMAND's line."),
        Option(
            ("-E", "--conflict-exit-code"),
            "conflict_exit_code",
            INTEGER,
            "Exit status when busy, not 75.",
            "N",
        ),
    ),
    "COMMAND...",
    words_required=True,
    rest_is_command=True,
)
DAEMON = Command(
    "daemon",
    "Renew host leases and watch claimed processes, in the foreground.",
    (Option(("--background",), "background", FLAG, "Log to syslog, not to stderr."),),
    "",
)
EXPLAIN = Command(
    "explain",
    "Why a disk is in use, and what to do; or what an error means.",
    (
        Option(("--observe",), "observe", NUMBER, "Watch the hosts so long.", "SECONDS"),
        Option(("--watch",), "watch", FLAG, "Look again every second, until the disk is free."),
    ),
    "DISK|ERROR",
    words_required=True,
    any_words=True,  # an error such as -243
    more_help="DISK is any name of it: an image, an overlay, a device, a lease file, the name of a VM, "
    "a process id. ERROR is a number, a name, or a line of sanlock, libvirt, QEMU or vmlockctl.",
)
COMMANDS = {command.name: command for command in (ACQUIRE, RELEASE, RUN, DAEMON, EXPLAIN)}


class Invocation(NamedTuple):
    command: Command
    context: Context
    values: dict[str, Any]
    words: list[str]

    def execute(self) -> int:
        """Load the command's module and run it; return the exit status."""
        module = __import__(f"vmlockctl.cli.{self.command.module}", fromlist=["execute"])
        status: int = module.execute(self.context, self.values, self.words)
        return status


def parse(arguments: list[str]) -> Optional[Invocation]:
    """Understand a plain call of a hot command; None for everything else, right or wrong."""
    values: dict[str, Any] = {}
    command: Optional[Command] = None
    known = {flag: option for option in COMMON for flag in option.flags}
    words: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if command is None and not argument.startswith("-"):
            command = COMMANDS.get(argument)
            if command is None:
                return None
            known.update((flag, option) for option in command.options for flag in option.flags)
        elif argument == "--" or not argument.startswith("-") or argument == "-":
            if command is None:
                return None
            rest = argument == "--" or command.rest_is_command
            words += arguments[position - (argument != "--") :] if rest else [argument]
            if rest:
                break
        else:
            used = _read_option(known, argument, arguments[position : position + 1], values)
            if used is None:
                return None
            position += used
    if command is None or (command.words_required and not words) or (words and not command.words):
        return None
    context = Context(**{field: values.pop(field) for field in Context._fields if field in values})
    for option in command.options:
        values.setdefault(option.dest, option.default)
    return Invocation(command, context, values, words)


def _read_option(
    known: dict[str, Option], argument: str, following: list[str], values: dict[str, Any]
) -> Optional[int]:
    """Store one option; return how many further arguments it used, or None if it is not plain."""
    flag, equals, text = argument.partition("=")
    option = known.get(flag)
    if option is None or (equals and not flag.startswith("--")):
        return None
    if option.kind == FLAG:
        values[option.dest] = True
        return None if equals else 0
    if option.kind == SECONDS:
        value = _seconds(text) if equals else float("inf")
        values[option.dest] = value
        return 0 if value is not None else None
    if not equals:
        if not following:
            return None
        text = following[0]
    if option.kind == INTEGER:
        if not text.isdecimal():
            return None
        values[option.dest] = int(text)
    elif option.kind == NUMBER:
        number = _seconds(text)
        if number is None:
            return None
        values[option.dest] = number
    elif option.kind == MANY:
        values[option.dest] = (*values.get(option.dest, ()), text)
    else:
        values[option.dest] = text
    return 0 if equals else 1


def _seconds(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value >= 0 else None
