"""The screen of ``status``, as a person reads it: what stands first, what the bars say, what fits."""

from __future__ import annotations

import io
import os
import re

import pytest
from rich.console import Console

from tests.unit.cli.seen import claim, host, lease, seen, this_host
from vmlockctl.cli.statusscreen import renewal_bar, screen
from vmlockctl.cli.watching import Sight
from vmlockctl.host.process import Process, identify
from vmlockctl.ops.status import Status

OURS = host(1, "live", 3.0, ours=True)
LIVE = host(2, "live", 14.0)
FAILING = host(3, "fail", 101.0)
DEAD = host(4, "dead", 11160.0)
LEFT = host(5, "free", None)


def shown(
    status: Status, *, width: int = 100, height: int | None = None, age: float = 0.0, trouble: str = ""
) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True, markup=False)
    console.print(screen(Sight(status, age, trouble, 1.7e9), console=console, height=height))
    return console.export_text()


def row(text: str, name: str) -> list[str]:
    """The words of the line of a host, or of a disk's lease."""
    hosts, leases = text.split("HOSTS ")[1].split("LEASES ")
    [line] = [
        line
        for table, place in ((hosts, 1), (leases.split("DISKS OF VMS")[0], 0))
        for line in table.splitlines()
        if name in line.split()[place : place + 1]
    ]
    return line.split()


def ourselves() -> Process:
    process = identify(os.getpid())
    assert process is not None
    return process


MIXED = seen(
    [OURS, LIVE, FAILING, DEAD, LEFT],
    [
        lease("/images/free.img"),
        lease("/images/ours.img", OURS, vm="web", pid=os.getpid()),
        lease("/images/fails.img", FAILING, vm="db", pid=99),
        lease("/images/dead.img", DEAD, vm="mail"),
        lease("/images/bad.img", LIVE, damage="wrong checksum"),
    ],
    [claim("/images/ours.img", ourselves(), vm="web")],
    this_host(),
)


def test_the_order_of_the_screen() -> None:
    text = shown(MIXED)
    words = (" 3 PROBLEMS", "CRITICAL", "WARNING", "THIS HOST", "HOSTS ", "LEASES ", "DISKS OF VMS")
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "guarantee level L1" in text


def test_problems_have_the_next_command() -> None:
    lines = shown(MIXED).splitlines()
    commands = [line.strip() for line in lines if line.startswith("    vmlockctl")]
    bad = MIXED.leases[-1]
    assert commands == [
        f"vmlockctl dump-leases {bad.path}", "vmlockctl explain /images/fails.img", "vmlockctl check-orphans",
    ]  # fmt: skip


def test_what_is_wrong_stands_first_and_states_are_words() -> None:
    text = shown(MIXED)
    hosts = [line.split()[1] for line in text.split("HOSTS ")[1].split("LEASES ")[0].splitlines()[2:] if line]
    assert row(text, "host3")[2] == "FAIL"
    assert row(text, "host4")[2] == "DEAD"
    assert hosts == ["host3", "host4", "host1", "host2", "host5"]
    leases = text.split("LEASES ")[1].splitlines()
    disks = [line.split()[0] for line in leases if line.startswith("/images/")]
    assert [os.path.basename(disk) for disk in disks] == [
        "bad.img",
        "dead.img",
        "fails.img",
        "ours.img",
        "free.img",
    ]


def test_when_a_lease_is_free() -> None:
    text = shown(MIXED, width=120)
    assert row(text, "/images/dead.img")[3] == "now"
    assert " ".join(row(text, "/images/fails.img")[3:5]) == "39 s"
    assert row(text, "/images/ours.img")[3] == "-"


@pytest.mark.parametrize(
    ("age", "passed"),
    [(0.0, ""), (59.0, ""), (62.0, "w"), (79.0, "w"), (82.0, "wf"), (138.0, "wf"), (500.0, "wfd")],
)
def test_a_bar_passes_its_marks_when_the_age_does(age: float, passed: str) -> None:
    """At 140 cells a cell is a second: warn is at 60, fail at 80, dead fills it."""
    bar = renewal_bar(age, LIVE, 140, "#", ".").plain
    filled = bar.index(".") if "." in bar else len(bar)
    assert filled == min(140, age)
    assert [(bar.index(mark), mark) for mark in "wfd"] == [(60, "w"), (80, "f"), (139, "d")]
    assert "".join(mark for mark in "wfd" if bar.index(mark) < filled) == passed


