"""What every server of ours shares: a port, an HTTP server that ends in good order, quiet logs.

Connections are bounded in number, and in what they may make wait: headers that do not come, answers that
nobody reads, bodies in crumbs. Where all places are taken, the connection goes that has waited longest
without ever having asked anything, so that half-open ones keep nobody out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from selftrain.errors import ServingError

CONNECTIONS = 2000
ACCEPTED = 256  # in a row: far fewer than there are places, or new ones would push out those just accepted
QUEUE = 1024  # connections that may wait to be accepted
HEADER_SECONDS = 10.0  # from the first byte of a request, or from connecting, to the end of its headers
DOORS = 8  # connections taken in a turn of the event loop
READ_SECONDS = 30.0  # that a client may let an answer lie
HEADER_BYTES = 16_384
CRUMBS, CRUMB = 2000, 256  # so many parts of a body may be smaller than so many bytes

_log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn without a log of its own, that ends with status 0 on a signal.

    `lifespan` says whether the application has a start and an end of its own; `started` is called once
    requests and signals are listened to.
    """

    def __init__(
        self, app: Starlette, *, lifespan: bool = False, started: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            app, http=Doorway, ws="none", lifespan="on" if lifespan else "off", log_config=None,
            access_log=False, server_header=False, timeout_graceful_shutdown=5, backlog=ACCEPTED,
            proxy_headers=False, h11_max_incomplete_event_size=HEADER_BYTES,
        )  # fmt: skip
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and report it."""
        _allow_files(CONNECTIONS + 2 * ACCEPTED + 100)
        # uvloop takes one connection a turn from each socket: where strangers open hundreds, the others would
        # wait for as many turns
        doors = [one.dup() for one in sockets or () for _ in range(DOORS - 1)]
        await super().startup(sockets=[*sockets, *doors] if sockets else None)
        for listener in sockets or ():
            listener.listen(QUEUE)  # asyncio knows one number for both
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let requests under way finish on the first signal, and not on the second; raise neither again."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _allow_files(wanted: int) -> None:
    """Let this process open so many files at once: a server that runs out of them accepts nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning("%d open files are allowed, %d are needed under attack: raise ulimit -n", most, wanted)


# ---- connections ---------------------------------------------------------------------------------------


class Doorway(asyncio.Protocol):
    """A connection on which no request has come yet: strangers open many, so it costs as little as it can.

    With the end of a request's headers it becomes a `GuardedProtocol`.

    Args:
        server_state: Of uvicorn, with all its connections.
        others: What a `GuardedProtocol` is made with besides.
    """

    _END = re.compile(rb"\n\r?\n")
    idle = True

    def __init__(self, *, server_state: ServerState, **others: Any) -> None:  # noqa: ANN401 -- as uvicorn calls it
        self._state, self._others = server_state, others
        self._connections: set[Any] = server_state.connections  # uvicorn calls their `shutdown`, no more
        self._head = bytearray()
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in the place of one that asks nothing where there is no other."""
        self.transport, connections = transport, self._connections
        if len(connections) >= CONNECTIONS:
            # those that never asked go first; the one that waits longest among them
            idle = (one for one in connections if one.idle)
            oldest = min(idle, key=lambda one: (isinstance(one, GuardedProtocol), one.since), default=None)
            if oldest is None:
                transport.abort()
            else:
                oldest.transport.abort()
                connections.discard(oldest)
        connections.add(self)
        self._cut = asyncio.get_running_loop().call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Keep what came until headers end, are too long, or are none."""
        seen = max(len(self._head) - 2, 0)
        self._head += data
        if (
            self._head[0] > ord(" ")
            and len(self._head) <= HEADER_BYTES
            and not self._END.search(self._head, seen)
        ):
            return
        self._leave()
        asked = GuardedProtocol(server_state=self._state, **self._others)
        self.transport.set_protocol(asked)
        asked.connection_made(self.transport)
        asked.data_received(bytes(self._head))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()

    def shutdown(self) -> None:
        """End with the server: nothing is under way."""
        self.transport.close()

    def _leave(self) -> None:
        self._cut.cancel()
        self._connections.discard(self)


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, whose clients cannot make it wait for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- as uvicorn calls it
        super().__init__(*args, **kwargs)
        self.conn = _CountingConnection(h11.SERVER, HEADER_BYTES)
        self.since = time.monotonic()
        self._cut: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read what came, and see to it that headers end."""
        was_idle = self.idle
        super().data_received(data)
        if not self.idle:
            self.since = time.monotonic()
            self._keep()
        elif was_idle and self._cut is None and not self.transport.is_closing():
            self._cut_after(HEADER_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing more is asked; not read by then, it is cut."""
        super().timeout_keep_alive_handler()
        self._cut_after(READ_SECONDS)

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        self._cut_after(READ_SECONDS)

    def resume_writing(self) -> None:
        """Go on with one that reads."""
        super().resume_writing()
        self._keep()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._keep()
        super().connection_lost(exc)

    def _cut_after(self, seconds: float) -> None:
        self._keep()
        self._cut = self.loop.call_later(seconds, self.transport.abort)

    def _keep(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


class _CountingConnection(h11.Connection):
    """h11 that gives up over a body in crumbs: each costs as much to read as a large part.

    And over one of two lengths, by which a proxy in front may end it elsewhere and pass a request on unseen.
    """

    _crumbs = 0

    def next_event(self) -> Any:  # noqa: ANN401 -- as h11's
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._crumbs = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("a body of two lengths: Content-Length and Transfer-Encoding")
        elif isinstance(event, h11.Data) and len(event.data) < CRUMB:
            self._crumbs += 1
            if self._crumbs > CRUMBS:
                raise h11.RemoteProtocolError(f"more than {CRUMBS:,} parts of less than {CRUMB} bytes")
        return event


# ---- ports and logs ------------------------------------------------------------------------------------


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
        listener = socket.create_server(place, family=family, backlog=QUEUE)
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
    """Log warnings and errors alone, on standard error, and none of them without end.

    Where a program has set up logging of its own, that is left as it is.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_Sparing())
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, handlers=[handler])


class _Sparing(logging.Filter):
    """Lets `most` equal messages of one place in the code pass in a minute; the next one says how many not.

    Who can make a server log a line can make it log a disk full of them.
    """

    most, seconds = 5, 60.0

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written."""
        # where a server ends while its workers do, asyncio may ask for a worker's exit status twice, and
        # warns of the second time; nobody wants that status
        if record.name == "asyncio" and str(record.msg).startswith("Unknown child process pid"):
            return False
        place, now = (record.pathname, record.lineno), time.monotonic()
        begun, count = self._passed.get(place, (now, 0))
        if now - begun > self.seconds:
            if count > self.most:
                record.msg = f"{record.msg} (and {count - self.most:,} like it before)"
            begun, count = now, 0
        self._passed[place] = begun, count + 1
        return count < self.most
