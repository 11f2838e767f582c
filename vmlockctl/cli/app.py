"""The click application: every command, with the hot ones built from ``params``."""

from __future__ import annotations

from typing import Any, Callable, Optional

import click

from vmlockctl import __version__
from vmlockctl.cli import params
from vmlockctl.errors import EXIT_INTERRUPTED, UsageError

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# name -> one line of help; the module vmlockctl.cli.NAME has the click command.
LAZY = {
    "init-lockspace": "Format a lockspace, creating its directory.",
    "add-host": "Claim a host id in a lockspace.",
    "remove-host": "Give this host's id back.",
    "request": "Ask the owner of a disk's lease to let it go.",
    "status": "Hosts, leases, and the VMs behind them.",
    "dump-leases": "Every record of a lease area, decoded.",
    "check-orphans": "Leases without a process, processes without a lease.",
    "selftest": "Test the locking on your own storage.",
}


class Group(click.Group):
    """Loads a command's module when it is called: one command pays for one."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted([*LAZY, *params.COMMANDS])

    def get_command(self, _ctx: click.Context, name: str) -> Optional[click.Command]:
        if name in params.COMMANDS:
            return _from_table(params.COMMANDS[name])
        if name not in LAZY:
            return None
        module = __import__(f"vmlockctl.cli.{name.replace('-', '_')}", fromlist=["command"])
        command: click.Command = module.command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        helps = {**LAZY, **{name: table.help for name, table in params.COMMANDS.items()}}
        with formatter.section("Commands"):
            formatter.write_dl([(name, helps[name]) for name in sorted(helps)])


def _store_common(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Common options may stand before or after the verb; the later one counts."""
    if value not in (None, False):
        ctx.find_root().meta[f"common.{param.name}"] = value
    return value


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(params.COMMON):
        function = _decorator(option, callback=_store_common, expose_value=False)(function)
    return function


def context_of(ctx: click.Context) -> params.Context:
    meta = ctx.find_root().meta
    found = {field: meta.get(f"common.{field}") for field in params.Context._fields}
    return params.Context(**{field: value for field, value in found.items() if value is not None})


def _decorator(option: params.Option, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kinds: dict[str, dict[str, Any]] = {
        params.FLAG: {"is_flag": True},
        params.TEXT: {"type": str},
        params.INTEGER: {"type": int},
        params.SECONDS: {"type": float, "is_flag": False, "flag_value": float("inf")},
        params.NUMBER: {"type": click.FloatRange(0), "default": option.default},
        params.MANY: {"type": str, "multiple": True},
    }
    return click.option(
        *option.flags,
        option.dest,
        help=option.help,
        metavar=option.metavar or None,
        **kinds[option.kind],
        **more,
    )


def _from_table(table: params.Command) -> click.Command:
    settings: dict[str, Any] = dict(CONTEXT_SETTINGS)
    if table.rest_is_command:
        settings["allow_interspersed_args"] = False
    if table.any_words:
        settings["ignore_unknown_options"] = True

    @click.pass_context
    def callback(ctx: click.Context, /, words: tuple[str, ...] = (), **values: Any) -> int:
        return params.Invocation(table, context_of(ctx), values, list(words)).execute()

    function: Callable[..., Any] = callback
    if table.words:
        function = click.argument(
            "words", metavar=table.words, nargs=-1, required=table.words_required, type=click.UNPROCESSED
        )(function)
    for option in reversed(table.options):
        function = _decorator(option)(function)
    text = "\n\n".join(filter(None, (table.help, table.more_help)))
    return click.command(table.name, help=text, context_settings=settings)(common_options(function))


@click.group(cls=Group, context_settings=CONTEXT_SETTINGS, no_args_is_help=False)
@common_options
@click.version_option(__version__, prog_name="vmlockctl")
def group() -> None:
    """Make sure that a VM's disk is never written by two QEMU processes at once."""


def run_click(arguments: list[str]) -> int:
    """Parse with click and execute; return the exit status. Raises ``UsageError``."""
    try:
        result = group.main(args=arguments, prog_name="vmlockctl", standalone_mode=False)
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except SystemExit:
        raise BrokenPipeError from None  # click's answer to "| head"; ours is in main
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        path = ctx.command_path if ctx is not None else "vmlockctl"
        raise UsageError(error.format_message().rstrip("."), hint=f"see '{path} --help'") from None
    return result if isinstance(result, int) else 0
