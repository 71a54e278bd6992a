"""Python programs in processes of their own, as tests start them: forked, with the large packages there.

A start costs a fraction of a second instead of the several that imports of torch and transformers take. What
is about starting itself (imports, the installed script, another interpreter, variables that are read when a
package is imported) is started by `subprocess` instead.
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE

FORKING = Path(__file__).with_name("forking.py")
_INT = array.array("i").itemsize


@functools.cache
def _forking():
    """The socket of the process that forks; it ends with this one."""
    folder = tempfile.mkdtemp(prefix="fork")
    place = f"{folder}/asked"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    server = subprocess.Popen(
        [sys.executable, str(FORKING), place], stdin=PIPE, stdout=PIPE, stderr=PIPE,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    ready = server.stdout.readline()
    os.set_blocking(server.stderr.fileno(), not ready)  # one that ended is read to its end
    # what a package prints while it is imported would be seen here, and only here
    assert (ready, server.stderr.read()) == (b"ready\n", None)

    def end():
        server.stdin.close()
        server.stdout.close()
        server.stderr.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return place


class Process:
    """What `subprocess.Popen([sys.executable, *words], text=True)` would be; by default streams are pipes."""

    def __init__(self, words, *, cwd=None, env=None, stdin=DEVNULL, stdout=PIPE, stderr=PIPE):
        self.args, self.returncode = [*map(str, words)], None
        self._waiting = threading.Lock()
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_forking())
        ours, theirs = zip(*(_ends(*one) for one in enumerate((stdin, stdout, stderr))), strict=True)
        request = {
            "words": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        told = json.dumps(request).encode()
        socket.send_fds(self._line, [array.array("i", [len(told)]).tobytes()], theirs)
        self._line.sendall(told)
        for one in theirs:
            os.close(one)
        self.stdin, self.stdout, self.stderr = (
            None if one is None else os.fdopen(one, mode) for one, mode in zip(ours, "wrr", strict=True)
        )
        self.pid = self._told()

    def _told(self):
        return array.array("i", self._line.recv(_INT, socket.MSG_WAITALL))[0]

    def wait(self, timeout=None):
        with self._waiting:
            if self.returncode is None:
                self._line.settimeout(timeout)
                try:
                    self.returncode = self._told()
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(self.args, timeout) from None
                self._line.close()
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)

    def terminate(self):
        self.send_signal(15)

    def communicate(self, timeout=None):
        """(standard output, standard error), once the process has ended."""
        found = {}
        readers = [
            threading.Thread(target=lambda one=one: found.update({one: one.read()}), daemon=True)
            for one in (self.stdout, self.stderr)
            if one is not None and not one.closed
        ]
        for one in readers:
            one.start()
        self.wait(timeout)
        for one in readers:
            one.join(timeout)
        self.close()
        return found.get(self.stdout), found.get(self.stderr)

    def close(self):
        for one in (self.stdin, self.stdout, self.stderr):
            if one is not None:
                one.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.wait()


def _ends(number, stream):
    """(our end or None, the program's end) of a standard stream; None is that of this process."""
    if stream == PIPE:
        read, write = os.pipe()
        return (read, write) if number else (write, read)
    return None, os.dup(number) if stream is None else os.open(os.devnull, os.O_RDWR)


def run(words, *, timeout=300, **place):
    """`subprocess.run` with all output caught: it is killed, and the test fails, when the time is over."""
    process = Process(words, **place)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def selftrain(*words, **place):
    """The command line in a process of its own, with these words; where nothing is said, in this folder."""
    return run(("-m", "selftrain", *words), **place)
