"""What is asked of a model and what comes back, whatever serves it.

A request is made of plain values, so that it can be shown, hashed and sent anywhere. Pictures stand in it as
bytes with their origin: the cache (`cache_keys`) sees the file that they were made of, the server the bytes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from operator import add
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies

from agents.client.urls import is_usable
from agents.errors import ServerRefusedError


class Picture(NamedTuple):
    """An image as it is sent."""

    # SHA-256, in hex, of the file it was made of, and how large it was made: the same whichever encoder wrote
    # `data`, so that a newer one buys no answer again
    source: str
    media_type: str
    data: bytes  # encoded; empty where it is yet to be made of `path`
    path: Path | None = None  # the file
    url: bytes = b""  # as JSON has it, where it was made already: `messages.data_url`
    # (which, of how many) it is of the frames that a video at `path` is sampled into; None: no frame
    frame: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what it is made of, as JSON values."""
        return {"picture": self.source} | ({} if self.frame is None else {"frame": list(self.frame)})


Part: TypeAlias = str | Picture


class Message(NamedTuple):
    """One turn: text and pictures in the order in which the model sees them."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, pictures by their source."""
        parts = [part if isinstance(part, str) else part.to_json() for part in self.parts]
        return {"role": self.role, "parts": parts}


class Sampling(NamedTuple):
    """How the model chooses its tokens."""

    max_tokens: int  # most tokens of the answer
    temperature: float = 0.0  # 0: the likeliest token always
    seed: int = 0  # of the draw where the temperature is above 0
    # how many alternatives are wanted with each token; 0: no log-probabilities. A server may give fewer
    top_logprobs: int = 20


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call."""

    messages: tuple[Message, ...]  # the conversation so far; the model writes the next turn
    schema: Mapping[str, Any] | None  # JSON schema that the answer is constrained to; None: free text
    sampling: Sampling  # see `Sampling`
    # requests of one affinity share the beginning of their prompt: whoever has several servers sends them to
    # the same one. Not part of what is asked
    affinity: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys of the body, as the user gave them

    def to_json(self) -> dict[str, Any]:
        """Return everything that changes an answer on purpose, pictures by their source; JSON values."""
        return {
            "messages": [turn.to_json() for turn in self.messages],
            "schema": self.schema,
            "sampling": self.sampling._asdict(),
            "extra": dict(self.extra),
        }


class Identity(NamedTuple):
    """Which model answers."""

    model: str  # the name under which it is served
    root: str  # what was loaded: a hub name or a folder; with an adapter, the adapter's
    base: str  # the model under the adapter; empty without one
    revision: str  # of the weights: as the user states it, or a fingerprint of a folder that can be read here
    server: str  # what serves it, with its version: "vllm 0.32.0"; "openai-compatible" where it does not say
    context: int  # most tokens of prompt and answer together; 0: the server does not say

    def __str__(self) -> str:
        loaded = f"{self.root} over {self.base}" if self.base else self.root
        return f"{self.model} ({loaded}, {self.context} tokens, {self.server})"


class Token(NamedTuple):
    """One token of an answer: its log-probability, and the likeliest tokens in its place, itself included."""

    text: str
    logprob: float
    alternatives: Iterable[tuple[str, float]]  # as often as is asked; () where none were listed


class Usage(NamedTuple):
    """Tokens of one call or of many; `cached` and `image` are parts of `prompt`."""

    prompt: int = 0
    cached: int = 0
    image: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        """Tokens that count against a cap."""
        return self.prompt + self.completion

    def plus(self, other: Usage) -> Usage:
        """Return both together."""
        return Usage(*map(add, self, other))


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer."""

    text: str  # what the model wrote
    finish: str  # why it stopped: "stop", "length" (cut off), "content_filter", or the server's word for it
    usage: Usage  # tokens of this call; zeros where the server does not count, see `counted`
    tokens: tuple[Token, ...] = field(default=(), repr=False)  # of the answer; empty: no log-probabilities
    refusal: str = ""  # the server's own refusal text; empty for an ordinary answer
    seconds: float = 0.0  # from sending to the last byte, retries and waiting apart
    reasoning: str = ""  # what a thinking model wrote before its answer
    counted: bool = True  # whether the server said how many tokens the call took


class PromptSize(NamedTuple):
    """Tokens of a prompt as the model would see it; `image` is the part that its pictures take."""

    prompt: int
    image: int


