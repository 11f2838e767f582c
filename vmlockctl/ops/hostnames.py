"""This host's name in every lockspace: unique per host, kept over reboots.

sanlock's fast re-join trusts the name alone, so two hosts must never share one: the default carries 8
digits of the machine id, and of the run directory's place where that was moved (it is another host).
"""

from __future__ import annotations

import os

from vmlockctl.config import Config
from vmlockctl.specs import MAX_HOST_NAME_BYTES, check_host_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from vmlockctl.host.rundir import RunDir
    from vmlockctl.ops.session import Session

_DIGITS = 8


def host_name_of(session: Session, asked: Optional[str], config: Config) -> str:
    """The name asked for, configured, kept from before, or made now and kept."""
    if asked or config.host_name:
        return check_host_name(asked or config.host_name or "")
    path = session.run_dir.state_file("host-name")
    try:
        with open(path, encoding="utf-8") as file:
            return check_host_name(file.read().strip())
    except FileNotFoundError:
        pass
    name = default_host_name(session.run_dir)
    session.run_dir.create()
    with open(path, "w", encoding="utf-8") as file:
        file.write(name + "\n")
    return name


def default_host_name(run_dir: RunDir) -> str:
    """``<node name>.<8 hex digits>``, at most 47 bytes."""
    digits = _machine_id()[:_DIGITS]
    if run_dir.is_moved:
        import hashlib

        digits = hashlib.sha256(f"{_machine_id()}:{run_dir.state_path}".encode()).hexdigest()[:_DIGITS]
    node = os.uname().nodename.encode("ascii", "replace")[: MAX_HOST_NAME_BYTES - _DIGITS - 1]
    return f"{node.decode().replace('?', '-') or 'host'}.{digits}"


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                found = file.read().strip()
        except OSError:
            continue
        if len(found) >= _DIGITS:
            return found
    return os.urandom(16).hex()  # kept in the state directory from now on
