"""Memberships: which lockspaces this host rejoins after a reboot, one durable file for each."""

from __future__ import annotations

import os

from vmlockctl.daemon.hoststate import Membership, membership_from, membership_to
from vmlockctl.host.process import boot_id
from vmlockctl.host.rundir import make_directory, read_json, record_names, remove, write_json
from vmlockctl.specs import resource_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlockctl.host.rundir import RunDir


class Memberships:
    """The memberships in a state directory."""

    def __init__(self, run_dir: RunDir) -> None:
        self.path = run_dir.state_file("memberships")

    def _file(self, membership: Membership) -> str:
        return os.path.join(self.path, resource_name(f"{membership.path}:{membership.offset}") + ".json")

    def add(self, membership: Membership) -> None:
        make_directory(self.path)
        record = {**membership_to(membership), "boot_id": boot_id()}
        write_json(self._file(membership), record, durable=True)

    def remove(self, membership: Membership) -> None:
        remove(self._file(membership))

    def all(self) -> list[Membership]:
        found = (membership_from(record) for record in self._records())
        return [membership for membership in found if membership is not None]

    def joined_this_boot(self, membership: Membership) -> bool:
        """Whether this boot has run an instance of this host; in doubt, it has."""
        record = read_json(self._file(membership))
        return record is not None and record.get("boot_id") == boot_id()

    def version(self) -> int:
        """Changes whenever a membership is added or removed."""
        try:
            return os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return 0

    def _records(self) -> list[dict[str, object]]:
        records = (read_json(os.path.join(self.path, f"{name}.json")) for name in record_names(self.path))
        return [record for record in records if record is not None]
