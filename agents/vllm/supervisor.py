"""Keeps a server from outliving whoever started it, and its children from outliving the server.

Run as a script by `agents.vllm.process`, with nothing but the standard library:

    guard.py GRACE COMMAND...

It starts COMMAND in a process group of its own and stays until that has ended. Its standard input is a pipe
from whoever started it: the pipe closes when they ask for the end, and also when they die, even of SIGKILL,
from which nobody can clean up. Then COMMAND is told to end (SIGTERM), is given GRACE seconds, and whatever is
left of it is killed. vLLM needs that: when its API server is killed, its engine and workers live on. On Linux
the guard adopts orphans (PR_SET_CHILD_SUBREAPER), so that it finds them even in other process groups; and
COMMAND is told to end if the guard itself is killed (PR_SET_PDEATHSIG).

Its exit status is that of COMMAND, 128 + N after a signal N, 127 if COMMAND cannot be started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"
STRAGGLERS = 5.0
"""Most seconds that are given to what is left when COMMAND itself has ended."""
_LOOK = 1.0  # seconds between two looks at who our parent is: a fork of theirs may hold the pipe open


def main(argv: list[str]) -> int:
    """Start the command, wait for its end or for a reason to end it, leave nothing behind."""
    grace, command = float(argv[0]), argv[1:]
    wakeup = _wake_on_signals()
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_end_with_guard if _LINUX else None,  # noqa: PLW1509 -- there are no threads here
        )
    except OSError as error:
        print(f"guard: {command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return 127
    status = _until_ended(server.pid, wakeup, deadline=None)
    if status is None:
        _send(server.pid, signal.SIGTERM)
        status = _until_ended(server.pid, wakeup, deadline=time.monotonic() + grace)
    if status is None:
        print(f"guard: still there {grace:g} s after SIGTERM, killing it", file=sys.stderr, flush=True)
    killed = _end_the_rest(server.pid, min(grace, STRAGGLERS))
    status = killed if status is None else status
    server.returncode = status
    return 128 - status if status < 0 else status


def _until_ended(pid: int, wakeup: int, deadline: float | None) -> int | None:
    """The exit status of `pid`, negative after a signal; None when there is a reason to go on without it.

    Without a deadline the reasons are: our standard input is closed, our parent has gone, or a signal asks
    for the end. With one they no longer matter.
    """
    parent = os.getppid()
    while True:
        statuses = _reap()
        if pid in statuses:
            return statuses[pid]
        watched = [wakeup] if deadline is not None else [wakeup, sys.stdin.fileno()]
        wait = _LOOK if deadline is None else deadline - time.monotonic()
        if wait <= 0:
            return None
        readable, _, _ = select.select(watched, [], [], wait)
        asked = wakeup in readable and set(os.read(wakeup, 4096)) - {signal.SIGCHLD}
        closed = sys.stdin.fileno() in readable and not os.read(sys.stdin.fileno(), 4096)
        if deadline is None and (asked or closed or os.getppid() != parent):
            return None


def _end_the_rest(pid: int, seconds: float) -> int:
    """SIGTERM, some time and SIGKILL for all that is left; the exit status of `pid` if it is among it."""
    _signal_all(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    status = -signal.SIGKILL
    while _has_children():
        status = _reap().get(pid, status)
        if time.monotonic() > deadline:
            _signal_all(pid, signal.SIGKILL)
        time.sleep(0.02)
    if not _LINUX:  # orphans are not ours there, and cannot be waited for
        _send(-pid, signal.SIGKILL)
    return status


def _signal_all(group: int, number: int) -> None:
    for pid in [*descendants(os.getpid()), -group]:
        _send(pid, number)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap() -> dict[int, int]:
    """Children that have ended, pid -> exit status (negative after a signal)."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            statuses[pid] = os.waitstatus_to_exitcode(status)
    return statuses


def _has_children() -> bool:
    """Whether any child, adopted ones included, has not been reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def descendants(of: int) -> Iterator[int]:
    """All processes below one; none where there is no /proc."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if _LINUX else ():  # noqa: PTH208 -- pathlib doubles this script's start
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{int(entry)}/stat", "rb") as file:  # noqa: PTH123
                # the command's name stands in brackets and may hold anything
                parent = int(file.read().rpartition(b")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry))
    waiting = [of]
    while waiting:
        children = below.get(waiting.pop(), [])
        waiting += children
        yield from children


def _wake_on_signals() -> int:
    """The end of a pipe that tells of signals: handlers alone would not end a `select`."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _end_with_guard() -> None:
    """In the child, before it becomes COMMAND."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
