"""A vLLM server as a process: started, waited for until it can serve, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from agents.errors import ServerRefusedError, ServingError
from agents.vllm.check import ask, fetch, fetch_served
from agents.vllm.command import KEY_VARIABLE, Command
from agents.vllm.diagnose_log import last_words
from agents.vllm.served_models import MOST_IMAGES
from agents.vllm.sockets import check_port, listens
from agents.vllm.supervisor import STRAGGLERS, descendants

Told = Callable[[str], None]

_GUARD = Path(__file__).resolve().with_name("supervisor.py")
_PAUSE = 0.25  # seconds between two looks at a server that starts


class Ready(NamedTuple):
    """A server that can serve.

    Attributes:
        address: Where: ``http://127.0.0.1:8000``.
        model: The name to ask for.
        server: The server and its version: ``vllm 0.32.0``.
        context: Most tokens of prompt and answer together.
        images: Most images of one prompt.
    """

    address: str
    model: str
    server: str
    context: int
    images: int


class Server:
    """A running server. `start` makes one.

    Attributes:
        command: How it was started.
        log: The file of its output.
    """

    def __init__(
        self, command: Command, log: Path, process: subprocess.Popen[bytes], log_start: int, grace: float
    ) -> None:
        self.command, self.log = command, log
        self._process, self._log_start, self._grace = process, log_start, grace

    @property
    def pid(self) -> int:
        """Of the guard, below which everything else runs."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The server's exit status; None while it runs."""
        return self._process.poll()

    def wait_until_ready(self, seconds: float, told: Told = lambda _: None) -> Ready:
        """Wait until it has given one answer as agents need it.

        Args:
            seconds: How long to wait at most.
            told: Hears of every stage.

        Raises:
            ServingError: It ended, cannot do what agents need, or the time is over; its last words included.
        """
        began = time.monotonic()
        deadline = began + seconds
        address, key = self.command.address, self.command.api_key
        while fetch(f"{address}/health", key, seconds=2.0).status != 200:
            self._still_there(deadline, "answer /health", seconds)
            time.sleep(_PAUSE)
        if listens(descendants(self.pid), self.command.port) is False:
            raise ServingError(
                f"another server answers at {address}: it began to listen while ours was starting. Choose"
                " another port (0: any that is free)"
            )
        told(f"it answers after {time.monotonic() - began:.0f} s; trying one constrained answer")
        images = self._try_answers(deadline, seconds, told)
        served = self._served()
        told(f"it can serve after {time.monotonic() - began:.0f} s")
        return Ready(address, served.model, served.server, served.context, images)

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            ServingError: Always, for nobody asked it to end; with its last words.
        """
        self._process.wait()
        raise self._lost("the server ended by itself")

    def stop(self) -> None:
        """End it and everything that it started; what does not end by itself in time is killed.

        May be called again. The guard goes on with it even if this process dies meanwhile.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(self._grace + STRAGGLERS + 10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its last deed is to take the server with it
            self._process.wait()

    def _try_answers(self, deadline: float, seconds: float, told: Told) -> int:
        """Most images of one prompt, once an answer has come."""
        command = self.command
        wanted = command.images
        for image in (False,) if wanted == 0 else (True,) if wanted else (True, False):
            left = max(1.0, deadline - time.monotonic())
            trial = ask(command.address, command.models[0], command.api_key, image=image, seconds=left)
            if trial.completion is not None:
                return MOST_IMAGES if image and wanted is None else wanted or 0
            if trial.status == 0:  # the connection broke: is it about to end?
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STRAGGLERS + 2.0)
            self._still_there(deadline, "give one constrained answer", seconds)
            if image and wanted is None and trial.status == 400:
                told(f"it takes no images ({trial.fault}); trying a text")
                continue
            about = (
                f"an image ({wanted or MOST_IMAGES} images a prompt were asked for)" if image else "a text"
            )
            raise ServingError(f"the server does not answer about {about} as agents need it: {trial.fault}")
        raise AssertionError("the last try is one of text")

    def _served(self) -> _Served:
        command = self.command
        try:
            served = fetch_served(command.address, command.models[0], command.api_key)
        except ServerRefusedError as error:
            raise ServingError(f"the server does not say what it serves: {error}") from error
        return _Served(served.model, served.server, served.context)

    def _still_there(self, deadline: float, what: str, seconds: float) -> None:
        if self.status is not None:
            raise self._lost("vLLM ended before it could serve")
        if time.monotonic() > deadline:
            raise self._lost(f"vLLM did not {what} within {seconds:g} s")

    def _lost(self, what: str) -> ServingError:
        status = self.status
        ended = "" if status is None else f" with exit status {status}"
        return ServingError(f"{what}{ended}; {last_words(self.log, self._log_start, status)}")


class _Served(NamedTuple):
    model: str
    server: str
    context: int


def start(command: Command, log: Path, grace: float = 20.0) -> Server:
    """Start a server, with a guard that ends it when this process does.

    Args:
        command: From `serve_command`.
        log: Its output is added to this file.
        grace: Seconds between SIGTERM and SIGKILL at its end.

    Raises:
        ServingError: Somebody else listens there.
        OSError: The log cannot be written.
    """
    check_port(command.host, command.port)
    environment = os.environ | dict(command.environment)
    if command.api_key:
        environment[KEY_VARIABLE] = command.api_key
    with log.open("ab") as output:
        begins = output.seek(0, 2)
        process = subprocess.Popen(
            # -I -S: the guard starts at once, whatever is installed here
            [sys.executable, "-I", "-S", str(_GUARD), str(grace), *command.argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            # Ctrl-C at the terminal is ours to answer; the guard hears of it when we close its pipe
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
    told: Told = lambda _: None,
) -> Iterator[tuple[Server, Ready]]:
    """A server that can serve, for as long as the block runs.

    Args:
        command: From `serve_command`.
        log: The file of its output; None: a temporary one, which stays only where something went wrong.
        seconds: How long to wait for it at most.
        grace: Seconds between SIGTERM and SIGKILL at its end.
        told: Hears of every stage.

    Raises:
        ServingError: It could not be started, or ended before it could serve.
    """
    file = _temporary_log() if log is None else log
    wanted = log is not None
    server = start(command, file, grace)
    try:
        told(f"{command.server} starts as process {server.pid}, its output in {file}")
        yield server, server.wait_until_ready(seconds, told)
    except Exception:
        wanted = True
        raise
    finally:
        server.stop()
        if not wanted:
            file.unlink(missing_ok=True)


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="selftrain-vllm-", suffix=".log")
    os.close(handle)
    return Path(name)
