"""All servers of a chat client: which model they serve, which of them are up, and who takes a call.

At first all are down. `Fleet.open` brings in those that answer; one that is lost is probed until it is well
and serves the same as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from agents.client.base import Identity
from agents.client.endpoints import Endpoint, Failure, OnEvent, now
from agents.client.messages import BrokenAnswerError, ModelCard, ServerVersion, read_body, read_cards
from agents.errors import ServerLostError, ServerRefusedError

logger = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""A probe asks for a few bytes: whoever takes longer is not well."""
_VERSION_TRIES = 3
UNKNOWN_SERVER = "openai-compatible"
UNLISTED = (404, 405)
"""HTTP statuses of /v1/models where a gateway lists nothing."""
_LISTED = 20  # names of models in a message
FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja")


@dataclass(eq=False, repr=False)
class Fleet:
    """The endpoints of one client; what is not explained here is as for `ChatClient`."""

    all: tuple[Endpoint, ...]  # open; one at least
    on_event: OnEvent  # receives "down" and "up"
    _: KW_ONLY
    model: str = ""
    revision: str = ""
    same: Collection[str] = ()
    patience: float = 120.0
    probe_delays: tuple[float, float] = (0.5, 10.0)
    probe_seconds: float = PROBE_SECONDS  # that an answer to a probe may take

    def __post_init__(self) -> None:
        self._any_up = asyncio.Event()
        self._none_up_since = 0.0
        self._identity: Identity | None = None
        self._warned: set[str] = set()
        self._unversioned = Counter[Endpoint]()  # how often /version was not to be had, though it may be
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}

    async def open(self) -> Identity:
        """Return which model the endpoints serve; those that answer are up, the others are probed.

        Raises:
            ServerRefusedError: An endpoint refuses us or does not serve the model, or two differ.
            ServerLostError: None answered within the patience.
        """
        deadline, (delay, longest) = now() + self.patience, self.probe_delays
        while not (answered := await self._ask_all()):
            if (left := deadline - now()) <= 0:
                raise self._lost()
            await asyncio.sleep(min(delay, left))
            delay = min(2 * delay, longest)
        agreed = _agree({endpoint.url: one for endpoint, one in answered.items()}, self.same)
        self._identity = identify(agreed, self.revision)
        for endpoint in self.all:
            if endpoint in answered:
                self.mark_up(endpoint)
            else:
                self._probe(endpoint)
        return self._identity

    async def choose(self, affinity: str, avoid: Endpoint | None = None) -> Endpoint:
        """Return the endpoint for a call; waits while none is up.

        Args:
            affinity: Calls of one affinity go to the same endpoint while it is up, so that they find their
                common beginning in its cache; "": to the least busy.
            avoid: An endpoint that just failed this call: passed over if another is up.

        Raises:
            ServerLostError: None was up for longer than the patience.
        """
        while True:
            up = [endpoint for endpoint in self.all if endpoint.up]
            if others := [endpoint for endpoint in up if endpoint is not avoid] or up:
                if affinity:
                    return max(others, key=lambda endpoint: rendezvous(affinity, endpoint.url))
                return min(others, key=lambda endpoint: endpoint.load)
            left = self._none_up_since + self.patience - now()
            if left <= 0:
                raise self._lost()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._any_up.wait()

    def mark_up(self, endpoint: Endpoint) -> None:
        """Send calls to `endpoint`, which answers."""
        self.on_event("up", {"endpoint": endpoint.url, "seconds": now() - endpoint.since})
        endpoint.up, endpoint.reason, endpoint.since = True, "", now()
        endpoint.times_up += 1
        self._any_up.set()

    def mark_down(self, endpoint: Endpoint, reason: str) -> None:
        """Send no calls to `endpoint` until a probe finds it well."""
        was_up, endpoint.up, endpoint.reason = endpoint.up, False, reason
        if was_up:
            endpoint.since = now()
            if not any(other.up for other in self.all):
                self._any_up.clear()
                self._none_up_since = endpoint.since
            self.on_event("down", {"endpoint": endpoint.url, "reason": reason})
        self._probe(endpoint)

    async def close(self) -> None:
        """Stop probing."""
        for task in self._probes.values():
            task.cancel()
        # a probe that broke of itself is a fault of this code: it is shown here at the latest
        for ended in await asyncio.gather(*self._probes.values(), return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
                logger.error("a probe broke", exc_info=ended)
        self._probes.clear()

    def _lost(self) -> ServerLostError:
        listed = "; ".join(endpoint.reason or endpoint.url for endpoint in self.all)
        return ServerLostError(
            f"no model server has answered for {self.patience:g} s ({listed}). What was paid for is kept: "
            "start the server again and give the same command, it goes on where it stopped"
        )

    # ---- probes -------------------------------------------------------------------------------------------

    async def _ask_all(self) -> dict[Endpoint, Identity]:
        """Return what those that answer serve; the reason is noted at the others."""
        # all are waited for, so that none is left running where one refuses
        answers = await asyncio.gather(*map(self._ask, self.all), return_exceptions=True)
        answered = {}
        for endpoint, answer in zip(self.all, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Identity):
                answered[endpoint] = answer
                continue
            if not endpoint.reason:  # whoever waits wants to know for what, once
                self.on_event("down", {"endpoint": endpoint.url, "reason": answer})
            endpoint.reason = answer
        return answered

    def _probe(self, endpoint: Endpoint) -> None:
        task = self._probes.get(endpoint)
        if task is None or task.done():
            self._probes[endpoint] = asyncio.create_task(self._revive(endpoint))

    async def _revive(self, endpoint: Endpoint) -> None:
        """Probe until all is well. The first probe comes at once: a single failed call often means little."""
        delay, longest = self.probe_delays
        while (reason := await self._unfit(endpoint)) is not None:
            endpoint.reason = reason
            endpoint.give_up()
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)
        self.mark_up(endpoint)

    async def _unfit(self, endpoint: Endpoint) -> str | None:
        """Return why no calls may be sent to `endpoint`; None: it is well and serves the same as before."""
        # only vLLM's: LiteLLM's calls every model behind it, which costs somebody money
        assert self._identity is not None, "endpoints are probed once it is known what they serve"
        if self._identity.server.startswith("vllm"):
            health = await self._get(endpoint, "/health")
            if isinstance(health, Failure) and health.kind in ("busy", "late", "lost"):
                return health.reason
        try:
            served = await self._ask(endpoint)
        except ServerRefusedError as error:
            reason = str(error)
        else:
            if isinstance(served, str):
                return served
            alike = _alike(served, self._identity, self.same)
            if alike and identify(served, self.revision).revision == self._identity.revision:
                return None
            reason = f"{endpoint.url} came back with {served}, but {self._identity} is in use"
            if alike:
                reason = f"{endpoint.url} came back after the files in {served.root} had changed"
        if endpoint.url not in self._warned:
            self._warned.add(endpoint.url)
            logger.warning("%s: the endpoint is left out until it serves the same again", reason)
        return reason

    async def _ask(self, endpoint: Endpoint) -> Identity | str:
        """Return what `endpoint` serves, or why it does not answer.

        Raises:
            ServerRefusedError: It refuses us, or does not serve the model.
        """
        models = await self._get(endpoint, "/v1/models")
        if isinstance(models, Failure):
            if models.status in UNLISTED and self.model:
                return unlisted(self.model)
            if models.kind in ("us", "request"):
                raise ServerRefusedError(models.reason)
            return models.reason
        version = await self._get(endpoint, "/version")
        # what is no version is what other servers have at this path, be it a page or an error of theirs; what
        # may pass is waited for, but not long: a server that answers otherwise is well without
        if isinstance(version, Failure) and (
            version.kind == "busy" or (version.kind in ("late", "lost") and not version.status)
        ):
            self._unversioned[endpoint] += 1
            if self._unversioned[endpoint] < _VERSION_TRIES:
                return version.reason
        body = None if isinstance(version, Failure) else version
        try:
            served = read_served(endpoint.url, models, body, self.model)
        except BrokenAnswerError as error:
            return endpoint.key.clean(f"{endpoint.url}: {error}")
        if served.server.startswith("vllm"):
            endpoint.ranks = _ranks(await self._get(endpoint, "/metrics"))
        return served

    async def _get(self, endpoint: Endpoint, path: str) -> bytes | Failure:
        return await endpoint.exchange(path, seconds=self.probe_seconds)


