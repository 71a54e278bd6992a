"""The port that a server of ours listens on, and what its process writes."""

from __future__ import annotations

import logging
import socket

from selftrain.errors import ServingError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ServingError: The address is not this machine's, or the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise ServingError(f"{host}:{port} cannot be listened on: give a --port of 0 to 65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        why = error.strerror or error
        raise ServingError(f"{host}:{port} cannot be listened on ({why}): give another --port") from error
    listener.setblocking(False)
    return listener


def address(listener: socket.socket) -> str:
    """``http://HOST:PORT``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def quiet_logs() -> None:
    """Warnings and errors alone, on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
