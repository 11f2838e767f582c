from __future__ import annotations

from pathlib import Path

import pytest

from vmlockctl.config import Config, load
from vmlockctl.errors import EXIT_CONFIG, ConfigError


class Files:
    """The two files that are read, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.toml = directory / "vmlockctl.toml"
        self.libvirt = directory / "qemu-sanlock.conf"

    def load(self, toml: str = "", libvirt: str = "") -> Config:
        self.toml.write_text(toml, encoding="utf-8")
        self.libvirt.write_text(libvirt, encoding="utf-8")
        return load(str(self.toml), str(self.libvirt))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_nothing_configured(files: Files) -> None:
    assert load(str(files.toml), str(files.libvirt)) == Config()
    assert Config().lock_manager == "auto"
    assert Config().grace == 2


def test_every_key(files: Files) -> None:
    config = files.load(
        'lockspace = "/leases"\nhost_id = 7\nhost_name = "hostA"\nio_timeout = 5\ngrace = 0\n'
        'lock_manager = "embedded"\nuser = "sanlock"\ngroup = "disk"\n'
    )
    assert config == Config("/leases", 7, "hostA", 5, 0, "embedded", "sanlock", "disk")


def test_the_environment_names_the_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.toml.write_text("host_id = 9\n", encoding="utf-8")
    monkeypatch.setenv("VMLOCKCTL_CONFIG", str(files.toml))
    assert load(None, str(files.libvirt)).host_id == 9


def test_libvirts_file(files: Files) -> None:
    config = files.load(
        libvirt="# sanlock\nauto_disk_leases = 1\n"
        'disk_lease_dir = "/var/lib/libvirt/sanlock"  # the default\n'
        "host_id = 3 # me\nio_timeout=7\nuser = 'qemu'\ngroup = \"kvm\"\n"
        "#host_id = 5\nno equals sign\nrequire_lease_for_disks = 1\nodd = [ 1 ]\n"
    )
    assert config == Config(
        lockspace="/var/lib/libvirt/sanlock", host_id=3, io_timeout=7, user="qemu", group="kvm"
    )


def test_our_file_counts_more_than_libvirts(files: Files) -> None:
    config = files.load("host_id = 4\n", 'host_id = 3\nuser = "qemu"\n')
    assert (config.host_id, config.user) == (4, "qemu")


def test_libvirts_zeros_mean_not_set(files: Files) -> None:
    assert files.load(libvirt="host_id = 0\nio_timeout = 0\n") == Config()


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("lockspce = 1\n", "unknown key 'lockspce'"),
        ("[table]\nhost_id = 1\n", "unknown key 'table'"),
        ("host_id = '1'\n", "host_id: found '1', expected int"),
        ("host_id = true\n", "host_id: found True, expected int"),
        ("host_id = 1.5\n", "host_id: found 1.5, expected int"),
        ("lockspace = 1\n", "lockspace: found 1, expected str"),
        ("host_id = 2001\n", "host id 2001 is out of range"),
        ("host_id = -1\n", "host id -1 is out of range"),
        ('host_name = ""\n', "host name is empty"),
        (f'host_name = "{"h" * 48}"\n', "too long, found 48 bytes, expected 1 to 47"),
        ("io_timeout = 256\n", "io_timeout: found 256, expected 1 to 255"),
        ("io_timeout = -1\n", "io_timeout: found -1, expected 1 to 255"),
        ("grace = 41\n", "grace: found 41, expected 0 to 40"),
        ("grace = -1\n", "grace: found -1, expected 0 to 40"),
        ('lock_manager = "dlm"\n', "lock_manager: found 'dlm', expected auto, embedded"),
        ("host_id = \n", "not valid TOML"),
        ("host_id = 1\nhost_id = 2\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(files: Files, toml: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        files.load(toml)
    assert caught.value.exit_code == EXIT_CONFIG
    assert caught.value.message.startswith(f"{files.toml}: ")
    assert told in caught.value.message


def test_a_file_that_is_no_text(files: Files) -> None:
    files.toml.write_bytes(b"host_name = '\xff'\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(files.toml), str(files.libvirt))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read: Is a directory"):
        load(str(tmp_path), str(tmp_path / "none"))


@pytest.mark.parametrize(
    "libvirt",
    [
        "host_id = 3000\n",
        "io_timeout = 300\n",
        'host_id = "x"\n',
        'io_timeout = "x"\n',
        "disk_lease_dir = 5\n",
    ],
)
def test_a_mistake_in_libvirts_file_is_told_with_that_file(files: Files, libvirt: str) -> None:
    """An error says where; and a text where a number is wanted is an error, not a traceback."""
    with pytest.raises(ConfigError) as caught:
        files.load("grace = 1\n", libvirt)
    assert str(files.libvirt) in caught.value.message


def test_a_number_that_libvirt_has_in_quotes_is_a_number_or_an_error(files: Files) -> None:
    try:
        config = files.load(libvirt='host_id = "5"\nio_timeout = "7"\n')
    except ConfigError:
        return
    assert (config.host_id, config.io_timeout) == (5, 7)
