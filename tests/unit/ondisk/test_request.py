from __future__ import annotations

import pytest

from vmlockctl.errors import WrongMagic, WrongVersion
from vmlockctl.ondisk.request import Request, verify_request


def test_any_minor_version_is_read() -> None:
    request = Request(version=0x00010009, lver=3, force_mode=1)
    assert verify_request(request.to_bytes().ljust(512, b"\xff")) == request


def test_a_wrong_magic() -> None:
    with pytest.raises(WrongMagic, match="wrong request magic") as caught:
        verify_request(bytes(512))
    assert caught.value.sanlk_rv == -270  # section 7: REQUEST_MAGIC


def test_a_wrong_version() -> None:
    with pytest.raises(WrongVersion, match="found 2, expected 1") as caught:
        verify_request(Request(version=0x00020001).to_bytes().ljust(512, b"\0"))
    assert caught.value.sanlk_rv == -271  # section 7: REQUEST_VERSION


def test_the_magic_comes_first() -> None:
    with pytest.raises(WrongMagic):
        verify_request(Request(magic=1, version=0).to_bytes().ljust(512, b"\0"))
