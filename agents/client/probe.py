"""Which model a server serves, and whether it is well: at the start, and again while it is down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from agents.client.base import Identity
from agents.client.endpoints import Endpoint, Endpoints, Failure
from agents.client.messages import BrokenAnswerError
from agents.errors import ServerRefusedError

logger = logging.getLogger(__name__)

FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja")


class Served(NamedTuple):
    """What an endpoint serves; endpoints that are used together agree in all of it.

    Attributes:
        model: The name to ask for.
        root: What was loaded under it.
        base: Root of the model under an adapter; empty without one.
        context: Most tokens of prompt and answer; 0: the server does not say.
        server: "vllm <version>", or "openai-compatible" where there is no /version.
    """

    model: str
    root: str
    base: str
    context: int
    server: str

    def __str__(self) -> str:
        loaded = f"{self.root} over {self.base}" if self.base else self.root
        return f"{self.model} ({loaded}, {self.context} tokens, {self.server})"


class Prober:
    """Brings endpoints up.

    Args:
        endpoints: Those to be asked.
        model: Name that must be served; "": the only one that is.
        revision: Of the weights, as the user knows it; "": see `identify`.
        delays: Seconds from the first probe to the second, and the most between two; they double.
        seconds: How long an answer to a probe may take.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        model: str,
        revision: str,
        delays: tuple[float, float],
        seconds: float,
    ) -> None:
        self._endpoints, self._model, self._revision = endpoints, model, revision
        self._delays, self._seconds = delays, seconds
        self._served: Served | None = None
        self._identity: Identity | None = None
        self._warned: set[str] = set()
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    async def first(self, patience: float) -> Identity:
        """Return which model the endpoints serve; those that answer are up, the others are watched.

        Raises:
            ServerRefusedError: An endpoint refuses us or does not serve the model, or two differ.
            ServerLostError: None answered within `patience` seconds.
        """
        loop, endpoints = asyncio.get_running_loop(), self._endpoints
        deadline, (delay, longest) = loop.time() + patience, self._delays
        while not (answered := await self._ask_all()):
            if (left := deadline - loop.time()) <= 0:
                raise endpoints.lost()
            await asyncio.sleep(min(delay, left))
            delay = min(2 * delay, longest)
        self._served = agree({endpoint.url: served for endpoint, served in answered.items()})
        self._identity = identify(self._served, self._revision)
        for endpoint in endpoints.all:
            if endpoint in answered:
                endpoints.mark_up(endpoint)
            else:
                self.watch(endpoint)
        return self._identity

    def watch(self, endpoint: Endpoint) -> None:
        """Probe `endpoint`, which is down, until it is up."""
        task = self._tasks.get(endpoint)
        if task is None or task.done():
            self._tasks[endpoint] = asyncio.create_task(self._revive(endpoint))

    async def close(self) -> None:
        """Stop probing."""
        for task in self._tasks.values():
            task.cancel()
        # a probe that broke of itself is a fault of this code: it is shown here at the latest
        for ended in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
                logger.error("a probe broke", exc_info=ended)
        self._tasks.clear()

    async def _ask_all(self) -> dict[Endpoint, Served]:
        """Return what those that answer serve; the reason is noted at the others."""
        asked = self._endpoints.all
        # all are waited for, so that none is left running where one refuses
        answers = await asyncio.gather(*map(self._ask, asked), return_exceptions=True)
        answered = {}
        for endpoint, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Served):
                answered[endpoint] = answer
            else:
                if not endpoint.reason:  # whoever waits wants to know for what, once
                    self._endpoints.on_event("down", {"endpoint": endpoint.url, "reason": answer})
                endpoint.reason = answer
        return answered

    async def _revive(self, endpoint: Endpoint) -> None:
        """Probe until all is well. The first probe comes at once: a single failed call often means little."""
        delay, longest = self._delays
        while (reason := await self._unfit(endpoint)) is not None:
            endpoint.reason = reason
            # a machine that lost its network resets nothing: what is in flight there would wait for ever
            for stay in endpoint.stays:
                stay.scope.cancel()
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)
        self._endpoints.mark_up(endpoint)

    async def _unfit(self, endpoint: Endpoint) -> str | None:
        """Return why no calls may be sent to `endpoint`; None: it is well and serves the same as before."""
        health = await self._get(endpoint, "/health")
        # a server without /health says 404; /v1/models decides then
        if isinstance(health, Failure) and health.kind in ("busy", "late", "lost"):
            return health.reason
        try:
            served = await self._ask(endpoint)
        except ServerRefusedError as error:
            reason = str(error)
        else:
            if isinstance(served, str):
                return served
            if identify(served, self._revision) == self._identity:
                return None
            reason = f"{endpoint.url} came back with {served}, but {self._served} is in use"
            if served == self._served:
                reason = f"{endpoint.url} came back after the files in {served.root} had changed"
        if endpoint.url not in self._warned:
            self._warned.add(endpoint.url)
            logger.warning("%s: the endpoint is left out until it serves the same again", reason)
        return reason

    async def _ask(self, endpoint: Endpoint) -> Served | str:
        """Return what `endpoint` serves, or why it does not answer.

        Raises:
            ServerRefusedError: It refuses us, or does not serve the model.
        """
        models = await self._get(endpoint, "/v1/models")
        if isinstance(models, Failure):
            if models.kind in ("us", "request"):
                raise ServerRefusedError(models.reason)
            return models.reason
        version = await self._get(endpoint, "/version")
        if isinstance(version, Failure) and version.kind not in ("us", "request"):
            return version.reason
        body = None if isinstance(version, Failure) else version
        try:
            return read_served(endpoint.url, models, body, self._model)
        except BrokenAnswerError as error:
            return endpoint.key.clean(f"{endpoint.url}: {error}")
        except ServerRefusedError as error:
            refused = endpoint.key.clean(str(error))
        # raised out here, so that no uncleaned error is in its context
        raise ServerRefusedError(refused)

    async def _get(self, endpoint: Endpoint, path: str) -> bytes | Failure:
        with anyio.move_on_after(self._seconds):
            return await endpoint.get(path)
        return Failure("late", f"{endpoint.url}{path}: no answer within {self._seconds:g} s")


