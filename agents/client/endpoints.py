"""One server that a chat client may call: its connections, how busy it is, and what an exchange ends in.

An exchange with a server ends in bytes or in a `Failure`. Failures are values, not exceptions, because the
client library's exceptions carry the request's headers and the server's words: whoever raises later has no
such exception in its context, and no key in any traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import anyio

from agents.client.base import Route, is_usable, route_to
from agents.client.messages import BrokenAnswerError
from agents.errors import ServerRefusedError

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import APIStatusError, AsyncOpenAI

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0
"""Unused connections are dropped before the server drops them (vLLM: after 5 s): sent into a connection that
is just being closed, a request fails and its endpoint looks dead."""
SPARE_CONNECTIONS = 4  # for probes, beside the calls
LONGEST_REASON = 600
ELSEWHERE = "it sends us elsewhere: give the final URL"
_SECRET = 8  # characters of a key that is one
MOST_BYTES = 8 << 20
"""Of a body where nothing else is said: a list of models may hold hundreds."""

_most_bytes: ContextVar[int] = ContextVar("most_bytes", default=MOST_BYTES)

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


class Key:
    """The API key in an environment variable, and its removal from whatever is shown.

    Args:
        variable: Name of the environment variable; unset or empty: servers get "EMPTY", as vLLM's own
            examples send where no key is asked for.

    Raises:
        ServerRefusedError: The variable holds what no HTTP header can carry.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._value = os.environ.get(variable, "").strip()
        if not all("!" <= character <= "~" for character in self._value):
            raise ServerRefusedError(
                f"the key in the environment variable {variable} holds blanks or characters outside ASCII; "
                "no HTTP header can carry it: set it again, on one line and without quotes"
            )

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
        """Return what a server sent without the key, which it may show to us and we would keep."""
        return mask(data, self._value, self.variable)

    def clean(self, text: str) -> str:
        """Return `text` on one line, without the key and cut to a length that can be read."""
        if self._value:
            for shown in (self._value, json.dumps(self._value)[1:-1]):
                text = text.replace(shown, f"[{self.variable}]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def mask(data: bytes, key: str, name: str) -> bytes:
    """Return `data` with `name` in place of the key; a short key is no secret, and part of many a word."""
    if len(key) >= _SECRET:
        for shown in (key, json.dumps(key)[1:-1]):
            data = data.replace(shown.encode(), f"[{name}]".encode())
    return data


class Limiter:
    """A limit on calls in flight that halves when the server is overloaded and grows back with successes.

    A full round of successes (as many as the limit) adds one. Calls that were sent before the last cut say
    nothing new when they fail too: a round of 64 refusals halves the limit once, not down to one.

    Args:
        maximum: Where the limit starts and what it never passes, >= 1.
    """

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"a limit of {maximum} calls in flight: expected 1 or more")
        self.places = anyio.CapacityLimiter(maximum)
        self._maximum, self._limit, self._last_cut = maximum, float(maximum), float("-inf")

    @property
    def limit(self) -> int:
        """Most calls in flight now."""
        return int(self._limit)

    def succeeded(self) -> bool:
        """Grow, and return whether `limit` changed."""
        return self._set(min(float(self._maximum), self._limit + 1.0 / self._limit))

    def overloaded(self, sent: float, now: float) -> bool:
        """Halve unless the call was sent before the last cut, and return whether `limit` changed.

        Both times are seconds of one clock; the call that met the overload was `sent` then.
        """
        if sent < self._last_cut:
            return False
        self._last_cut = now
        return self._set(max(1.0, self._limit / 2.0))

    def _set(self, limit: float) -> bool:
        before, self._limit = self.limit, limit
        self.places.total_tokens = self.limit
        return self.limit != before


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
        self.flights: set[anyio.CancelScope] = set()  # of calls in flight there; cancelling one ends its call
        self.key, self._timeout = key, timeout
        self._route = route_to(url)
        self._client = _open_client(url, key, maximum, timeout, self._route)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    @property
    def load(self) -> float:
        """Calls in line and in flight as a share of the limit."""
        return (self.in_flight + self.waiting) / self.limiter.limit

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return self.limiter.places.borrowed_tokens

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return self.limiter.places.statistics().tasks_waiting

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def exchange(
        self, path: str, body: Mapping[str, Any] | None = None, most_bytes: int = MOST_BYTES
    ) -> bytes | Failure:
        """Return what comes back from `path`, to `body` or to a GET, or how the exchange failed."""
        _most_bytes.set(most_bytes)
        with anyio.move_on_after(self._timeout):
            return await self._exchanged(path, body)
        return Failure("late", f"{self.url}: no answer within {self._timeout:g} s")

    async def _exchanged(self, path: str, body: Mapping[str, Any] | None) -> bytes | Failure:
        import aiohttp
        import httpx2
        import openai

        # Answers are taken raw: with 20 alternatives a token, the library's pydantic models make a call of 24
        # tokens cost 9 ms of the processor instead of 3.
        url, raw = self.url + path, httpx2.Response
        try:
            if body is None:
                response = await self._client.get(url, cast_to=raw)
            else:
                response = await self._client.post(url, cast_to=raw, body=body)
        except openai.APIStatusError as error:
            failure = self._refused(error, path)
        # what is no HTTP comes through the library as aiohttp's own error
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            failure = self._unanswered(error)
        except BrokenAnswerError as error:
            failure = Failure("broken", f"{self.url}{path}: {error}")
        else:
            return self.key.mask(bytes(response.content))
        return failure

    def _refused(self, error: APIStatusError, path: str) -> Failure:
        status, response = error.status_code, error.response
        kind, advice = _meaning(status)
        if status in (401, 403):
            advice = (
                f"the key in {self.key.variable} is not accepted: set it to the server's own"
                if self.key.given
                else f"the server asks for a key: set the environment variable {self.key.variable}"
            )
        said = self.key.clean(server_words(response.text)) or response.reason_phrase
        reason = f"{self.url}{path}: HTTP {status}: {said}" + (f" ({advice})" if advice else "")
        reason += self._route.words()  # it may be a page of the proxy's
        return Failure(kind, reason, status, retry_after(response.headers.get("retry-after")))

    def _unanswered(self, error: Exception) -> Failure:
        import httpx2

        # the transport calls a refused connection a timeout too: only this one is that of an answer
        if isinstance(error.__cause__, httpx2.ReadTimeout):
            return Failure("late", f"{self.url}: no answer within {self._timeout:g} s")
        words = _innermost_words(error) + self._route.words()
        return Failure("lost", self.key.clean(f"{self.url}: {words}"))


