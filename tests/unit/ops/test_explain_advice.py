"""A lock without a process: the remedy is the one of its file system."""

from __future__ import annotations

import pytest

from vmlockctl.ops.explain_advice import _server_steps
from vmlockctl.ops.explanation import QEMU, Holder


@pytest.mark.parametrize(
    ("filesystem", "server", "commands", "told"),
    [
        ("nfs4", "nas", ["ssh nas nfsdclnts -t lock"], "the server's lease time"),
        ("nfs", "nas", ["sm-notify -f"], "stay until it is back"),
        ("cifs", "box", ["ssh box smbstatus -L"], "who has the file open"),
        ("fuse.moosefs", "", [], "unmount it and mount it again"),
        ("gfs2", "", [], "on the other hosts that mount this gfs2"),
        ("", "", ["ssh SERVER nfsdclnts -t lock"], "which client"),
    ],
)
def test_where_to_look_for_a_lock_of_nobody_here(
    filesystem: str, server: str, commands: list[str], told: str
) -> None:
    steps = _server_steps(Holder(QEMU, "write", "", filesystem=filesystem, server=server))
    assert [step.command for step in steps if step.command] == commands
    assert told in " ".join(step.text for step in steps)
