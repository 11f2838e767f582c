"""``status`` for a person: problems first, in words, then hosts with a bar of their age, leases, VMs.

Only loaded for a terminal. Every name goes through ``safe`` and into a ``Text``: neither a terminal nor
rich's markup obeys it. The state is always a word; colour only repeats it. On a screen of a given height
every row is one line, and what does not fit is counted, the dull first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vmlockctl import clock
from vmlockctl.ops.overview import CRITICAL, Problem, Vm, own_problems, problems, vms
from vmlockctl.text import format_seconds, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Optional

    from rich.console import RenderableType

    from vmlockctl.cli.watching import Sight
    from vmlockctl.ops.status import Host, Lease, Status

STATE_STYLES = {
    "live": "green",
    "fail": "bold yellow",
    "dead": "bold red",
    "lost": "bold red",
    "damaged": "bold red",
    "gone": "bold yellow",
    "unknown": "yellow",
    "joining": "cyan",
    "leaving": "cyan",
    "free": "dim",
    "left": "dim",
}
_LOUD = ("fail", "dead", "lost", "damaged", "gone")
# What is looked at first; states that are not named come last.
_HOST_ORDER = ("fail", "dead", "unknown", "live")
_LEASE_ORDER = ("damaged", "gone", "dead", "fail", "unknown", "live", "free")
_NOT_OURS = "NOT OURS"
# The bar explains itself as well as its width allows.
_BAR_HEADINGS = ("LAST RENEWAL: w warn, f fail, d dead", "w warn, f fail, d dead", "RENEWED")
_ROWS = 40  # of each kind, where there is no height to fit into
_BAR_WIDTH = 40
_WIDE = 76
_LINES_OF_TABLE = 4  # besides its rows: a blank one, title, headings, the count of the rest


def open_console() -> Console:
    return Console(no_color=bool(os.environ.get("NO_COLOR")), highlight=False, markup=False, emoji=False)


def screen(
    sight: Sight[Status], *, console: Console, height: Optional[int] = None, program: str = "vmlockctl"
) -> RenderableType:
    """Everything, as wide as the console; at most ``height`` lines where that is given."""
    return _Screen(sight, console, height, program).lines()


class _Screen:
    def __init__(self, sight: Sight[Status], console: Console, height: Optional[int], program: str) -> None:
        self._seen = sight.seen
        self._sight = sight
        # While no look succeeds nobody knows what became of anything: ages stand still.
        self._passed = 0.0 if sight.trouble else sight.age
        self._console = console
        self._width = console.width
        self._gap = 2 if console.width >= _WIDE else 1  # between columns
        self._height = height
        self._program = program
        self._bar = ("█", "░") if console.encoding.startswith("utf") else ("#", ".")
        self._cut = "…" if console.encoding.startswith("utf") else "~"

    def lines(self) -> Group:
        # Without a look only this host is known: by its own records, which are not in that storage.
        of_whom = own_problems if self._sight.trouble else problems
        found = list(of_whom(self._seen, self._program))
        top = [*self._headline(len(found)), *self._trouble(), *self._problems(found), *self._this_host()]
        hosts = sorted(self._seen.hosts, key=_host_order)
        leases = sorted(self._seen.leases, key=_lease_order)
        machines = vms(self._seen)
        rooms = self._rooms(len(top), len(hosts), len(leases), sum(len(vm.disks) for vm in machines))
        return Group(
            *top,
            *self._section("hosts", hosts, rooms[0], self._hosts, _host_state),
            *self._section("leases", leases, rooms[1], self._leases, _lease_state),
            *self._section("disks of VMs here", _disks_of(machines), rooms[2], self._vms, lambda _: ""),
        )

    # -- what fits ----------------------------------------------------------------------------------

    def _rooms(self, used: int, *wanted: int) -> list[int]:
        """Rows for each section: what it wants, or its share of the lines left; the last give way."""
        if self._height is None:
            return [_ROWS] * len(wanted)
        tables = len(wanted)
        while tables and self._lines_left(used, tables, len(wanted)) < tables:
            tables -= 1
        left = self._lines_left(used, tables, len(wanted))
        rooms = [0] * len(wanted)
        for position, index in enumerate(sorted(range(tables), key=lambda i: wanted[i])):
            rooms[index] = min(wanted[index], left // (tables - position))
            left -= rooms[index]
        return rooms

    def _lines_left(self, used: int, tables: int, sections: int) -> int:
        assert self._height is not None
        return self._height - used - _LINES_OF_TABLE * tables - 2 * (sections - tables)

    def _section(
        self,
        title: str,
        rows: Sequence[Any],
        room: int,
        table: Callable[[Sequence[Any]], Table],
        state: Callable[[Any], str],
    ) -> list[RenderableType]:
        if not rows:
            return [Text(), Text(f"no {title}", style="dim")]
        title_line = Text(title.upper(), style="bold") + Text(f"  {len(rows)}{_counts(rows, state)}")
        shown, rest = rows[:room], rows[room:]
        parts: list[RenderableType] = [Text(), self._line(title_line)]
        if shown:
            parts.append(table(shown))
        if shown and rest:
            parts.append(self._line(Text(f"and {len(rest)} more{_counts(rest, state)}", style="dim")))
        return parts

    def _line(self, text: Text) -> Text:
        """One line of the screen; without a height nothing is cut."""
        if self._height is not None:
            text.truncate(self._width, overflow="ellipsis")
        return text

    # -- the top --------------------------------------------------------------------------------------

    def _headline(self, count: int) -> list[Text]:
        area = self._seen.lockspace.area
        if self._sight.trouble:
            verdict = Text(" CANNOT LOOK ", style="bold white on red")
        elif count:
            verdict = Text(f" {count} PROBLEM{'S' if count > 1 else ''} ", style="bold white on red")
        else:
            verdict = Text(" NO PROBLEMS ", style="bold black on green")
        now = clock.rfc3339(self._seen.observed_at + self._passed)
        place = f"  {safe(self._seen.lockspace.space_name)} {safe(area.path)}"
        if area.offset:
            place += f":{area.offset}"
        return [self._line(verdict + Text(f"  {now}") + Text(place, style="dim"))]

    def _trouble(self) -> list[Text]:
        sight = self._sight
        if not sight.trouble:
            return []
        ago = format_seconds(clock.wall() - sight.trouble_since)
        since = f"no look since {clock.rfc3339(sight.trouble_since)}, for {ago}: {safe(sight.trouble)}"
        below = f"all but this host is from {clock.rfc3339(self._seen.observed_at)} and may have changed"
        return [*self._wrapped(since, "bold red"), *self._wrapped(below, "")]

    def _problems(self, found: Sequence[Problem]) -> list[Text]:
        """Each in words, with the next command; on a screen at most a third of it."""
        lines: list[Text] = []
        for number, problem in enumerate(found):
            style = "bold red" if problem.severity == CRITICAL else "bold yellow"
            told = self._wrapped(f"{problem.severity.upper()}: {safe(problem.text)}", style)
            told += self._wrapped(f"    {safe(problem.command)}", "")
            if self._height is not None and lines and len(lines) + len(told) > self._height // 3:
                left = found[number:]
                worse = sum(problem.severity == CRITICAL for problem in left)
                lines.append(Text(f"and {len(left)} more problems, {worse} critical", style="bold red"))
                break
            lines += told
        return lines

    def _wrapped(self, text: str, style: str) -> list[Text]:
        return list(Text(text, style=style).wrap(self._console, self._width))

    def _this_host(self) -> list[Text]:
        host = self._seen.this_host
        if host is None:
            return [Text(), Text("THIS HOST  has not joined this lockspace", style="bold")]
        line = Text("THIS HOST  ", style="bold") + Text(safe(host["host_name"])) + Text("  ")
        line += _state_text(host["state"])
        if host["expires_in"] is not None:
            line += Text(f", expires in {format_seconds(max(0.0, host['expires_in'] - self._passed))}")
        line += Text(f"  host id {host['host_id']}, generation {host['generation']}")
        daemon = f"process {host['daemon_pid']}" if host["daemon_pid"] else "NOT RUNNING"
        standby = f"process {host['standby_pid']}" if host["standby_pid"] else "NONE"
        more = f"           guarantee level L{host['level']}, daemon {daemon}, standby {standby}"
        return [Text(), self._line(line), self._line(Text(more))]

    # -- tables ---------------------------------------------------------------------------------------

    def _table(self, *columns: tuple[str, int]) -> Table:
        """Columns of the widths given; a cell that is longer goes on below, unless every row is one line."""
        table = Table(box=None, padding=(0, self._gap, 0, 0), pad_edge=False, header_style="dim")
        for heading, width in columns:
            overflow = "fold" if self._height is None else "ellipsis"
            table.add_column(
                heading,
                width=max(width, cell_len(heading)),
                no_wrap=self._height is not None,
                overflow=overflow,  # type: ignore[arg-type]
            )
        return table

    def _path(self, text: str, width: int) -> Text:
        """A path of at most ``width`` cells where rows are one line: its end tells more than its start."""
        text = safe(text)
        if self._height is not None and cell_len(text) > width:
            while cell_len(text) >= width and text:
                text = text[1:]
            text = self._cut + text
        return Text(text)

    def _hosts(self, hosts: Sequence[Host]) -> Table:
        ids = [f"{host.host_id}{'*' if host.this_host else ''}" for host in hosts]
        id_width = max(map(len, ids))
        name_width = min(max(cell_len(safe(h.host_name)) for h in hosts), max(12, self._width // 4 - 3))
        bar = self._width - (id_width + name_width + 7 + 11 + 11 + 5 * self._gap)
        bar = max(len(_BAR_HEADINGS[-1]), min(_BAR_WIDTH, bar))
        heading = next(text for text in _BAR_HEADINGS if len(text) <= bar)
        table = self._table(
            ("ID", id_width), ("HOST", name_width), ("STATE", 7), (heading, bar), ("AGE", 11), ("DEAD IN", 11)
        )
        for host_id, host in zip(ids, hosts):
            age = None if host.age is None else host.age + self._passed
            dead_in = None if host.dead_in is None else max(0.0, host.dead_in - self._passed)
            table.add_row(
                Text(host_id),
                Text(safe(host.host_name)),
                _state_text(self._state_of(host)),
                renewal_bar(age, host, bar, *self._bar),
                Text(_seconds(age)),
                Text("now" if dead_in == 0 else _seconds(dead_in)),
            )
        return table

    def _state_of(self, host: Host) -> str:
        """This host's as it knows it itself: it may have lost its lease while its record is still fresh."""
        ours = self._seen.this_host
        return str(ours["state"]) if ours is not None and host.this_host else host.state

    def _leases(self, leases: Sequence[Lease]) -> Table:
        """As many columns as fit, the disk in what is left."""
        columns = [("OWNER", 10), ("STATE", 7), ("FREE IN", 11), ("VM", 8)]
        if self._width >= _WIDE:
            columns = [("OWNER", 12), ("STATE", 7), ("FREE IN", 11), ("VM", 10)]
        columns += [("PID", 8), ("MODE", 9)] if self._width >= 90 else []
        columns += [("LVER", 6)] if self._width >= 110 else []
        disk = self._width - sum(width + self._gap for _, width in columns) - self._gap
        table = self._table(("DISK", disk), *columns)
        for lease in leases:
            cells = self._lease_cells(lease)
            name = self._path(lease.disk, disk) if lease.disk else Text(safe(lease.resource), style="dim")
            table.add_row(name, *(cells[heading] for heading, _ in columns))
        return table

    def _lease_cells(self, lease: Lease) -> dict[str, Text]:
        owners = lease.owners
        takeover = None if lease.takeover_in is None else max(0.0, lease.takeover_in - self._passed)
        free_in = "-" if not owners else "now" if takeover == 0 else _takeover(owners, takeover)
        return {
            "OWNER": Text(", ".join(safe(o["host_name"] or f"host {o['host_id']}") for o in owners) or "-"),
            "STATE": _state_text(_lease_state(lease)),
            "FREE IN": Text(free_in),
            "VM": Text(", ".join(safe(o["vm"]) for o in owners if o["vm"]) or "-"),
            "PID": Text(", ".join(str(o["pid"]) for o in owners if o["pid"]) or "-"),
            "MODE": Text(lease.mode),
            "LVER": Text("-" if lease.lver is None else str(lease.lver)),
        }

    def _vms(self, rows: Sequence[tuple[str, str, str, str]]) -> Table:
        columns = [("VM", 16 if self._width >= _WIDE else 10), ("PID", 8), ("LEASE", 9)]
        disk = self._width - sum(width + self._gap for _, width in columns) - self._gap
        table = self._table(*columns, ("DISK", disk))
        for name, pid, lease, path in rows:
            style = "bold red" if lease == _NOT_OURS else ""
            table.add_row(Text(safe(name)), Text(pid), Text(lease, style=style), self._path(path, disk))
        return table


