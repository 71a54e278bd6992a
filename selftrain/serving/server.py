"""A process that serves one model over HTTP until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType

import uvloop
from starlette.applications import Starlette

from selftrain.errors import ServingError
from selftrain.models.predictor import Predictor
from selftrain.serving.app import Measures, Service, build_app
from selftrain.serving.batching import Batcher
from selftrain.serving.intake import Scratch
from selftrain.serving.wire import RequestLimits
from selftrain.web.http_server import HttpServer, endpoint_of, listen

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def serve(
    load: Callable[[], Predictor],
    *,
    host: str,
    port: int,
    limits: RequestLimits,
    max_batch: int = 32,
    max_wait: float = 0.005,
    max_queue: int = 1024,
    key: str = "",
    names: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> bool:
    """Serve until SIGTERM or Ctrl-C, then finish what was taken; a second signal does not wait for it.

    Args:
        load: Gives the model; called in the thread that will own it, while the port is open already.
        port: To listen on; 0: one that is free.
        max_batch, max_wait, max_queue: See `Batcher`.
        key: What clients must show; empty: nothing.
        names: Under which clients may ask for it, beside `host`, this machine's own and addresses.
        tell: Told, in a line, where the server listens, that it is ready, and that it ends.

    Returns:
        Whether the model's thread has ended. It has not after a second signal, or one during loading: then
        leave with `os._exit`, for the interpreter's own exit would pull the libraries from under it.

    Raises:
        ServingError: The port cannot be had, no client could show the key, or `limits` and `max_queue` do
            not go together.
        SelftrainError, BackboneError: The model cannot be loaded.
    """
    if any(mark.isspace() or not mark.isprintable() for mark in key):
        raise ServingError(
            "the key has a line end, a space or a control character in it, which no client can show: take it"
            " out (a key read from a file often ends in a line end)"
        )
    if limits.posts > max_queue:
        raise ServingError(
            f"a request may have {limits.posts} posts and the queue holds {max_queue}: raise"
            " --max-queue, or lower --max-posts"
        )
    listener = listen(host, port)
    scratch = Scratch()
    try:
        measures = Measures()
        batcher = Batcher(
            load, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue, observe=measures.batch
        )
        known = (host, socket.gethostname(), *names)  # no look-up: it may take long
        service = Service(batcher, scratch, measures, limits=limits, key=key, names=known)
        return uvloop.run(_serve(service, listener, tell))
    finally:
        scratch.close()
        listener.close()


async def _serve(service: Service, listener: socket.socket, tell: Callable[[str], None]) -> bool:
    batcher = service.batcher

    def loaded() -> None:
        predictor = batcher.predictor
        if predictor is None:
            server.should_exit = True
        else:
            # the model and its libraries stay: looking through them for what nobody needs takes the better
            # part of a second, in which nobody is answered
            gc.collect()
            gc.freeze()
            classes = " / ".join(predictor.classes)
            tell(f"ready: {predictor.kind} {predictor.name}, {classes}, {predictor.fingerprint[:12]}")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        batcher.start(loaded)
        starting = asyncio.ensure_future(service.intake.start())  # the port answers meanwhile
        yield
        await starting  # a process that is given up while it starts would be nobody's to end
        await asyncio.to_thread(batcher.close)

    server = _DrainingServer(build_app(service, lifespan), service, tell)
    tell(f"listening on {endpoint_of(listener)}, loading the model")
    await server.serve([listener])
    if batcher.failure is not None:
        raise batcher.failure
    return not batcher.busy


class _DrainingServer(HttpServer):
    """A server that ends only after the last answer is given; until then the port says "draining"."""

    def __init__(self, app: Starlette, service: Service, tell: Callable[[str], None]) -> None:
        super().__init__(app, lifespan=True)
        self._service, self._tell = service, tell
        self._loop = asyncio.get_running_loop()
        service.on_idle = lambda: setattr(self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, end at once on the second; raise neither, so that the status is 0."""
        if self._service.draining:
            logging.getLogger("uvicorn.error").disabled = True  # what is cut off now was meant to be
            self.force_exit = self.should_exit = True
        else:
            # out of the signal handler, which may have interrupted anything
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._service.drain()
        with suppress(OSError):  # whoever listened may have gone before
            self._tell("ending: what was taken is finished first")


def compute_threads(asked: int | None) -> int:
    """Return the threads of one model call: as asked, else the cores that this process may really use.

    A container's share of a machine is a quota, which libraries do not see: they would start a thread for
    every core and be throttled.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        pass
    set_by_hand = os.environ.get("OMP_NUM_THREADS", "")
    return int(set_by_hand) if set_by_hand.isdigit() and int(set_by_hand) else cores