def rendezvous(affinity: str, url: str) -> bytes:
    """Return the weight of an endpoint for an affinity; the highest one takes its calls.

    Nothing is remembered, and when an endpoint is lost only its own affinities move (rendezvous hashing,
    Thaler & Ravishankar 1998).
    """
    return hashlib.sha256(f"{affinity}\0{url}".encode()).digest()


# ---- which model it is -----------------------------------------------------------------------------------


def read_served(url: str, models: bytes, version: bytes | None, wanted: str) -> Identity:
    """Read what a server serves under the name `wanted`; under its only name where that is empty.

    Its revision is open: see `identify`.

    `models` and `version` are the bodies of /v1/models and /version; None: there is no such path.

    Raises:
        ServerRefusedError: It is not served, or there are several to choose from.
        BrokenAnswerError: A body is not what these paths answer.
    """
    cards = {card.id: card for card in read_cards(models)}
    names = ", ".join(list(cards)[:_LISTED]) or "none"
    if len(cards) > _LISTED:
        names += f" and {len(cards) - _LISTED} more"
    server = _server_of(version)
    if wanted and wanted not in cards:
        # Azure lists models and is asked for deployments; LiteLLM may hide what a key may use
        if server == UNKNOWN_SERVER:
            return unlisted(wanted)
        raise ServerRefusedError(f"{url} does not serve {wanted!r}; it serves: {names}")
    if not wanted and len(cards) != 1:
        raise ServerRefusedError(f"{url} serves {len(cards)} models ({names}): say which one to use")
    card = cards[wanted or next(iter(cards))]
    under = _card_under(cards, card)
    return Identity(
        model=card.id,
        root=card.root or card.id,
        base=(under.root or under.id) if under else card.parent or "",
        revision="",
        server=server,
        # an adapter's card has none
        context=card.context or (under.context if under else 0),
    )


