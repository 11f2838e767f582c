from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vmlockctl.errors import EXIT_USAGE, UsageError
from vmlockctl.specs import (
    LIBVIRT_LOCKSPACE,
    Target,
    check_host_name,
    check_name,
    parse_host_id,
    parse_target,
    resource_name,
    split_colons,
)
from vmlockctl.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a:b:c", ["a", "b", "c"]),
        ("a:1:/p:0", ["a", "1", "/p", "0"]),
        ("a:1:/p\\:q:0", ["a", "1", "/p:q", "0"]),
        ("a\\b:c\\\\", ["a\\b", "c\\\\"]),
        ("tail\\", ["tail\\"]),
        ("::", ["", "", ""]),
    ],
)
def test_split_colons(text: str, fields: list[str]) -> None:
    assert split_colons(text) == fields


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ls:0:/dev/vg/leases:0", Target("/dev/vg/leases", 0, "ls", 0, None)),
        ("ls:2:/dev/vg/leases:1M", Target("/dev/vg/leases", 1 << 20, "ls", 2, None)),
        ("ls:2:/dev/vg/leases", Target("/dev/vg/leases", 0, "ls", 2, None)),
        ("ls:2:/dev/vg/leases:", Target("/dev/vg/leases", 0, "ls", 2, None)),
        ("ls:2:/dev/a\\:b:512", Target("/dev/a:b", 512, "ls", 2, None)),
        (
            f"{LIBVIRT_LOCKSPACE}:1:/leases/{LIBVIRT_LOCKSPACE}:0",
            Target(f"/leases/{LIBVIRT_LOCKSPACE}", 0, LIBVIRT_LOCKSPACE, 1, "/leases"),
        ),
        (
            f"ls:1:/leases/{LIBVIRT_LOCKSPACE}:1M",
            Target(f"/leases/{LIBVIRT_LOCKSPACE}", 1 << 20, "ls", 1, None),
        ),
        ("/leases", Target(f"/leases/{LIBVIRT_LOCKSPACE}", 0, LIBVIRT_LOCKSPACE, 0, "/leases")),
        ("/leases/../x/", Target(f"/x/{LIBVIRT_LOCKSPACE}", 0, LIBVIRT_LOCKSPACE, 0, "/x")),
        ("/odd:name", Target(f"/odd:name/{LIBVIRT_LOCKSPACE}", 0, LIBVIRT_LOCKSPACE, 0, "/odd:name")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


def test_a_directory_that_looks_like_a_spec_is_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ls:1:x").mkdir()
    assert parse_target("ls:1:x").lease_dir == str(tmp_path / "ls:1:x")
    assert parse_target("here").lease_dir == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ls:2001:/p:0", "host id 2001 is out of range, expected 0 to 2000"),
        ("ls:1:/p:511", "offset 511 is not a multiple of 512"),
        ("ls:1:/p:x", "'x' is not a size"),
        (":1:/p:0", "lockspace name is empty"),
        (f"{'n' * 49}:1:/p:0", "too long, found 49 bytes, expected 1 to 48"),
        ("a\x1bb:1:/p:0", "cannot be printed"),
    ],
)
def test_a_wrong_spec(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert told in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("text", "host_id"), [("1", 1), ("2000", 2000), ("007", 7)])
def test_host_ids(text: str, host_id: int) -> None:
    assert parse_host_id(text) == host_id


@pytest.mark.parametrize("text", ["", "0", "-1", "2001", "x", "1.0", "0x10", "99999999999999999999"])
def test_wrong_host_ids(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 2000"):
        parse_host_id(text)


def test_host_id_0_means_none_where_that_is_allowed() -> None:
    assert parse_host_id("0", allow_none=True) == 0
    with pytest.raises(UsageError, match="expected 0 to 2000"):
        parse_host_id("-1", allow_none=True)


def test_names_are_counted_in_bytes() -> None:
    assert check_name("n" * 48, "lockspace name") == "n" * 48
    assert check_name("é" * 24, "lockspace name") == "é" * 24
    with pytest.raises(UsageError, match="found 50 bytes, expected 1 to 48"):
        check_name("é" * 25, "lockspace name")
    assert check_host_name("h" * 47) == "h" * 47
    with pytest.raises(UsageError, match="host name .* found 48 bytes, expected 1 to 47"):
        check_host_name("h" * 48)
    with pytest.raises(UsageError, match="host name is empty"):
        check_host_name("")


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x7f", "\x9b", "a\u202eb", "\udc80", "a\u00a0b", "a\0b"])
def test_names_that_cannot_be_printed(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name, "resource name")
    assert caught.value.message.isprintable()


def test_a_resource_is_named_by_the_md5_of_the_path_as_given() -> None:
    """As libvirt does it: no newline, no NUL, nothing canonicalised."""
    path = "/var/lib/libvirt/images/a.img"
    assert resource_name(path) == hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()
    assert resource_name("/x/../x/a") != resource_name("/x/a")
    odd = os.fsdecode(b"/images/\xff.img")
    assert resource_name(odd) == hashlib.md5(b"/images/\xff.img", usedforsecurity=False).hexdigest()
    assert len(resource_name("")) == 32


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("4k", 4096), ("4K", 4096), ("1M", 1 << 20), ("8m", 8 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "1G", "4KK", "4kM", "-1", "1.5M", "1 M", "M1"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1, "1"),
        (512, "512"),
        (1024, "1K"),
        (4096, "4K"),
        (1 << 20, "1M"),
        ((1 << 20) + 1024, "1025K"),
    ],
)
def test_sizes_as_text(size: int, text: str) -> None:
    assert format_size(size) == text
