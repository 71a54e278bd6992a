"""One server that a chat client may call: its connections, how busy it is, and what an exchange ends in.

An exchange with a server ends in bytes or in a `Failure`. Failures are values, not exceptions, because the
HTTP library's exceptions carry the request's headers and the server's words: whoever raises later has no
such exception in its context, and no key in any traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from agents.client.base import Route, route_to
from agents.client.limiter import Limiter
from agents.client.messages import BrokenAnswerError
from agents.client.urls import is_usable, may_hold_secret
from agents.errors import ServerRefusedError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0
"""Unused connections are dropped before the server drops them (vLLM: after 5 s): sent into a connection that
is just being closed, a request fails and its endpoint looks dead."""
SPARE_CONNECTIONS = 4  # for probes, beside the calls
LONGEST_REASON = 600
ELSEWHERE = "it sends us elsewhere: give the final URL"
RANK_HEADER = "X-data-parallel-rank"  # by which vLLM is told the copy of the model
SESSION_HEADER = "X-Session-ID"
"""By which a router between us and copies of the model keeps one post's calls together: Ray Serve's
ConsistentHashRouter reads it under this name, others under one that is configured. Whoever routes nothing
ignores it."""
_SECRET = 8  # characters of a key that is one
MOST_BYTES = 8 << 20
"""Of a body where nothing else is said: a list of models may hold hundreds."""

Kind: TypeAlias = Literal["busy", "late", "broken", "lost", "request", "us"]
"""busy: 429, 503; late: no answer in time; broken: an answer that cannot be read; lost: no connection, or
5xx; request: the server refuses this request; us: it refuses every one of ours."""

OnEvent: TypeAlias = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an exchange brought no answer."""

    kind: Kind  # what follows from it, see `Kind`
    reason: str  # in words, with the server's own where there are any; without the key
    status: int = 0  # of the HTTP answer; 0 without one
    wait: float | None = None  # seconds that the server asks us to wait (Retry-After); None: it does not say


class HttpReply(NamedTuple):
    """An answer over HTTP."""

    status: int
    body: bytes  # without the key
    reason: str = ""  # the server's word for the status
    wait: float | None = None  # as in `Failure`
    via: str = ""  # words about the proxy that may be the one who answers

    @property
    def words(self) -> str:
        """The body for a message: the server's own words where it is an error in JSON."""
        text = server_words(self.body.decode("utf-8", "replace").strip())
        text = text if len(text) <= 300 else text[:297] + "..."
        if 300 <= self.status < 400:
            text = ELSEWHERE
        return (text if self.status == 0 else f"HTTP {self.status}, {text}") + self.via


