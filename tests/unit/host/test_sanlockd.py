"""A sanlock daemon's answers, real and mistaken: silence is never taken for "nothing joined"."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.sanlockhost import SanlockHost
from tests.support.waiting import wait_for
from tests.unit.host.test_process import as_nobody, root_only
from vmlockctl.host.sanlockd import HEADER, LOCKSPACE, JoinedLockspace, SanlockSilent, joined_lockspaces

MAGIC = 0x04282010
GET_LOCKSPACES = 22
REQUEST = HEADER.pack(MAGIC, 1, GET_LOCKSPACES, 0, HEADER.size, 0, 0, 0)

LS1 = JoinedLockspace("LS1", 3, "/leases/one", 0)
LS2 = JoinedLockspace("L" * 48, 2000, "/" + "p" * 1023, 2**63)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(tmp_path))
    return tmp_path


def reply(
    *lockspaces: JoinedLockspace, magic: int = MAGIC, command: int = GET_LOCKSPACES, result: int = 0
) -> bytes:
    payload = b"".join(
        LOCKSPACE.pack(one.name.encode(), one.host_id, 0, 0, one.path.encode(), one.offset, 0, 0)
        for one in lockspaces
    )
    header = HEADER.pack(magic, 1, command, 0, HEADER.size + len(payload), 0, result, len(lockspaces))
    return header + payload


@contextlib.contextmanager
def serving(run_dir: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A daemon of our own making: ``serve`` gets the connection when the request has come."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "sanlock.sock"))
        listener.listen()

        def accept() -> None:
            with listener.accept()[0] as connection:
                assert connection.recv(1024) == REQUEST
                with contextlib.suppress(BrokenPipeError):
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


def wait_for_hangup(connection: socket.socket) -> None:
    connection.recv(1)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmlockctl.host import sanlockd

    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("SANLOCK_RUN_DIR", raising=False)
        else:
            monkeypatch.setenv("SANLOCK_RUN_DIR", unset)
        assert sanlockd.socket_path() == "/run/sanlock/sanlock.sock"


def test_no_daemon(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined_lockspaces() == []
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(run_dir / "missing"))
    assert joined_lockspaces() == []


def test_a_socket_that_outlived_its_daemon(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "sanlock.sock"))
    assert (run_dir / "sanlock.sock").is_socket()
    assert joined_lockspaces() == []


@pytest.mark.parametrize("lockspaces", [(), (LS1,), (LS1, LS2)], ids=len)
def test_lockspaces(run_dir: Path, lockspaces: tuple[JoinedLockspace, ...]) -> None:
    with serving(run_dir, lambda connection: connection.sendall(reply(*lockspaces))):
        assert joined_lockspaces() == list(lockspaces)


def test_an_answer_in_pieces(run_dir: Path) -> None:
    def serve(connection: socket.socket) -> None:
        for byte in reply(LS1):
            connection.sendall(bytes([byte]))

    with serving(run_dir, serve):
        assert joined_lockspaces() == [LS1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "hung up, found 0 bytes, expected 32"),
        (reply()[:31], "hung up, found 31 bytes"),
        (reply(LS1)[:-1], "hung up, found 1103 bytes, expected 1104"),
        (reply(magic=0x04282011), "not a sanlock reply, found magic 0x4282011"),
        (reply(command=23), "command 23"),
        (reply(result=-13), "refused to list its lockspaces, result -13"),
        (HEADER.pack(MAGIC, 1, GET_LOCKSPACES, 0, 32, 0, 0, -1), "-1 lockspaces"),
        (HEADER.pack(MAGIC, 1, GET_LOCKSPACES, 0, 32, 0, 0, 2**31 - 1), "2147483647 lockspaces"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n      ", "not a sanlock reply"),
    ],
)
def test_answers_that_are_none(run_dir: Path, answer: bytes, words: str) -> None:
    with serving(run_dir, lambda connection: connection.sendall(answer)):
        with pytest.raises(SanlockSilent, match=words) as raised:
            joined_lockspaces()
        assert str(run_dir / "sanlock.sock") in str(raised.value)


def test_a_daemon_that_says_nothing(run_dir: Path) -> None:
    with serving(run_dir, wait_for_hangup), pytest.raises(SanlockSilent):
        joined_lockspaces(timeout_seconds=0.05)


def test_a_daemon_that_never_finishes(run_dir: Path) -> None:
    """Each byte comes in time, the whole never: the deadline is that of the whole."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(reply(LS1)[:-100])
        while True:
            connection.sendall(b"\0")
            time.sleep(0.03)  # what is tested is slowness

    started = time.monotonic()
    with serving(run_dir, serve):
        with pytest.raises(SanlockSilent):
            joined_lockspaces(timeout_seconds=0.2)
        assert time.monotonic() - started < 2


