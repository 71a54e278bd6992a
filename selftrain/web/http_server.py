"""What every server of ours shares: a port, an HTTP server that ends in good order, quiet logs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from selftrain.errors import ServingError


class HttpServer(uvicorn.Server):
    """uvicorn without a log of its own, that ends with status 0 on a signal.

    Args:
        app: What answers.
        lifespan: Whether the application has a start and an end of its own.
        started: Called once requests and signals are listened to.
    """

    def __init__(
        self, app: Starlette, *, lifespan: bool = False, started: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="on" if lifespan else "off", log_config=None,
            access_log=False, server_header=False, timeout_graceful_shutdown=5,
        )  # fmt: skip
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and report it."""
        await super().startup(sockets=sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let requests under way finish on the first signal, and not on the second; raise neither again."""
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ServingError: The host is not this machine's, or the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise ServingError(f"{host}:{port} cannot be listened on: give a --port of 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, place = found[0]
        listener = socket.create_server(place, family=family, backlog=2048)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while attempting")[0]  # the address is said already
        raise ServingError(f"{host}:{port} cannot be listened on ({why}): give another --port") from error
    listener.setblocking(False)
    return listener


def endpoint_of(listener: socket.socket) -> str:
    """Return ``http://HOST:PORT``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def quiet_logs() -> None:
    """Log warnings and errors alone, on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
