"""The chat client: requests over HTTP to one or several vLLM servers that serve the same model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.client.addresses import Address, Addresses, Snapshot
from agents.client.base import ChatRequest, Completion, Identity, Message, PromptSize
from agents.client.calling import Call, Caller
from agents.client.limiter import Limiter
from agents.client.probes import Probes
from agents.client.translate import chat_body, read_completion, read_count, tokenize_body, without_pictures
from agents.client.transport import Key, Link, plain_address
from agents.client.tries import Tries
from agents.errors import ServerRefusedError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""A probe asks for a few bytes: whoever takes longer is not well."""
TOKENIZE_ABSENT = "An estimate needs vLLM's /tokenize: use a vLLM server, or go without the estimate"


class ChatClient:
    """A `Backend` over HTTP.

    Args:
        addresses: "http://127.0.0.1:8101", with or without /v1; at least one.
        model: Name that must be served; "": the only one that is.
        revision: Of the weights, as the user knows it; "": a fingerprint where they lie on this machine.
        key_variable: Environment variable that holds the API key.
        maximum: Most calls in flight at one address, >= 1.
        timeout: Seconds that one try may take.
        retries: Further tries after the first, >= 0.
        patience: Seconds that calls wait while no address answers.
        backoff: Seconds before the first retry at most; doubles with each.
        probe_delays: Seconds between the first two probes of a lost address, and the most between two.
        seed: Of the jitter.
        on_event: Told of "retry", "down", "up" and "limit", each with its figures.

    Raises:
        ServerRefusedError: An address that is none, or given twice, or none at all.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        model: str = "",
        revision: str = "",
        key_variable: str = "SELFTRAIN_API_KEY",
        maximum: int = 64,
        timeout: float = 120.0,
        retries: int = 4,
        patience: float = 120.0,
        backoff: float = 0.5,
        probe_delays: tuple[float, float] = (0.5, 10.0),
        seed: int = 0,
        on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._urls = [plain_address(text) for text in addresses]
        if not self._urls or len(set(self._urls)) < len(self._urls):
            raise ServerRefusedError(f"server addresses {self._urls}: expected one or more, each once")
        self._model, self._revision, self._key_variable = model, revision, key_variable
        self._maximum, self._timeout, self._retries = maximum, timeout, retries
        self._patience, self._backoff, self._probe_delays = patience, backoff, probe_delays
        self._seed, self._on_event = seed, on_event
        self._opened: _Opened | None = None
        self._closed = False

    async def open(self) -> Identity:
        """Reach the model; addresses that do not answer yet are tolerated if one does.

        Raises:
            ServerLostError: None answered within the patience.
            ServerRefusedError: An address refuses the key or does not serve the model, or two addresses serve
                different ones.
        """
        if self._opened is not None or self._closed:
            raise RuntimeError("a chat client is opened once")
        opened = self._opened = self._connect(Key(self._key_variable))
        try:
            opened.identity = await opened.probes.first(self._patience)
        except BaseException:
            await self.close()
            raise
        return opened.identity

    async def complete(self, request: ChatRequest) -> Completion:
        """The answer to one request; waits for its turn. Raises as `Backend.complete` says."""
        caller, model = self._ready()
        logprobs = request.sampling.top_logprobs > 0
        return await caller.answer(
            Call(
                "/v1/chat/completions",
                request.affinity,
                lambda: chat_body(request, model),
                lambda raw, seconds: read_completion(raw, logprobs=logprobs, seconds=seconds),
            )
        )

    async def measure(self, request: ChatRequest) -> PromptSize:
        """The size of a prompt, by vLLM's /tokenize; raises as `complete`.

        Pictures take what the same messages without them do not. On LLaVA-OneVision, with 0 to 16 pictures,
        both figures were those of `Usage` after the call; a template that puts text beside each adds it here.
        """
        plain = without_pictures(request.messages)
        whole = await self._count(request.messages, request.affinity)
        if plain == request.messages:
            return PromptSize(whole, 0)
        return PromptSize(whole, whole - await self._count(plain, request.affinity))

    async def close(self) -> None:
        """Let go of everything; calls under way end with CallFailedError."""
        self._closed = True
        if (opened := self._opened) is None:
            return
        opened.caller.close()
        opened.addresses.refuse_all(opened.addresses.closed)
        await opened.probes.close()
        await opened.tries.ended()
        for address in opened.addresses.all:
            await address.link.close()

    def snapshot(self) -> Snapshot:
        """Calls waiting and in flight, and each address's limit and state; empty before `open`."""
        return self._opened.addresses.snapshot() if self._opened else Snapshot(0, ())

    def _connect(self, key: Key) -> _Opened:
        now = asyncio.get_running_loop().time()
        addresses = Addresses(
            [
                Address(url, Link(url, key, self._maximum), Limiter(self._maximum), since=now)
                for url in self._urls
            ],
            patience=self._patience,
            tell=self._tell,
        )
        tries = Tries()
        probes = Probes(
            addresses,
            key,
            model=self._model,
            revision=self._revision,
            delays=self._probe_delays,
            seconds=min(self._timeout, PROBE_SECONDS),
            unreachable=tries.abandon,
            tell=self._tell,
        )
        caller = Caller(
            addresses,
            probes,
            tries,
            key,
            timeout=self._timeout,
            retries=self._retries,
            backoff=self._backoff,
            longest_wait=self._patience,
            seed=self._seed,
            tell=self._tell,
        )
        return _Opened(addresses, tries, probes, caller)

    def _ready(self) -> tuple[Caller, str]:
        if self._opened is None or self._opened.identity is None:
            raise RuntimeError("a chat client must be opened before it is asked")
        return self._opened.caller, self._opened.identity.model

    async def _count(self, messages: Sequence[Message], affinity: str) -> int:
        caller, model = self._ready()
        return await caller.answer(
            Call(
                "/tokenize",
                affinity,
                lambda: tokenize_body(messages, model),
                lambda raw, _: read_count(raw),
                TOKENIZE_ABSENT,
            )
        )

    def _tell(self, event: str, figures: Mapping[str, Any]) -> None:
        """Pass an event on. A hook that fails must not fail the call, or the probe, that it was told of."""
        if self._on_event is None:
            return
        try:
            self._on_event(event, figures)
        except Exception:
            logger.exception("on_event failed at %r", event)


@dataclass(slots=True)
class _Opened:
    """What there is between `open` and `close`."""

    addresses: Addresses
    tries: Tries
    probes: Probes
    caller: Caller
    identity: Identity | None = None
