"""Settings: command line > environment > /etc/vmlockctl.toml > libvirt's qemu-sanlock.conf > defaults.

The command line and the environment are click's and the callers'; this module reads the two files.
An unknown key is an error: a typing mistake must not silently move a lease directory. The only home
of TOML; a host without the file never loads a parser.
"""

from __future__ import annotations

import os

from vmlockctl.errors import ConfigError, UsageError
from vmlockctl.records import NamedTuple
from vmlockctl.specs import check_host_name, parse_host_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

CONFIG_PATH = "/etc/vmlockctl.toml"
LIBVIRT_CONFIG_PATH = "/etc/libvirt/qemu-sanlock.conf"
LIBVIRT_LEASE_DIR = "/var/lib/libvirt/sanlock"

_KEYS = {
    "lockspace": str,
    "host_id": int,
    "host_name": str,
    "io_timeout": int,
    "grace": int,
    "lock_manager": str,
    "user": str,
    "group": str,
}
_LIBVIRT_KEYS = {"disk_lease_dir": "lockspace", "host_id": "host_id", "io_timeout": "io_timeout",
                 "user": "user", "group": "group"}  # fmt: skip
_LOCK_MANAGERS = ("auto", "embedded", "sanlock", "lockd")

# Between SIGTERM and SIGKILL when the host lease is lost: short, because the VM must be gone long
# before others take over, also where sanlock's 40 seconds would not leave it the time.
DEFAULT_GRACE_SECONDS = 2
MAX_GRACE_SECONDS = 40


class Config(NamedTuple):
    lockspace: Optional[str] = None
    host_id: Optional[int] = None
    host_name: Optional[str] = None
    io_timeout: Optional[int] = None
    grace: int = DEFAULT_GRACE_SECONDS
    lock_manager: str = "auto"
    user: Optional[str] = None
    group: Optional[str] = None


def load(path: Optional[str] = None, libvirt_path: str = LIBVIRT_CONFIG_PATH) -> Config:
    """Read both files; missing ones set nothing. Raises ``ConfigError`` with file and key."""
    path = path or os.environ.get("VMLOCKCTL_CONFIG") or CONFIG_PATH
    libvirt = {_LIBVIRT_KEYS[k]: v for k, v in _read_libvirt(libvirt_path).items() if k in _LIBVIRT_KEYS}
    return Config(**{**_checked(libvirt, libvirt_path), **_checked(_read_toml(path), path)})


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from None
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        settings = tomllib.loads(content.decode())
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key in settings:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}, expected one of {', '.join(_KEYS)}")
    return settings


def _read_libvirt(path: str) -> dict[str, Any]:
    """virConf: ``key = 1`` or ``key = "text"``, ``#`` begins a comment. Only simple values."""
    settings: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return settings
    for line in lines:
        key, equals, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key.startswith("#"):
            continue
        if value[:1] in ("'", '"'):
            settings[key] = value[1:].split(value[0], 1)[0]
        else:
            number = value.split("#", 1)[0].strip()
            if number.isdecimal():
                settings[key] = int(number)
    return settings


def _checked(settings: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings of one file, without libvirt's "none" (0); a mistake names the file and the key."""
    for key, value in settings.items():
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key}: found {value!r}, expected {_KEYS[key].__name__}")
    settings = {k: v for k, v in settings.items() if not (v == 0 and k in ("host_id", "io_timeout"))}
    try:
        if "host_id" in settings:
            parse_host_id(str(settings["host_id"]))
        if "host_name" in settings:
            check_host_name(settings["host_name"])
    except UsageError as error:
        raise ConfigError(f"{path}: {error.message}") from None
    if not 1 <= settings.get("io_timeout", 10) <= 255:
        raise ConfigError(f"{path}: io_timeout: found {settings['io_timeout']}, expected 1 to 255")
    if not 0 <= settings.get("grace", 0) <= MAX_GRACE_SECONDS:
        raise ConfigError(f"{path}: grace: found {settings['grace']}, expected 0 to {MAX_GRACE_SECONDS}")
    manager = settings.get("lock_manager", "auto")
    if manager not in _LOCK_MANAGERS:
        raise ConfigError(f"{path}: lock_manager: found {manager!r}, expected {', '.join(_LOCK_MANAGERS)}")
    return settings