@pytest.mark.parametrize("width", [7, 20, 40])
@pytest.mark.parametrize("io_timeout", [1, 10, 255])
def test_a_bar_has_its_width_and_marks_in_order(width: int, io_timeout: int) -> None:
    some = host(2, "live", 0.0, io_timeout=io_timeout)
    for age in (0.0, some.fail_after, some.dead_after * 2.0):
        bar = renewal_bar(age, some, width, "#", ".").plain
        assert len(bar) == width
        assert [mark for mark in bar if mark in "wfd"] == ["w", "f", "d"]


def test_a_longer_silence_is_a_longer_bar() -> None:
    lengths = [renewal_bar(age, LIVE, 40, "#", ".").plain.count("#") for age in range(0, 150, 10)]
    assert lengths == sorted(lengths)
    assert (lengths[0], renewal_bar(None, LEFT, 40, "#", ".").plain) == (0, "")


def test_ages_count_on_between_looks() -> None:
    assert row(shown(MIXED), "host2")[4:6] == ["14", "s"]
    assert row(shown(MIXED, age=5.0), "host2")[4:6] == ["19", "s"]
    assert "expires in 73 s" in shown(MIXED, age=5.0)


def test_trouble_stops_the_clock_and_says_since_when() -> None:
    text = shown(MIXED, age=500.0, trouble="no answer from the storage")
    assert text.startswith(" CANNOT LOOK ")
    assert "no look since 2023-11-14T22:13:20Z" in text
    assert "no answer from the storage" in text
    assert row(text, "host2")[4:6] == ["14", "s"]


def test_without_a_look_this_host_is_still_known() -> None:
    """The countdown to its own end is what matters most while the storage is away."""
    status = MIXED._replace(this_host=this_host(expires_in=12.0, problem="EIO"))
    text = shown(status, age=500.0, trouble="gone")
    assert "CRITICAL: this host cannot renew its host lease: in 12 s it is lost" in text
    assert text.count("CRITICAL") == 1
    assert "expires in 12 s" in text


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("height", [24, 50])
def test_many_hosts_and_leases_fit(width: int, height: int) -> None:
    hosts = [
        OURS,
        *(host(i, "live", 5.0) for i in range(2, 1998)),
        *(host(i, "fail", 99.0) for i in range(1998, 2001)),
    ]
    leases = [lease(f"/images/{i}.img", OURS, vm=f"vm{i}") for i in range(499)] + [
        lease("/images/late.img", hosts[-1])
    ]
    claims = [claim(f"/images/{i}.img", ourselves(), vm=f"vm{i}") for i in range(100)]
    lines = shown(seen(hosts, leases, claims, this_host()), width=width, height=height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "HOSTS  2000: 3 fail, 1997 live" in text
    assert "LEASES  500: 1 fail, 499 live" in text
    assert "host1998" in text
    assert "late.img" in text
    assert re.search(r"and \d+ more: .*\d+ live", text.split("LEASES")[0])


@pytest.mark.parametrize("width", [60, 80, 100])
def test_once_nothing_is_cut(width: int) -> None:
    long = "/images/" + "x" * 200 + ".img"
    text = shown(seen([OURS], [lease(long, OURS)], [claim(long, ourselves())], this_host()), width=width)
    assert "…" not in text
    assert "".join(text.split()).count("x") >= 400
    assert max(map(len, text.splitlines())) <= width


def test_names_obey_nothing() -> None:
    evil = "a\x1b[2J\u202e[bold red]b[/nope]"
    bad = host(2, "live", 1.0, name=evil)
    leases = [lease(f"/{evil}", bad, vm=evil, damage=evil)]
    status = seen([bad], leases, [claim(f"/{evil}", ourselves(), vm=evil)], this_host(problem=evil))
    text = shown(status, width=250)
    assert text.count("a\\x1b[2J\\u202e[bold red]b[/nope]") >= 6
    assert not any(character in text for character in "\x1b\u202e")


def test_a_lost_host_is_not_shown_live() -> None:
    text = shown(seen([OURS, LIVE], [lease("/a.img", OURS)], [], this_host(state="lost", expires_in=None)))
    assert row(text, "host1")[2] == "LOST"


@pytest.mark.parametrize(("width", "height"), [(20, 5), (1, 1), (39, 12)])
def test_a_screen_that_is_much_too_small(width: int, height: int) -> None:
    assert "PROB" in shown(MIXED, width=width, height=height) or width == 1


def test_no_problem_is_said_too() -> None:
    assert shown(seen([OURS, LIVE], [], [], this_host())).startswith(" NO PROBLEMS ")