class Key:
    """The API key in an environment variable, and its removal from whatever is shown.

    Args:
        variable: Name of the environment variable; unset or empty: servers get "EMPTY", as vLLM's own
            examples send where no key is asked for.
        value: The key itself, where it was read already.

    Raises:
        ServerRefusedError: The variable holds what no HTTP header can carry.
    """

    def __init__(self, variable: str, value: str | None = None) -> None:
        self.variable = variable
        self._value = (os.environ.get(variable, "") if value is None else value).strip()
        if not all("!" <= character <= "~" for character in self._value):
            raise ServerRefusedError(
                f"the key in the environment variable {variable} holds blanks or characters outside ASCII; "
                "no HTTP header can carry it: set it again, on one line and without quotes"
            )
        # JSON may write any character as an escape, and some servers do so with <, > and &
        each = (rf"(?:\\?{re.escape(c)}|\\u00(?i:{ord(c):02x}))" for c in self._value)
        self._escaped = re.compile("".join(each).encode())

    def __repr__(self) -> str:
        return f"Key({self.variable!r})"

    @property
    def given(self) -> bool:
        """Whether the variable is set."""
        return bool(self._value)

    def reveal(self) -> str:
        """Return the key, for the header alone."""
        return self._value or "EMPTY"

    def mask(self, data: bytes) -> bytes:
        """Return what a server sent without the key, which it may show to us and we would keep.

        A short key is no secret, and part of many a word.
        """
        if len(self._value) >= _SECRET:
            name = f"[{self.variable}]".encode()
            for shown in (self._value, json.dumps(self._value)[1:-1]):
                data = data.replace(shown.encode(), name)
            if b"\\u00" in data:  # a search by pattern takes a hundred times as long
                data = self._escaped.sub(lambda _: name, data)
        return data

    def clean(self, text: str) -> str:
        """Return `text` on one line, without the key and cut to a length that can be read."""
        if self._value:
            for shown in (self._value, json.dumps(self._value)[1:-1]):
                text = text.replace(shown, f"[{self.variable}]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


class Endpoint:
    """One server.

    Args:
        url: As `plain_endpoint` gives it.
        key: Sent with every request, and removed from whatever is shown.
        maximum: Most calls in flight, >= 1.
        timeout: Seconds that an exchange may take as a whole: a byte now and then prolongs nothing.
    """

    def __init__(self, url: str, key: Key, maximum: int, timeout: float) -> None:
        self.url, self.limiter = url, Limiter(maximum)
        self.up, self.reason = False, ""  # whether calls may be sent there, and why not: "URL: ..."
        self.since = now()  # when that changed last
        self.times_up = 0  # how often it came up: tells a failure of before from one of now
        self.ranks = 1  # copies of the model behind it that can be chosen among
        self._flights: set[asyncio.Timeout] = set()  # of exchanges under way
        self.key, self._timeout = key, timeout
        self._route = route_to(url)
        self._session = _open_session(key, maximum, self._route)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    @property
    def load(self) -> float:
        """Calls in line and in flight as a share of the limit."""
        return (self.limiter.in_flight + self.limiter.waiting) / self.limiter.limit

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def give_up(self) -> None:
        """End what is under way: from a machine that lost its network nothing comes, not even a reset."""
        flights, self._flights = self._flights, set()
        for flight in flights:
            if not flight.expired():
                flight.reschedule(now())

    async def exchange(
        self,
        path: str,
        body: bytes | None = None,
        most_bytes: int = MOST_BYTES,
        seconds: float = math.inf,
        affinity: str = "",
    ) -> bytes | Failure:
        """Return what comes back from `path`, to `body` in JSON or to a GET, or how the exchange failed.

        It may take `seconds`, and never more than the endpoint's timeout. Of one affinity, all go to the same
        copy of the model, which has the beginning that they share in its cache.
        """
        headers = self._headers(affinity) if affinity else None
        reply = await self.send(path, body, most_bytes, min(seconds, self._timeout), headers)
        if isinstance(reply, Failure):
            return reply
        return reply.body if 200 <= reply.status < 300 else self._refused(reply, path)

    def _headers(self, affinity: str) -> dict[str, str]:
        """Return what tells whoever chooses among copies of the model which calls belong together."""
        # a digest: an id may hold what no header can carry, and is nobody's business
        headers = {SESSION_HEADER: hashlib.sha256(affinity.encode()).hexdigest()[:16]}
        if self.ranks > 1:
            headers[RANK_HEADER] = str(zlib.crc32(affinity.encode()) % self.ranks)
        return headers

    async def send(
        self,
        path: str,
        body: bytes | None,
        most_bytes: int,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> HttpReply | Failure:
        """Return the answer of HTTP, whatever its status; see `exchange`."""
        import aiohttp

        method, flight = "GET" if body is None else "POST", asyncio.timeout(seconds)
        self._flights.add(flight)
        try:
            async with (
                flight,
                self._session.request(
                    method, self.url + path, data=body, proxy=self._route.proxy,
                    headers=headers,
                    allow_redirects=False,  # it would send posts to a server that nobody named
                ) as reply,
            ):  # fmt: skip
                data = self.key.mask(await _bounded(reply, most_bytes))
        except BrokenAnswerError as error:
            return Failure("broken", f"{self.url}{path}: {error}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if flight.expired():
                if flight not in self._flights:
                    return Failure("lost", self.reason or self.url)
                return Failure("late", f"{self.url}: no answer within {seconds:g} s")
            words = _innermost_words(error) + self._route.words()
            return Failure("lost", self.key.clean(f"{self.url}: {words}"))
        finally:
            self._flights.discard(flight)
        wait = retry_after(reply.headers.get("retry-after"))
        return HttpReply(reply.status, data, reply.reason or "", wait, self._route.words())

    def _refused(self, reply: HttpReply, path: str) -> Failure:
        kind, advice = _meaning(reply.status)
        if reply.status in (401, 403):
            advice = (
                f"the key in {self.key.variable} is not accepted: set it to the server's own"
                if self.key.given
                else f"the server asks for a key: set the environment variable {self.key.variable}"
            )
        said = self.key.clean(server_words(reply.body.decode("utf-8", "replace")) or reply.reason)
        reason = f"{self.url}{path}: HTTP {reply.status}: {said}" + (f" ({advice})" if advice else "")
        return Failure(kind, reason + reply.via, reply.status, reply.wait)


def plain_endpoint(text: str) -> str:
    """Return a URL as it is used and shown: scheme, host, port, path, without /v1 and what follows.

    Raises:
        ServerRefusedError: It is no http(s) URL, or one with a user, a query or a fragment.
    """
    if may_hold_secret(text):
        # not shown: it may hold a password
        raise ServerRefusedError(
            "a server's URL holds a user, a query or a fragment: expected http://host:port; a key belongs "
            "into the environment variable"
        )
    if not is_usable(text.strip()) or len(text.split()) > 1:
        raise ServerRefusedError(f"the endpoint {text!r}: expected http://host:port or https://host:port")
    parts = urlsplit(text.strip())
    # what is copied from elsewhere is often the address of one of the paths that are called there
    path = re.sub(r"(/v1(/(models|completions|chat/completions))?)?/*$", "", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


_RAY_ERROR = re.compile(
    r"Message: (?P<said>.+?)(?: \(Request ID: [\w-]+\))?, Internal exception: [\w.]+Exception\b", re.DOTALL
)
"""How Ray Serve LLM wraps what the engine says: request id and names of its own classes follow."""


def server_words(text: str) -> str:
    """Return the message in an error body, whose usual forms are tried in turn; else the whole body."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        inner = inner.get("message") or inner.get("detail") or inner
    if not isinstance(inner, str):
        return json.dumps(inner)
    wrapped = _RAY_ERROR.match(inner)
    return wrapped["said"] if wrapped else inner


def retry_after(value: str | None) -> float | None:
    """Return seconds, from a number or a date; None: absent or neither."""
    if value is None:
        return None
    for seconds in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            return max(0.0, seconds(value))
    return None


async def _bounded(reply: ClientResponse, most: int) -> bytes:
    """Return a body of at most so many bytes; what unpacks to more than it weighs is not unpacked."""
    if reply.headers.get("content-encoding", "identity") != "identity":
        raise BrokenAnswerError("it is compressed, which was not asked for")
    parts, left = list[bytes](), most
    async for part in reply.content.iter_any():
        if (left := left - len(part)) < 0:
            raise BrokenAnswerError(f"an answer of more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _open_session(key: Key, maximum: int, route: Route) -> ClientSession:
    """Return connections to one endpoint, that neither remember cookies nor ask the environment anything."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=maximum + SPARE_CONNECTIONS, keepalive_timeout=IDLE_SECONDS, ssl=route.certificates
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        headers={
            "Authorization": f"Bearer {key.reveal()}",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        },
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def _meaning(status: int) -> tuple[Kind, str]:
    """Return what follows from an HTTP status that is no success, and what to do where that helps."""
    if status in (408, 425, 429, 503):
        return "busy", ""
    if status >= 500:
        return "lost", ""
    if status in (404, 405):
        return "us", "is this the endpoint of an OpenAI-compatible server, and does it still serve the model?"
    if status < 400:
        return "us", ELSEWHERE
    return ("us" if status in (401, 402, 403, 407) else "request"), ""


def _innermost_words(error: BaseException) -> str:
    """Return the words of the first cause: the library's own say only "Connection error."."""
    words, link = str(error), error.__cause__
    while link is not None:
        if isinstance(link, ssl.SSLError):
            return tls_words(link)
        words = str(link) or type(link).__name__
        if isinstance(link, OSError) and link.errno:
            # asyncio's own text, "Connect call failed", hides that the connection was refused; the number of
            # a name that nobody knows is none of the system's
            dns = isinstance(link, socket.gaierror) and link.strerror
            words = dns or os.strerror(link.errno)
        link = link.__cause__ or link.__context__
    return words


def tls_words(error: ssl.SSLError | str) -> str:
    """Return why there is no TLS with a server, and what to do."""
    words = str(error)
    if "WRONG_VERSION_NUMBER" in words or "RECORD_LAYER" in words:
        return "what answers there does not speak TLS: write http:// in place of https://"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        found = re.search(r"certificate verify failed: ([^('\"]*[^('\" ])", words)
        reason = f" ({found[1]})" if found else ""
        return (
            f"its certificate is not trusted{reason}: put that of the authority that signed it into a file,"
            " and name the file in SSL_CERT_FILE"
        )
    return words


def now() -> float:
    """Return seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()
