"""Start our own daemon, in a session of its own, as nobody's child where that is asked for.

The interpreter runs isolated (no environment, no current directory in its path): root's daemon must
not import what lies around. Where this package was found is passed on explicitly.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_BOOTSTRAP = "import sys; sys.path.append(sys.argv.pop(1)); from vmlockctl.cli.main import main; main()"


def own_command(run_dir: Optional[str]) -> list[str]:
    """The start of a command line that runs this program, as it runs now, for a run directory."""
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-c", _BOOTSTRAP, package_parent]
    return command if run_dir is None else [*command, "--run-dir", run_dir]


def daemon_command(run_dir: Optional[str], *, detached: bool) -> list[str]:
    """The arguments of a daemon process."""
    return [*own_command(run_dir), "daemon", *(["--background"] if detached else [])]


def spawn_daemon(run_dir: Optional[str], *, detached: bool) -> None:
    """Start it. ``detached``: without our terminal and output, a child of init and not of ours.

    ``run`` becomes QEMU, which would never reap a daemon of its own; so a shell stands between for an
    instant. Spawned, not forked: the daemon that starts its standby has threads.
    """
    command = daemon_command(run_dir, detached=detached)
    if not detached:
        os.posix_spawn(command[0], command, os.environ, setsid=True)
        return
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    shell = ["/bin/sh", "-c", '"$@" &', "vmlockctl", *command]
    child = os.posix_spawn(shell[0], shell, os.environ, setsid=True, file_actions=quiet)
    os.waitpid(child, 0)


def reap_children() -> None:
    """Let ended children go; which they were does not matter."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
