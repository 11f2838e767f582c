"""Lines of ``sanlock client status``, as 3.8.5 prints them."""

from __future__ import annotations

from vmlockctl.host.sanlockclients import SanlockClient, parse_status

STATUS = r"""daemon lvhost
p -1 helper
p -1 listener
p 77 my guest
p 78 78
s LS:1:/leases/__LIBVIRT__DISKS__:0
r LS:abc:/leases/a\:b:0:12 p 77
r LS:def:/leases/def:0:SH p 77
r LS:def:/leases/def:0:SH p 78 ADD
r LS:ghi:/leases/ghi:0:3 p -1 ORPHAN
"""


def test_who_holds_what() -> None:
    assert parse_status(STATUS) == [
        SanlockClient("LS", "abc", 77, "my guest"),
        SanlockClient("LS", "def", 77, "my guest"),
        SanlockClient("LS", "def", 78, "78"),
    ]
    assert parse_status("") == []