def read_served(url: str, models: bytes, version: bytes | None, wanted: str) -> Served:
    """Read what a server serves under the name `wanted`; under its only name where that is empty.

    Args:
        url: For the messages.
        models: Body of /v1/models.
        version: Body of /version; None: there is no such path.
        wanted: Model name or "".

    Raises:
        ServerRefusedError: It is not served, or there are several to choose from.
        BrokenAnswerError: A body is not what these paths answer.
    """
    cards = _cards(models)
    names = ", ".join(cards) or "none"
    if wanted and wanted not in cards:
        raise ServerRefusedError(f"{url} does not serve {wanted!r}; it serves: {names}")
    if not wanted and len(cards) != 1:
        raise ServerRefusedError(f"{url} serves {len(cards)} models ({names}): say which one to use")
    card = cards[wanted or next(iter(cards))]
    under = _card_under(cards, card)
    context = card.get("max_model_len") or (under or {}).get("max_model_len")  # an adapter's card has none
    return Served(
        model=str(card["id"]),
        root=str(card.get("root") or card["id"]),
        base=str(under.get("root") or under["id"]) if under else str(card.get("parent") or ""),
        context=context if isinstance(context, int) else 0,
        server="openai-compatible" if version is None else f"vllm {_version(version)}",
    )


def identify(served: Served, revision: str) -> Identity:
    """Return `served` with the revision that the user states, else fingerprints of the folders here."""
    if not revision:
        marks = [fingerprint(root) for root in (served.root, served.base) if root]
        revision = "+".join(mark for mark in marks if mark)
    return Identity(served.model, served.root, served.base, revision, served.server, served.context)


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


def agree(served: Mapping[str, Served]) -> Served:
    """Return the one thing that all endpoints serve.

    Raises:
        ServerRefusedError: Two of them differ; the message shows both.
    """
    (first, common), *others = served.items()
    for url, other in others:
        if other != common:
            raise ServerRefusedError(
                f"the endpoints serve different models: {first} {common}, but {url} {other}. "
                "Answers of both would be kept under one name: give endpoints that serve the same"
            )
    return common


def _cards(models: bytes) -> dict[str, Mapping[str, Any]]:
    try:
        cards: Sequence[Mapping[str, Any]] = json.loads(models)["data"]
        return {str(card["id"]): card for card in cards}
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenAnswerError(f"/v1/models is no list of models ({error!r})") from error


def _card_under(cards: Mapping[str, Mapping[str, Any]], card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the card of the model under an adapter.

    vLLM's `parent` is the served name of the base unless the user named it otherwise when the adapter was
    loaded; then the only model that is no adapter is meant.
    """
    if not card.get("parent"):
        return None
    if card["parent"] in cards:
        return cards[card["parent"]]
    bases = [other for other in cards.values() if not other.get("parent")]
    return bases[0] if len(bases) == 1 else None


def _version(version: bytes) -> str:
    try:
        return str(json.loads(version)["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenAnswerError(f"/version is no version ({error!r})") from error
