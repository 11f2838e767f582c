"""``vmlockctl dump-leases``. Next: ``ops/dump_leases.py``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from vmlockctl.cli.app import CONTEXT_SETTINGS, common_options, context_of
from vmlockctl.cli.output import SCHEMA, print_table
from vmlockctl.config import load
from vmlockctl.ops.disknames import DiskNames
from vmlockctl.ops.dump_leases import CLEARED, LOCKSPACE, AreaDump, dump, with_disks
from vmlockctl.ops.session import administered_target, open_session
from vmlockctl.text import safe

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command("dump-leases", context_settings=CONTEXT_SETTINGS)
@click.argument("paths", nargs=-1, metavar="[PATH[:OFFSET[:SIZE]]]...")
@click.option("--all-blocks", is_flag=True, help="Every record, also those that were never used.")
@click.option(
    "--images", multiple=True, metavar="DIR", help="Look for the disks of unnamed leases there too."
)
@common_options
@click.pass_context
def command(ctx: click.Context, paths: tuple[str, ...], *, all_blocks: bool, images: tuple[str, ...]) -> int:
    """Decode every record of lease areas: files, devices, or lease directories. Never writes."""
    context = context_of(ctx)
    if not paths:
        session = open_session(run_dir=context.run_dir, lockspace=context.lockspace)
        target = administered_target(session, None, load())
        paths = (target.lease_dir or target.path,)
    areas = with_disks(dump(paths, all_blocks=all_blocks), DiskNames(images))
    if context.json:
        _print_json(areas)
    else:
        _print_text(areas)
    return 0


def _print_json(areas: Iterable[AreaDump]) -> None:
    """One object, written area by area: a device of 10,000 leases needs no memory of them."""
    sys.stdout.write(f'{{"schema": {SCHEMA}, "areas": [')
    separator = ""
    encode = json.JSONEncoder().encode
    for area in areas:
        sys.stdout.write(separator + encode(area.as_dict()))
        separator = ",\n"
    sys.stdout.write("]}\n")


def _print_text(areas: Iterable[AreaDump]) -> None:
    for area in areas:
        size = "" if area.sector_size is None else f" {area.sector_size}/{(area.align_size or 0) >> 20}M"
        print(f"{safe(area.path)}:{area.offset}: {area.kind}{size}")
        if area.kind == LOCKSPACE:
            _print_hosts(area.leaders or [])
        elif area.rindex is not None:
            _print_rindex(area.rindex)
        elif area.leader is not None:
            _print_resource(area, area.leader)
        for finding in area.damage:
            number = "" if finding["sanlk_rv"] is None else f" ({finding['sanlk_rv']})"
            print(f"  damaged at {finding['offset']}: {safe(finding['text'])}{number}")
        print()


def _print_hosts(leaders: list[dict[str, Any]]) -> None:
    if not leaders:
        print("  no host has ever joined")
        return
    print_table(
        ("HOST_ID", "HOST_NAME", "GENERATION", "TIMESTAMP", "IO_TIMEOUT", "LOCKSPACE", "ASKS"),
        [
            (
                str(record["host_id"]),
                record["host_name"],
                str(record["owner_generation"]),
                str(record["timestamp"]) if record["timestamp"] else "0 (free)",
                str(record["io_timeout"]),
                record["space_name"],
                " ".join(map(str, record["bitmap"])) or "-",
            )
            for record in leaders
        ],
    )


def _print_resource(area: AreaDump, leader: dict[str, Any]) -> None:
    free = "free" if leader["timestamp"] == 0 else f"timestamp {leader['timestamp']}"
    print(f"  resource {safe(leader['resource_name'])} in lockspace {safe(leader['space_name'])}")
    if area.disk is not None:
        print(f"  disk {safe(area.disk)} ({safe(area.disk_source or '')})")
    if area.kind == CLEARED:
        print("  cleared")
    print(
        f"  lver {leader['lver']}, {free}, owner {leader['owner_id']} generation "
        f"{leader['owner_generation']}, written by {leader['write_id']} generation "
        f"{leader['write_generation']}"
    )
    if area.request is not None and area.request["force_mode"]:
        print(f"  request for lver {area.request['lver']}, mode {area.request['force_mode']}")
    if area.owner_note is not None:
        stale = "" if area.owner_note["current"] else " (of an earlier owner)"
        note = ", ".join(f"{key} {value}" for key, value in area.owner_note.items() if key != "current")
        print(f"  owner note{stale}: {safe(note)}")
    if area.lvb is not None:
        value = bytes.fromhex(area.lvb).decode("utf-8", "surrogateescape")
        print(f"  lock value block {area.lvb} '{safe(value)}'")
    if area.dblocks:
        print_table(
            ("HOST_ID", "LVER", "MBAL", "BAL", "INP", "INP2", "INP3", "FLAGS"),
            [
                (
                    str(dblock["host_id"]),
                    *(str(dblock[field]) for field in ("lver", "mbal", "bal", "inp", "inp2", "inp3")),
                    _flags(dblock),
                )
                for dblock in area.dblocks
            ],
        )


def _print_rindex(index: dict[str, Any]) -> None:
    print(f"  resource index of lockspace {safe(index['space_name'])}, room for {index['max_resources']}")
    if index["entries"]:
        print_table(
            ("ENTRY", "OFFSET", "RESOURCE", "DISK"),
            [
                (str(entry["entry"]), str(entry["offset"]), entry["name"], entry.get("disk") or "-")
                for entry in index["entries"]
            ],
        )


def _flags(dblock: dict[str, Any]) -> str:
    words = []
    if dblock["released"]:
        words.append("released")
    if dblock["shared"]:
        words.append(f"shared by generation {dblock['mode_generation']}")
    if not dblock["valid"]:
        words.append("damaged")
    return " ".join(words) or "-"
