"""A vLLM server as a process: started, waited for until it can serve, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from agents.errors import ServerLaunchError, ServerRefusedError
from agents.vllm.check import ask, fetch, fetch_served
from agents.vllm.command import KEY_VARIABLE, MOST_IMAGES, Command
from agents.vllm.diagnose_log import diagnose_log, read_tail
from agents.vllm.supervisor import STRAGGLERS

Report = Callable[[str], None]

_SUPERVISOR = Path(__file__).resolve().with_name("supervisor.py")
_PAUSE = 0.25  # seconds between two looks at a server that starts
_MOVED = 16 << 20  # bytes read or written that count as progress: looking at us and waiting take less


class Ready(NamedTuple):
    """A server that can serve."""

    endpoint: str  # where: ``http://127.0.0.1:8000``
    model: str  # the name to ask for
    server: str  # the server and its version: ``vllm 0.32.0``
    context: int  # most tokens of prompt and answer together
    images: int  # most images of one prompt


class Server:
    """A running server. `start` makes one."""

    def __init__(
        self, command: Command, log: Path, process: subprocess.Popen[bytes], log_start: int, grace: float
    ) -> None:
        self.command, self.log = command, log
        self._process, self._log_start, self._grace = process, log_start, grace

    @property
    def pid(self) -> int:
        """The process of the supervisor, below which everything else runs."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The server's exit status; None while it runs."""
        return self._process.poll()

    def wait_until_ready(self, seconds: float, report: Report = lambda _: None) -> Ready:
        """Wait until it has given one answer as agents need it, and report every stage.

        Raises:
            ServerLaunchError: It ended, cannot do what agents need, or made no progress for so many seconds.
        """
        began = time.monotonic()
        deadline, progress = began + seconds, Progress(self.pid, self.log, self._log_start)
        endpoint, key = self.command.endpoint, self.command.api_key
        while fetch(f"{endpoint}/health", key, seconds=2.0).status != 200:
            if progress.made():  # a first download of 150 GB takes hours
                deadline = time.monotonic() + seconds
            self._check_alive(deadline, "answer /health", seconds)
            time.sleep(_PAUSE)
        deadline = time.monotonic() + seconds
        # two servers that start at the same time can both bind a port before either listens there
        if listens(self.pid, self.command.port) is False:
            raise ServerLaunchError(
                f"another server answers at {endpoint}: it began to listen while ours was starting. Choose"
                " another port (0: any that is free)"
            )
        report(f"it answers after {time.monotonic() - began:.0f} s; trying one constrained answer")
        images = self._try_answers(deadline, seconds, report)
        try:
            served = fetch_served(endpoint, self.command.models[0], key)
        except ServerRefusedError as error:
            raise ServerLaunchError(f"the server does not say what it serves: {error}") from error
        report(f"it can serve after {time.monotonic() - began:.0f} s")
        return Ready(endpoint, served.model, served.server, served.context, images)

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            ServerLaunchError: Always, for nobody asked it to end; with what its log says.
        """
        self._process.wait()
        raise self._lost("the server ended by itself")

    def stop(self) -> None:
        """End it and everything that it started; what does not end by itself in time is killed.

        May be called again. The supervisor goes on with it even if this process dies meanwhile.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(self._grace + STRAGGLERS + 10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its last deed is to take the server with it
            self._process.wait()

    def _try_answers(self, deadline: float, seconds: float, report: Report) -> int:
        """Return most images of one prompt, once an answer has come."""
        command, wanted = self.command, self.command.images
        for image in (False,) if wanted == 0 else (True,) if wanted else (True, False):
            left = max(1.0, deadline - time.monotonic())
            trial = ask(command.endpoint, command.models[0], command.api_key, image=image, seconds=left)
            if trial.completion is not None:
                return MOST_IMAGES if image and wanted is None else wanted or 0
            if trial.status == 0:  # the connection broke: is it about to end?
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STRAGGLERS + 2.0)
            self._check_alive(deadline, "give one constrained answer", seconds)
            if image and wanted is None and trial.status == 400:
                report(f"it takes no images ({trial.fault}); trying a text")
                continue
            about = (
                f"an image ({wanted or MOST_IMAGES} images a prompt were asked for)" if image else "a text"
            )
            raise ServerLaunchError(
                f"the server does not answer about {about} as agents need it: {trial.fault}"
            )
        raise AssertionError("the last try is one of text")

    def _check_alive(self, deadline: float, what: str, seconds: float) -> None:
        if self.status is not None:
            raise self._lost("vLLM ended before it could serve")
        if time.monotonic() > deadline:
            raise self._lost(f"vLLM did not {what}, nor make progress, for {seconds:g} s")

    def _lost(self, what: str) -> ServerLaunchError:
        status = self.status
        ended = "" if status is None else f" with exit status {status}"
        return ServerLaunchError(f"{what}{ended}; {diagnose_log(self.log, self._log_start, status)}")


