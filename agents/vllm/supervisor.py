"""Keeps a server from outliving whoever started it, and its children from outliving the server.

Run as a script by `agents.vllm.launch`:

    supervisor.py GRACE COMMAND...

It starts COMMAND in a process group of its own and stays until that has ended. Its standard input is a pipe
from whoever started it: the pipe closes when they ask for the end, and also when they die, even of SIGKILL,
from which nobody can clean up. Then COMMAND is told to end (SIGTERM), is given GRACE seconds, and whatever is
left of it is killed. vLLM needs that: when its API server is killed, its engine and workers live on.

Its exit status is that of COMMAND, 128 + N after a signal N, 127 if COMMAND cannot be started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

STRAGGLERS = 5.0
"""Most seconds that are given to what is left when COMMAND itself has ended."""
_LOOK = 0.1  # seconds between two looks at COMMAND, at our parent and at the pipe
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: list[str]) -> int:
    """Start the command, wait for its end or for a reason to end it, leave nothing behind."""
    grace, command = float(argv[0]), argv[1:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    # orphans become our children, so that they are found even in other process groups
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    parent = os.getppid()
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            # killed ourselves, we can end nothing: then the kernel tells COMMAND to end
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 -- there are no threads
        )
    except OSError as error:
        print(f"supervisor: {command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return 127
    # a fork of our parent's may hold the pipe open after its death, so the parent is looked at too
    while server.poll() is None and not asked and os.getppid() == parent and not _pipe_closed():
        pass
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(grace)
        except subprocess.TimeoutExpired:
            print(
                f"supervisor: still there {grace:g} s after SIGTERM, killing it", file=sys.stderr, flush=True
            )
    _end_the_rest(server, min(grace, STRAGGLERS))
    status = server.wait()
    return 128 - status if status < 0 else status


def _pipe_closed() -> bool:
    """Return whether standard input has been closed; looks for a moment."""
    readable, _, _ = select.select([sys.stdin], [], [], _LOOK)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def _end_the_rest(server: subprocess.Popen[bytes], seconds: float) -> None:
    """Send SIGTERM to all that is left, and after some time SIGKILL until nothing is."""
    deadline = time.monotonic() + seconds
    for process in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    while left := _descendants():
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        server.poll()  # reaps it; nobody else may, for its status is ours
        psutil.wait_procs([process for process in left if process.pid != server.pid], timeout=0)
        time.sleep(0.02)
    with contextlib.suppress(OSError):  # where orphans are not ours, what is left of its group
        os.killpg(server.pid, signal.SIGKILL)


def _descendants() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