def plain_endpoint(text: str) -> str:
    """Return a URL as it is used and shown: scheme, host, port, path, without /v1 and what follows.

    Raises:
        ServerRefusedError: It is no http(s) URL, or one with a user, a query or a fragment.
    """
    if set("@?#") & set(text):
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


def server_words(text: str) -> str:
    """Return the message in an error body, whose usual forms are tried in turn; else the whole body."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        inner = inner.get("message") or inner.get("detail") or inner
    return inner if isinstance(inner, str) else json.dumps(inner)


def retry_after(value: str | None) -> float | None:
    """Return seconds, from a number or a date; None: absent or neither."""
    if value is None:
        return None
    for seconds in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        with contextlib.suppress(ValueError):
            return max(0.0, seconds(value))
    return None


async def _bounded(response: Response) -> None:
    """Let no more of a body come than was said; what unpacks to more than it weighs is not unpacked."""
    import httpx2

    most = _most_bytes.get()
    if response.headers.get("content-encoding", "identity") != "identity":
        raise BrokenAnswerError("it is compressed, which was not asked for")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    stream: httpx2.AsyncByteStream = response.stream

    class Counted(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = most
            async for chunk in stream:
                if (left := left - len(chunk)) < 0:
                    raise BrokenAnswerError(f"an answer of more than {most:,} bytes")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    response.stream = Counted()


def _open_client(url: str, key: Key, maximum: int, timeout: float, route: Route) -> AsyncOpenAI:
    """Return a client for one endpoint that neither retries nor follows anybody elsewhere.

    aiohttp below it carries many calls at once with much less work than httpx does.
    """
    import httpx2
    import openai

    headers = {"Accept-Encoding": "identity"}
    client = openai.AsyncOpenAI(
        api_key=key.reveal(),
        base_url=url + "/v1",
        max_retries=0,  # a retry may go to another endpoint, which this client does not know
        timeout=openai.Timeout(timeout, connect=CONNECT_SECONDS),
        default_headers=headers,
        http_client=openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=maximum + SPARE_CONNECTIONS, keepalive_expiry=IDLE_SECONDS),
            event_hooks={"response": [_bounded]},
            follow_redirects=False,  # it would send posts to a server that nobody named
            trust_env=False,
            proxy=route.proxy,
            verify=route.certificates,
        ),
    )
    # openai takes these from OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_ADMIN_KEY and OPENAI_CUSTOM_HEADERS
    # which are no business of another server. There is no public way to take the last ones away
    client.organization = client.project = client.admin_api_key = None
    client._custom_headers = dict(headers)
    return client


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