class Progress:
    """Whether a starting server comes forward: it reads or writes, or its log says something new.

    Processes that wait say the same again and again, with another time or number in it. Another percentage is
    something new.
    """

    def __init__(self, pid: int, log: Path, begins: int) -> None:
        self._pid, self._log, self._begins = pid, log, begins
        self._lines: set[str] = set()
        self._moved = 0  # bytes, when last counted as progress

    def made(self) -> bool:
        """Return whether there was any since the last call."""
        lines = {
            re.sub(r"\d+(?![\d.]*%)", "", line) for line in read_tail(self._log, self._begins).splitlines()
        }
        new, moved = not lines <= self._lines, self._bytes()
        self._lines |= lines
        if moved - self._moved >= _MOVED:
            self._moved, new = moved, True
        return new

    def _bytes(self) -> int:
        """Return what its processes have read and written, as far as the system says."""
        total = 0
        with contextlib.suppress(psutil.Error, AttributeError):
            process = psutil.Process(self._pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    counted = one.io_counters()
                    total += counted.read_chars + counted.write_chars
                    # weights that are mapped into memory come without a call
                    total += counted.read_bytes
        return total


def start(command: Command, log: Path, grace: float = 20.0) -> Server:
    """Start a server, with a supervisor that ends it when this process does.

    Its output is added to the file `log`; `grace` are seconds between SIGTERM and SIGKILL at its end.

    Raises:
        ServerLaunchError: Somebody else listens there.
        OSError: The log cannot be written.
    """
    check_port(command.host, command.port)
    environment = os.environ | dict(command.environment)
    if command.api_key:
        environment[KEY_VARIABLE] = command.api_key
    with log.open("ab") as output:
        begins = output.seek(0, 2)
        process = subprocess.Popen(
            # -I: what vLLM's PYTHONPATH repairs is none of the supervisor's business
            [sys.executable, "-I", str(_SUPERVISOR), str(grace), *command.argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            # Ctrl-C at the terminal is ours to answer; the supervisor notices when we close its pipe
            start_new_session=True,
        )
    return Server(command, log, process, begins, grace)


@contextlib.contextmanager
def serving(
    command: Command,
    *,
    log: Path | None = None,
    seconds: float = 900.0,
    grace: float = 20.0,
    report: Report = lambda _: None,
) -> Iterator[tuple[Server, Ready]]:
    """Run a server that can serve, for as long as the block runs.

    Args:
        command: See `serve_command`.
        log: The file of its output; None: a temporary one, which stays only where something went wrong.
        seconds: How long to wait for it while it makes no progress.
        grace: Seconds between SIGTERM and SIGKILL at its end.
        report: Receives every stage.

    Raises:
        ServerLaunchError: It could not be started, or ended before it could serve.
    """
    file, wanted = log, log is not None
    if file is None:
        handle, name = tempfile.mkstemp(prefix="selftrain-vllm-", suffix=".log")
        os.close(handle)
        file = Path(name)
    server = start(command, file, grace)
    try:
        report(f"{command.server} starts as process {server.pid}, its output in {file}")
        yield server, server.wait_until_ready(seconds, report)
    except Exception:
        wanted = True
        raise
    finally:
        server.stop()
        if not wanted:
            file.unlink(missing_ok=True)


def check_port(host: str, port: int) -> None:
    """Check that a server could listen there.

    Raises:
        ServerLaunchError: Somebody else does, or the address is not one of this machine.
    """
    try:
        # reuse, as the server does: a port is free although an earlier server's connections still fade away
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
    except OSError as error:
        raise ServerLaunchError(
            f"cannot listen on {host} port {port}: {error.strerror}. Choose another port (0: any that is"
            " free), or stop what listens there"
        ) from error


def listens(pid: int, port: int) -> bool | None:
    """Return whether a process or one below it listens at `port`; None where the system does not say."""
    listening = False
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # a helper of the server's that has done its part
                found = one.net_connections("tcp")
                listening |= any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)
    except psutil.Error:
        return None
    return listening