def test_a_daemon_that_does_not_even_accept(run_dir: Path) -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(run_dir / "sanlock.sock"))
        listener.listen(0)

        def is_full() -> bool:
            waiting = sockets.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(run_dir / "sanlock.sock"))
            except BlockingIOError:
                return True
            return False

        wait_for("a full queue", is_full, within=10)
        with pytest.raises(SanlockSilent):
            joined_lockspaces(timeout_seconds=0.05)


@root_only
@pytest.mark.parametrize("closed", ["the socket", "the directory"])
def test_a_socket_that_we_may_not_open(run_dir: Path, closed: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "sanlock.sock"))
        listener.listen()
        # The directory of the test itself is private: nobody gets a way in first.
        for directory in run_dir.parents:
            if directory.stat().st_uid == os.getuid() and directory != Path("/"):
                directory.chmod(directory.stat().st_mode | 0o111)
        run_dir.chmod(0o700 if closed == "the directory" else 0o755)
        (run_dir / "sanlock.sock").chmod(0o660)
        answer = as_nobody(lambda: str(joined_lockspaces()))
    assert "SanlockSilent" in answer
    assert "Permission denied" in answer


# -- the real one -------------------------------------------------------------------------------


@pytest.mark.real("sanlock")
def test_a_real_daemon(sanlock_host: SanlockHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(sanlock_host.run_dir))
    assert joined_lockspaces() == []
    expected = []
    for name, host_id, offset in (("LS1", 3, 0), ("LS2", 1999, 1048576)):
        path = tmp_path / name
        path.write_bytes(bytes(2 * 1048576))
        spec = f"{name}:{host_id}:{path}:{offset}"
        assert sanlock_host.client("init", "-s", spec, "-o", "1").returncode == 0
        assert sanlock_host.client("add_lockspace", "-s", spec, "-o", "1").returncode == 0
        expected.append(JoinedLockspace(name, host_id, str(path), offset))
        assert sorted(joined_lockspaces()) == expected
    assert sanlock_host.client("rem_lockspace", "-s", f"LS1:3:{tmp_path}/LS1:0").returncode == 0
    assert joined_lockspaces() == expected[1:]
    sanlock_host.crash_everything()

    def is_gone() -> bool:
        try:
            return joined_lockspaces() == []
        except SanlockSilent:  # a process can be dead to its parent while its socket is being closed
            return False

    wait_for("the end of the socket", is_gone, within=10)


@pytest.mark.real("sanlock")
def test_a_real_daemon_counts_a_lockspace_from_the_beginning_of_the_join(
    sanlock_host: SanlockHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(sanlock_host.run_dir))
    path = tmp_path / "LS1"
    path.write_bytes(bytes(1048576))
    spec = f"LS1:3:{path}:0"
    assert sanlock_host.client("init", "-s", spec, "-o", "1").returncode == 0
    results: list[int] = []
    joining = threading.Thread(
        target=lambda: results.append(sanlock_host.client("add_lockspace", "-s", spec, "-o", "1").returncode)
    )
    joining.start()
    try:
        found = wait_for("the lockspace", joined_lockspaces, within=10)
        assert results == []  # it is still joining, which takes three seconds
        assert found == [JoinedLockspace("LS1", 3, str(path), 0)]
    finally:
        joining.join(60)