# -- bars and cells ----------------------------------------------------------------------------------


def renewal_bar(age: Optional[float], host: Host, width: int, full: str, empty: str) -> Text:
    """The age of the last renewal against dead, which fills it; w and f stand where warn and fail are."""
    if age is None:
        return Text()
    filled = min(width, int(age * width / host.dead_after))
    bar = [full] * filled + [empty] * (width - filled)
    warn = min(host.warn_after * width // host.dead_after, width - 3)
    fail = min(max(host.fail_after * width // host.dead_after, warn + 1), width - 2)
    bar[warn], bar[fail], bar[-1] = "w", "f", "d"
    text = Text("".join(bar))
    text.stylize(STATE_STYLES.get(host.state, ""), 0, filled)
    text.stylize("dim", filled, width)
    return text


def _state_text(state: str) -> Text:
    return Text(state.upper() if state in _LOUD else state, style=STATE_STYLES.get(state, ""))


def _seconds(value: Optional[float]) -> str:
    return "-" if value is None else format_seconds(value)


def _takeover(owners: Sequence[dict[str, Any]], seconds: Optional[float]) -> str:
    """Waiting helps only with an owner that is silent: one that lives renews."""
    if seconds is None or any(owner["state"] in ("live", "unknown") for owner in owners):
        return "-"
    return format_seconds(seconds)


# -- what is interesting -----------------------------------------------------------------------------


def _rank(state: str, order: Sequence[str]) -> int:
    return order.index(state) if state in order else len(order)


def _host_state(host: Host) -> str:
    return host.state


def _host_order(host: Host) -> tuple[bool, int, int]:
    """What is wrong, then this host, then the others."""
    is_dull = host.state not in _LOUD
    return (is_dull and not host.this_host, _rank(host.state, _HOST_ORDER), host.host_id)


def _lease_state(lease: Lease) -> str:
    """The state of the owner; of several, of the one that is most alive."""
    if lease.damage:
        return "damaged"
    if lease.owners and lease.takeover_in == 0.0 and all(o["state"] != "dead" for o in lease.owners):
        return "gone"  # left, or joined again since
    states = [owner["state"] for owner in lease.owners]
    return max(states, key=lambda state: _rank(state, _LEASE_ORDER)) if states else "free"


def _lease_order(lease: Lease) -> tuple[int, str]:
    return (_rank(_lease_state(lease), _LEASE_ORDER), lease.disk or lease.resource)


def _disks_of(machines: Sequence[Vm]) -> list[tuple[str, str, str, str]]:
    """A row for each disk of each VM."""
    return [
        (
            vm.name or "?",
            ", ".join(map(str, vm.pids)) or "gone",
            _NOT_OURS if disk.lease_is_ours is False and disk.state == "held" else disk.mode,
            disk.disk,
        )
        for vm in machines
        for disk in vm.disks
    ]


def _counts(rows: Sequence[Any], state: Callable[[Any], str]) -> str:
    """``: 1 dead, 2 live``; "" for rows that have no state."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[state(row)] = counts.get(state(row), 0) + 1
    counts.pop("", None)
    return ": " * bool(counts) + ", ".join(f"{count} {name}" for name, count in counts.items())
