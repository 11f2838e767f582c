"""Processes under every name that could fool us: zombies, threads, successors, hidden ones."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.programs import Child, process_state, standing_process
from tests.support.waiting import wait_for
from vmlockctl.host import process
from vmlockctl.host.process import Process

NOBODY = 65534
NO_SUCH_PID = 2**22  # the kernel's largest pid is one less

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")

# The main thread ends and another one stays: SYS_exit ends a thread, not the process.
HEADLESS = """
import ctypes, sys, threading
held = [open(path, "r+b") for path in sys.argv[2:]]
threading.Thread(target=sys.stdin.buffer.read, args=(1,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
"""
SYS_EXIT = {"x86_64": 60, "aarch64": 93}


@contextlib.contextmanager
def headless_process(*files: Path) -> Iterator[int]:
    """A process whose main thread is a zombie; another thread runs, with these files open."""
    child = subprocess.Popen(
        [sys.executable, "-c", HEADLESS, str(SYS_EXIT[platform.machine()]), *map(str, files)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        wait_for("the end of the main thread", lambda: process_state(child.pid) == "Z", within=10)
        yield child.pid
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait(10)


@contextlib.contextmanager
def zombie() -> Iterator[tuple[int, Process]]:
    """A process that has ended and waits for us, its parent; and what it was."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    identity = process.identify(child.pid)
    assert identity is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        yield child.pid, identity
    finally:
        child.wait(10)


def as_nobody(question: Callable[[], str]) -> str:
    """Ask in a process of another user, which cannot even read our files."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs no other thread's code
        pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = question()
        except BaseException as error:  # noqa: BLE001 - it must cross to the parent
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return answer


# -- who it is ----------------------------------------------------------------------------------


def test_a_process_is_itself() -> None:
    me = process.identify(os.getpid())
    assert me is not None
    assert me == process.identify(os.getpid())
    assert me.pid == os.getpid()
    assert me.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert process.is_alive(me)


def test_start_time_is_after_that_of_the_parent(holder: Child) -> None:
    me, child = process.identify(os.getpid()), process.identify(holder.pid)
    assert me is not None
    assert child is not None
    assert child.start_time > me.start_time > 0


@pytest.mark.parametrize("pid", [NO_SUCH_PID, 0, -1, -NO_SUCH_PID, 2**31, 2**64])
def test_no_such_pid(pid: int) -> None:
    assert process.identify(pid) is None
    assert not process.exists(pid)
    with pytest.raises(ProcessLookupError):
        process.belongs_to_us(pid)


@pytest.mark.parametrize("name", [b"a b", b"a) Z 1 (b", b"))))) X", b"\xff\n1", b""])
def test_no_name_confuses_the_fields(name: bytes) -> None:
    script = (
        "import sys; open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1]));"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, name.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        stat = process.read_stat(child.pid)
        assert stat is not None
        if name:  # an empty write is none
            assert os.fsencode(stat.comm) == name
            assert os.fsencode(process.comm(child.pid)) == name
        assert stat.state in "SRD"
        me = process.identify(os.getpid())
        assert me is not None
        assert stat.start_time > me.start_time
        assert process.identify(child.pid) is not None
        child.kill()


def test_a_thread_is_no_process() -> None:
    asked = threading.Event()
    thread = threading.Thread(target=asked.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert Path(f"/proc/{thread.native_id}/stat").exists()  # though it is not listed
        assert process.identify(thread.native_id) is None
        me = process.identify(os.getpid())
        assert me is not None
        assert process.open_pidfd(me._replace(pid=thread.native_id)) is None
    finally:
        asked.set()
        thread.join()


def test_cmdline(holder: Child) -> None:
    assert wait_for("the exec", lambda: process.cmdline(holder.pid), within=10) == ["sleep", "infinity"]
    assert process.comm(holder.pid) == "sleep"
    assert process.cmdline(NO_SUCH_PID) == []
    assert process.comm(NO_SUCH_PID) == ""


def test_cmdline_keeps_empty_and_undecodable_arguments() -> None:
    arguments = ["sh", "-c", "read x", "", "\udcff", ""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as child:
        assert wait_for("the exec", lambda: process.cmdline(child.pid), within=10) == arguments
        child.kill()


# -- whether it runs ----------------------------------------------------------------------------


def test_a_zombie_does_not_run() -> None:
    with zombie() as (pid, identity):
        assert process.exists(pid)
        assert process.identify(pid) is None
        assert not process.is_alive(identity)
        assert process.open_pidfd(identity) is None
        assert process.cmdline(pid) == []
    assert not process.exists(identity.pid)
    assert not process.is_alive(identity)
    assert process.open_pidfd(identity) is None


def test_a_zombie_main_thread_does_not_end_a_process() -> None:
    with headless_process() as pid:
        identity = process.identify(pid)
        assert identity is not None
        assert process.is_alive(identity)
        assert pid not in process.live_threads(pid)
        assert len(process.live_threads(pid)) == 1
        pidfd = process.open_pidfd(identity)
        assert pidfd is not None
        try:
            assert not process.has_ended(pidfd)
            assert process.send(pidfd, signal.SIGKILL)
            assert process.has_ended(pidfd, timeout_seconds=10)
        finally:
            os.close(pidfd)
        assert not process.is_alive(identity)
        assert process.identify(pid) is None


def test_another_start_time_or_boot_is_another_process(holder: Child) -> None:
    identity = process.identify(holder.pid)
    assert identity is not None
    for other in (
        identity._replace(start_time=identity.start_time + 1),
        identity._replace(boot_id="0" * 8 + identity.boot_id[8:]),
    ):
        assert not process.is_alive(other)
        assert process.open_pidfd(other) is None
    assert process.is_alive(identity)


def test_refused_pidfds_are_closed(holder: Child) -> None:
    identity = process.identify(holder.pid)
    assert identity is not None
    before = os.listdir("/proc/self/fd")
    assert process.open_pidfd(identity._replace(start_time=1)) is None
    assert os.listdir("/proc/self/fd") == before


# -- signals ------------------------------------------------------------------------------------


def test_sent_is_not_ended() -> None:
    with standing_process() as child:
        identity = process.identify(child.pid)
        assert identity is not None
        pidfd = process.open_pidfd(identity)
        assert pidfd is not None
        try:
            assert not os.get_inheritable(pidfd)
            assert not process.has_ended(pidfd)
            assert not process.has_ended(pidfd, timeout_seconds=0.01)
            assert process.send(pidfd, signal.SIGTERM)
            assert process.has_ended(pidfd, timeout_seconds=10)
            assert child.wait(within=10) == -signal.SIGTERM
            assert not process.send(pidfd, signal.SIGTERM)
            assert process.has_ended(pidfd)
        finally:
            os.close(pidfd)


@root_only
def test_of_another_user() -> None:
    mine = str(os.getpid())
    assert process.belongs_to_us(os.getpid())
    assert as_nobody(lambda: str(process.belongs_to_us(int(mine)))) == "False"
    assert as_nobody(lambda: str(process.belongs_to_us(os.getpid()))) == "True"
    # It can be named and watched all the same, only not signalled.
    assert as_nobody(lambda: str(process.identify(int(mine)))) == str(process.identify(os.getpid()))

    def signal_it() -> str:
        identity = process.identify(int(mine))
        assert identity is not None
        pidfd = process.open_pidfd(identity)
        assert pidfd is not None
        return str(process.send(pidfd, signal.SIGTERM))

    assert "PermissionError" in as_nobody(signal_it)


# -- in a pid namespace of its own ---------------------------------------------------------------

REUSED_PID = """
import os, signal, sys
from vmlockctl.host import process

def start(pid):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(pid - 1))
    child = os.fork()
    if not child:
        signal.pause()
    assert child == pid, child
    return process.identify(pid)

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

first = start(4242)
pinned = process.open_pidfd(first)
assert process.is_alive(first)
end(4242)
assert not process.is_alive(first) and process.identify(4242) is None

second = start(4242)
while second.start_time == first.start_time:  # within one clock tick
    end(4242)
    second = start(4242)
assert second.pid == first.pid
assert process.is_alive(second)
assert not process.is_alive(first)
assert process.open_pidfd(first) is None
assert process.has_ended(pinned)
assert not process.send(pinned, signal.SIGKILL)
assert not process.has_ended(process.open_pidfd(second), timeout_seconds=0.05)
assert process.is_alive(second)
end(4242)
print("done")
"""

HIDDEN = """
import os, signal, subprocess, sys
from vmlockctl.host import process

child = os.fork()
if not child:
    signal.pause()
identity = process.identify(child)
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not os.path.exists(f"/proc/{child}")
assert process.exists(child) and not process.belongs_to_us(child)
assert process.is_alive(identity)  # in doubt
for ask in (lambda: process.identify(child), lambda: process.open_pidfd(identity)):
    try:
        raise AssertionError(ask())
    except PermissionError as error:
        assert "hidden" in str(error)
assert process.identify(os.getpid()).pid == os.getpid()
print("done")
"""


@pytest.mark.parametrize("script", [REUSED_PID, HIDDEN], ids=["reused pid", "hidden"])
def test_in_a_pid_namespace(script: str) -> None:
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.getuid() != 0:
        unshare.append("--map-root-user")
        if script == HIDDEN:
            pytest.skip("only root can be somebody else")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("pid namespaces are not allowed here")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(process.__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


# -- while it ends --------------------------------------------------------------------------------


def test_a_process_that_ends_under_our_eyes_is_gone_not_an_error() -> None:
    """Look at processes as they end, over and over: the files of /proc vanish between two calls."""
    for _ in range(50):
        with subprocess.Popen(["true"]) as child:
            poll = select.poll()
            pidfd = os.pidfd_open(child.pid)
            poll.register(pidfd, select.POLLIN)
            identity = process.identify(child.pid)
            while not poll.poll(0):
                process.identify(child.pid)
                process.cmdline(child.pid)
                process.comm(child.pid)
                process.live_threads(child.pid)
                if identity is not None:
                    process.is_alive(identity)
            os.close(pidfd)
            if identity is not None:
                assert not process.is_alive(identity)