class Backend(Protocol):
    """What answers requests. Used on one event loop, from `open` to `close`."""

    async def open(self) -> Identity:
        """Reach the model and say which it is.

        Raises:
            ServerLostError, ServerRefusedError: It cannot be reached, or refuses.
        """
        ...

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the answer to one request; waits for its turn.

        Raises:
            RequestRefusedError, CallFailedError: This request has no answer; others may have.
            ServerRefusedError, ServerLostError: No request will have one.
        """
        ...

    async def measure(self, request: ChatRequest) -> PromptSize:
        """Return the size of a prompt, without asking for an answer. Raises as `complete`."""
        ...

    def width(self) -> int:
        """Return how many posts are worth having under way now."""
        ...

    async def close(self) -> None:
        """Let go of connections or memory; requests under way are given up."""
        ...


Recorded: TypeAlias = Literal["server", "context", "encoder"]
"""What is noted beside an answer and is no part of its cache key, unless a recipe says so: the server with
its version, the context length, what encoded the pictures."""


def cache_keys(
    requests: Sequence[ChatRequest], identity: Identity, also: Mapping[str, str] | None = None
) -> list[str]:
    """Return the keys of answers: SHA-256, in hex, of the request and of who answers it.

    A change of model, adapter, revision, prompt, picture file or size, sampling or schema is another key, and
    whatever `also` names; an upgrade of server or libraries is not: nothing is bought again for it. Requests
    that differ in their sampling alone (the attempts at one prompt) share the work of the rest.
    """
    keys, last = list[str](), None
    opening = _who_in_json(identity, tuple(sorted((also or {}).items())))
    for request in requests:
        if last is None or request.messages is not last.messages or request.extra != last.extra:
            # what follows is JSON with its keys in order: extra, messages, sampling, schema
            turns = ",".join(map(_turn_in_json, request.messages))
            text = f'{opening}"request":{{"extra":{_json(dict(request.extra))},"messages":[{turns}],'
            begun = hashlib.sha256(text.encode())
        if last is None or request.schema is not last.schema:
            schema = _json(request.schema)
        digest, last = begun.copy(), request
        digest.update(f'"sampling":{_sampling_in_json(request.sampling)},"schema":{schema}}}}}'.encode())
        keys.append(digest.hexdigest())
    return keys


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


@lru_cache(maxsize=16)
def _who_in_json(identity: Identity, also: tuple[tuple[str, str], ...]) -> str:
    """Return the beginning of what keys are made of."""
    who = {name: getattr(identity, name) for name in ("model", "root", "base", "revision")}
    return f'{{"identity":{_json(who | dict(also))},'


@lru_cache(maxsize=256)
def _sampling_in_json(sampling: Sampling) -> str:
    return _json(sampling._asdict())


@lru_cache(maxsize=256)
def _turn_in_json(turn: Message) -> str:
    """Return a turn as keys have it; the first ones of a prompt are those of many."""
    return _json(turn.to_json())


def picture(data: bytes, media_type: str) -> Picture:
    """Return a picture that is sent as it is."""
    return Picture(hashlib.sha256(data).hexdigest(), media_type, data)


def is_loopback(host: str) -> bool:
    """Return whether a host, a name or an address, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Route(NamedTuple):
    """How a server is reached; chosen here, so that what is refused, used and named in messages is one."""

    proxy: str | None  # the URL of the proxy; None: directly
    variable: str  # of the environment, that names it
    certificates: ssl.SSLContext | bool  # as httpx takes `verify`

    def words(self) -> str:
        """Return what a failure adds: by which proxy the server was called; or nothing."""
        if self.proxy is None:
            return ""
        return f" (called through the proxy {_without_password(self.proxy)} of {self.variable})"


def route_to(url: str) -> Route:
    """Return how `url` is reached, by what the environment says of proxies and certificates.

    This machine's own servers are called directly, as are hosts, domains and networks of NO_PROXY.

    Raises:
        ServerRefusedError: A variable names what cannot be used; which, and what to do.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    found = {} if is_loopback(host) else getproxies()
    scheme = next((one for one in (parts.scheme, "all") if found.get(one)), "")
    if not scheme or _bypassed(parts.netloc.lower(), host, found.get("no", "")):
        return Route(None, "", parts.scheme == "https" and _certificates())
    named, variable = found[scheme].strip(), f"{scheme.upper()}_PROXY"
    proxy = named if "://" in named else f"http://{named}"
    if not is_usable(proxy):
        raise ServerRefusedError(
            f"{variable} is {_without_password(named)!r}, a proxy that cannot be used: expected"
            f" http://HOST:PORT (SOCKS is not spoken). Correct it, unset it, or name the host in NO_PROXY"
        )
    # loading them takes 0.1 s, and plain HTTP needs none
    secure = "https" in (parts.scheme, urlsplit(proxy).scheme)
    return Route(proxy, variable, secure and _certificates())


def _bypassed(place: str, host: str, hosts: str) -> bool:
    """Tell whether NO_PROXY names a host: itself, with or without its port, its domain or network, or all."""
    for one in (each.strip().lower() for each in hosts.split(",")):
        name = one.removeprefix("*").removeprefix(".")
        if one == "*" or (
            name and any(known == name or known.endswith(f".{name}") for known in (place, host))
        ):
            return True
        with suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(one.strip("[]"), strict=False):
                return True
    return False


def _certificates() -> ssl.SSLContext | bool:
    """Return the authorities that the environment names, else True: those that come with Python."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file and not folder:
        return True
    try:
        if folder and not Path(folder).is_dir():
            file, reason = None, "no folder"
        else:
            return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as error:
        # an SSLError is one too, with a number that means something else
        reason = "no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror or str(error)
    variable, value = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", folder)
    raise ServerRefusedError(
        f"{variable} is {value!r}, which cannot be used ({reason}): correct it, or unset it to use the"
        " certificates that come with Python"
    )


def _without_password(proxy: str) -> str:
    return re.sub(r"//.*@", "//", proxy)