def unlisted(model: str) -> Identity:
    """Return the identity of a model that a gateway does not list and may serve: the first call tells."""
    return Identity(model, model, "", "", UNKNOWN_SERVER, 0)


def _ranks(metrics: bytes | Failure) -> int:
    """Return how many copies of the model vLLM's figures tell of; 1 where it shows none."""
    found = b"" if isinstance(metrics, Failure) else metrics
    pattern = rb'^vllm:num_requests_running\{.*?\bengine="(\d+)"'
    return max(1, len(set(re.findall(pattern, found, re.MULTILINE))))


def _server_of(version: bytes | None) -> str:
    """Return "vllm VERSION"; a web page or anything else at this path is what other servers have there."""
    try:
        return UNKNOWN_SERVER if version is None else f"vllm {read_body(version, ServerVersion).version}"
    except BrokenAnswerError:
        return UNKNOWN_SERVER


def identify(served: Identity, revision: str) -> Identity:
    """Return `served` with the revision that the user states, else fingerprints of the folders here."""
    if not revision:
        marks = [fingerprint(root) for root in (served.root, served.base) if root]
        revision = "+".join(mark for mark in marks if mark)
    return served._replace(revision=revision)


def fingerprint(root: str) -> str:
    """Return SHA-256, in hex, of the files' names, sizes and times in the folder `root`; "" if it is none.

    The weights themselves are not read: a model of many gigabytes would take minutes. config.json is.
    """
    folder = Path(root)
    if not folder.is_absolute() or not folder.is_dir():
        return ""  # a hub name, or a path on another machine
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FINGERPRINTED for file in folder.glob(pattern)}):
        state = file.stat()
        digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()


def _alike(one: Identity, other: Identity, fields: Collection[str]) -> bool:
    """Return whether two servers serve the same, which `fields` say more of."""
    return all(getattr(one, name) == getattr(other, name) for name in ("model", "root", "base", *fields))


def _agree(served: Mapping[str, Identity], fields: Collection[str]) -> Identity:
    """Return the one thing that all endpoints serve; two that differ are refused, and both are shown."""
    (first, common), *others = served.items()
    for url, other in others:
        if not _alike(other, common, fields):
            raise ServerRefusedError(
                f"the endpoints serve different models: {first} {common}, but {url} {other}. "
                "Answers of both would be kept under one name: give endpoints that serve the same"
            )
    # what every one of them takes
    return common._replace(context=min(one.context for one in served.values()))


def _card_under(cards: Mapping[str, ModelCard], card: ModelCard) -> ModelCard | None:
    """Return the card of the model under an adapter.

    vLLM's `parent` is the served name of the base unless the user named it otherwise when the adapter was
    loaded; then the only model that is no adapter is meant.
    """
    if not card.parent:
        return None
    if card.parent in cards:
        return cards[card.parent]
    bases = [other for other in cards.values() if not other.parent]
    return bases[0] if len(bases) == 1 else None
