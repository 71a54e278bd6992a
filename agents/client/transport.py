"""One HTTP exchange with one address: what came back, or how it failed, as a value.

Failures are values, not exceptions, because the client library's exceptions carry the request's headers and
the server's words: whoever raises later has no such exception in its context, and no key in any traceback.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from agents.errors import ServerRefusedError

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0
"""Unused connections are dropped before the server drops them (vLLM: after 5 s): sent into a connection that
is just being closed, a request fails and its address looks dead."""
LONGEST_REASON = 600

Kind: TypeAlias = Literal["busy", "late", "broken", "lost", "request", "us"]
"""busy: 429, 503; late: no answer in time; broken: an answer that cannot be read; lost: no connection, or
5xx; request: the server refuses this request; us: it refuses every one of ours."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an exchange brought no answer.

    Attributes:
        kind: What follows from it, see `Kind`.
        reason: In words, with the server's own where there are any; without the key.
        status: Of the HTTP answer; 0 without one.
        wait: Seconds that the server asks us to wait (Retry-After); None: it does not say.
    """

    kind: Kind
    reason: str
    status: int = 0
    wait: float | None = None


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
        """The key, for the header alone."""
        return self._value or "EMPTY"

    def clean(self, text: str) -> str:
        """`text` on one line, without the key and cut to a length that can be read."""
        if self._value:
            for shown in (self._value, json.dumps(self._value)[1:-1]):
                text = text.replace(shown, f"[{self.variable}]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def plain_address(text: str) -> str:
    """An address as it is used and shown: scheme, host, port, path, without a final /v1.

    Raises:
        ServerRefusedError: It is no http(s) address, or one with a user, a query or a fragment.
    """
    if set("@?#") & set(text):
        # not shown: it may hold a password
        raise ServerRefusedError(
            "a server address holds a user, a query or a fragment: expected http://host:port; a key belongs "
            "into the environment variable"
        )
    parts = _split(text.strip())
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or len(text.split()) > 1:
        raise ServerRefusedError(f"server address {text!r}: expected http://host:port or https://host:port")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


def _split(text: str) -> SplitResult | None:
    """The parts of a URL; None: it has a port or a bracket that is none."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts


class Link:
    """The connections to one address.

    Args:
        address: As `plain_address` gives it.
        key: Sent with every request.
        maximum: Connections kept open between calls.
    """

    def __init__(self, address: str, key: Key, maximum: int) -> None:
        self.address = address
        self._key = key
        self._client, self._response = _open_client(address, key, maximum)

    def __repr__(self) -> str:
        return f"Link({self.address!r})"

    async def get(self, path: str) -> bytes | Failure:
        """The body at `path`, or how it failed. No time limit: put one around it."""
        return await self._exchange("get", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> bytes | Failure:
        """The body of the answer to `body`, or how it failed. No time limit: put one around it."""
        return await self._exchange("post", path, body)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes | Failure:
        import openai

        url = self.address + path
        try:
            if method == "get":
                response = await self._client.get(url, cast_to=self._response)
            else:
                response = await self._client.post(url, body=body, cast_to=self._response)
        except openai.APIStatusError as error:
            failure = self._refused(error, path)
        except openai.APIConnectionError as error:
            failure = Failure("lost", self._key.clean(f"{self.address}: {_why(error)}"))
        else:
            return bytes(response.content)
        return failure

    def _refused(self, error: APIStatusError, path: str) -> Failure:
        status = error.status_code
        said = self._key.clean(_server_words(error.response.text)) or error.response.reason_phrase
        kind, advice = _meaning(status)
        if status in (401, 403):
            advice = (
                f"the key in {self._key.variable} is not accepted: set it to the server's own"
                if self._key.given
                else f"the server asks for a key: set the environment variable {self._key.variable}"
            )
        reason = f"{self.address}{path}: HTTP {status}: {said}" + (f" ({advice})" if advice else "")
        return Failure(kind, reason, status, _retry_after(error.response.headers.get("retry-after")))


def _open_client(address: str, key: Key, maximum: int) -> tuple[AsyncOpenAI, Any]:
    """A client for one address, and the type of its raw answers.

    openai up to 2 stands on httpx, from 3 on httpx2: whichever it is, its own client class knows. Answers are
    taken raw: with 20 alternatives a token, the library's pydantic models make a call of 24 tokens cost 9 ms
    of the processor instead of 3.
    """
    import openai

    http = import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    local = _is_loopback(address)
    client = openai.AsyncOpenAI(
        api_key=key.reveal(),
        base_url=address + "/v1",
        max_retries=0,
        timeout=openai.Timeout(None, connect=CONNECT_SECONDS),
        http_client=openai.DefaultAsyncHttpxClient(
            # the limiter bounds the calls; a redirect would send posts to a server that nobody named
            limits=http.Limits(
                max_connections=None, max_keepalive_connections=maximum, keepalive_expiry=IDLE_SECONDS
            ),
            follow_redirects=False,
            # a proxy named in the environment cannot reach this machine's own servers
            trust_env=not local,
            # loading the certificates takes 0.1 s, and nothing but plain HTTP goes to these addresses
            verify=not (local and address.startswith("http:")),
        ),
    )
    # openai takes these from OPENAI_ORG_ID and OPENAI_PROJECT_ID; they are no business of another server
    client.organization = client.project = None
    return client, http.Response


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _meaning(status: int) -> tuple[Kind, str]:
    """What follows from an HTTP status that is no success, and what to do where that helps."""
    if status in (408, 425, 429, 503):
        return "busy", ""
    if status >= 500:
        return "lost", ""
    if status in (401, 402, 403, 407):
        return "us", ""
    if status in (404, 405):
        return "us", "is this the address of an OpenAI-compatible server, and does it still serve the model?"
    if status < 400:
        return "us", "it sends us elsewhere: give the final address"
    return "request", ""


def _server_words(text: str) -> str:
    """The message in an error body, whose usual forms are tried in turn; else the whole body."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        inner = inner.get("message") or inner.get("detail") or inner
    return inner if isinstance(inner, str) else json.dumps(inner)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None: absent or neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _why(error: APIConnectionError) -> str:
    """The innermost words of a failed connection: the library's own say only "Connection error."."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return f"no connection within {CONNECT_SECONDS:g} s"  # of the client's limits only this one is set
    words, link = str(error), error.__cause__
    while link is not None:
        if isinstance(link, BaseExceptionGroup):
            link = link.exceptions[0]
        known = isinstance(link, OSError) and link.errno
        # asyncio's own text, "Connect call failed", hides that the connection was refused
        words = os.strerror(known) if known else str(link) or type(link).__name__
        link = link.__cause__ or link.__context__
    return words
