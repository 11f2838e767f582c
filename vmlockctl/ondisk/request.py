"""The request record: somebody asks the owner to let go (section 2.4).

    OFFSET  SIZE  FIELD
         0     4  magic        0x08292011
         4     4  version      0x00010001
         8     8  lver         requested version; 0 = none
        16     4  force_mode   0 none, 1 FORCE, 2 GRACEFUL

No checksum. Bytes 20..23 are padding that sanlock writes and nobody reads.
"""

from __future__ import annotations

from struct import Struct

from vmlockctl.errors import WrongRequestMagic, WrongRequestVersion
from vmlockctl.records import NamedTuple

REQUEST = Struct("<2I Q I")
REQUEST_MAGIC = 0x08292011
REQUEST_VERSION = 0x00010001

FORCE = 1  # the owner's host kills the holder
GRACEFUL = 2  # it asks the holder to end

assert REQUEST.size == 20


class Request(NamedTuple):
    magic: int = REQUEST_MAGIC
    version: int = REQUEST_VERSION
    lver: int = 0
    force_mode: int = 0

    @classmethod
    def from_bytes(cls, sector: bytes) -> Request:
        """Decode without judging."""
        return cls._make(REQUEST.unpack_from(sector))

    def to_bytes(self) -> bytes:
        return REQUEST.pack(*self)


def verify_request(sector: bytes) -> Request:
    """Decode a request record with sanlock's checks (-270, -271)."""
    request = Request.from_bytes(sector)
    if request.magic != REQUEST_MAGIC:
        raise WrongRequestMagic(
            "wrong request magic", found=f"{request.magic:#010x}", expected=f"{REQUEST_MAGIC:#010x}"
        )
    if request.version >> 16 != REQUEST_VERSION >> 16:
        raise WrongRequestVersion(
            "unsupported major version of the request record",
            found=request.version >> 16,
            expected=REQUEST_VERSION >> 16,
        )
    return request
