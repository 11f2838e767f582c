"""What prints areas: the functions behind ``dump-leases`` and ``status``, and the text and JSON of both."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.proofs.fuzzing.areas import choose_scene, mutated_area, same
from tests.proofs.fuzzing.cases import Case, Checking, Found, Target, check_text
from tests.proofs.fuzzing.scenes import NOW, OBSERVATIONS, RESOURCE_PATH, SPACE_PATH, scene
from vmlockctl.cli import dump_leases as dump_command
from vmlockctl.cli import status as status_command
from vmlockctl.lease.delta import occupied_records
from vmlockctl.lease.liveness import NEVER_OBSERVED, observe
from vmlockctl.ondisk.geometry import NOTE_SIZE, Geometry
from vmlockctl.ops import dump_leases, status


def printed(show: Callable[[], None]) -> str:
    """What ``show`` prints, which is safe for a terminal."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        show()
    text = out.getvalue()
    with Checking():
        check_text(text)
    return text


def check_json(text: str) -> None:
    """Strict JSON in ASCII: NaN and Infinity are none."""

    def refuse(constant: str) -> float:
        raise Found(f"{constant} is not JSON")

    try:
        with Checking():
            json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise Found(f"what is printed is not JSON: {error}") from error
    if not text.isascii():
        raise Found("what is printed as JSON is not ASCII")


def _image(case: Case, path: str) -> bytes:
    made = scene(case.scene)
    image = bytearray(made.space if path == SPACE_PATH else made.resource)
    for patch in case.patches:
        if patch.path == path:
            data = patch.data[: len(image) - patch.offset]
            image[patch.offset : patch.offset + len(data)] = data
    if case.size is not None and case.patches[0].path == path:
        del image[case.size :]
    return bytes(image)


def _dump(image: bytes, path: str, *, all_blocks: bool) -> dump_leases.AreaDump:
    """As ``dump`` does it once the bytes are read; ``files.py`` has the reading too."""
    place = dump_leases._Place(path, 0, 0, None, None)
    head = image[: 2 * dump_leases.PROBE_SIZE]
    if len(head) < dump_leases.PROBE_SIZE:
        return dump_leases._too_short(place, 0, len(head))
    geometry = dump_leases._guess_geometry(head)
    magic = int.from_bytes(head[:4], "little")
    kind = dump_leases._KINDS.get(magic) or dump_leases._kind_of_damaged(head)
    if geometry is None or kind == dump_leases.UNKNOWN:
        return dump_leases._unknown(place, 0, head)
    image = image[: geometry.align_size]
    if kind == dump_leases.LOCKSPACE:
        return dump_leases._dump_lockspace(place, 0, geometry, image, all_blocks)
    note = image[-NOTE_SIZE:] if len(image) == geometry.align_size else b""
    data = image if all_blocks else image[: dump_leases._head_size(geometry, 8)]
    return dump_leases._dump_resource(place, 0, kind, geometry, data, note)


def _run_dump(case: Case) -> float:
    path = SPACE_PATH if "space" in case.action else RESOURCE_PATH
    area = _dump(_image(case, path), path, all_blocks="all" in case.action)
    if "json" in case.action:
        check_json(printed(lambda: dump_command._print_json([area])))
        return 0.0
    text = printed(lambda: dump_command._print_text([area]))
    if not text.startswith(f"{path}:0: "):
        raise Found(f"the area is not named: {text[:80]!r}")
    return 0.0


def _hosts(image: bytes, geometry: Geometry) -> dict[int, status.Host]:
    rows = dict(OBSERVATIONS)
    found = occupied_records(status.Lockspace(_area(geometry), "", 10).area, image)
    for host_id, record in found:
        rows[host_id] = observe(rows.get(host_id, NEVER_OBSERVED), record, NOW)
    return {i: status._host(i, rows[i], NOW, 10, is_ours=i == 2) for i, _ in found}


def _area(geometry: Geometry) -> Any:
    from vmlockctl.lease.steps import Area

    return Area(SPACE_PATH, 0, geometry)


def _run_status(case: Case) -> float:
    geometry = scene(case.scene).geometry
    space = _image(case, SPACE_PATH)
    hosts = _hosts(space, geometry) if len(space) == geometry.align_size else {}
    area = _dump(_image(case, RESOURCE_PATH), RESOURCE_PATH, all_blocks=False)
    lease = status.lease_of(area, hosts, None, 2)
    seen = status.Status(
        1.7e9,
        "daemon",
        status.Lockspace(_area(geometry), "space", 10),
        None,
        list(hosts.values()),
        [lease],
        [],
    )
    printed(lambda: status_command._show_hosts(seen))
    printed(lambda: status_command._show_leases(seen.leases))
    check_json(json.dumps(status_command.as_json(seen)))
    return 0.0


def _cases(target: str, actions: list[tuple[str, str]]) -> Callable[[random.Random, int], Iterator[Case]]:
    def cases(source: random.Random, count: int) -> Iterator[Case]:
        made = choose_scene(source)
        for _ in range(count):
            action, path = source.choice(actions)
            yield mutated_area(target, action, made, source, path=path)

    return cases


_DUMP_ACTIONS = [
    ("resource", RESOURCE_PATH), ("resource json", RESOURCE_PATH), ("resource", RESOURCE_PATH),
    ("resource json", RESOURCE_PATH), ("resource all", RESOURCE_PATH), ("resource all json", RESOURCE_PATH),
    ("space", SPACE_PATH), ("space json", SPACE_PATH),
]  # fmt: skip

TARGETS = [
    Target("dump", 40, 8, _cases("dump", _DUMP_ACTIONS), _run_dump, same, same),
    Target("status", 20, 8, _cases("status", [("", RESOURCE_PATH)]), _run_status, same, same),
]
