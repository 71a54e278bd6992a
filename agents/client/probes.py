"""Whether an address answers, and what it serves: at the start, and again and again while it is down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agents.client.addresses import Address, Addresses, Tell
from agents.client.base import Identity
from agents.client.served import Served, agree, identify, read_served
from agents.client.translate import BrokenAnswerError
from agents.client.transport import Failure, Key
from agents.errors import ServerRefusedError

logger = logging.getLogger(__name__)


class Probes:
    """Brings addresses up.

    Args:
        addresses: Those to be asked.
        key: Removed from whatever is shown.
        model: Name that must be served; "": the only one that is.
        revision: Of the weights, as the user knows it; "": see `identify`.
        delays: Seconds from the first probe to the second, and the most between two; they double.
        seconds: How long an answer to a probe may take.
        unreachable: Told of an address whose probe failed: what is under way there is lost.
        tell: Told of "down" at the start.
    """

    def __init__(
        self,
        addresses: Addresses,
        key: Key,
        *,
        model: str,
        revision: str,
        delays: tuple[float, float],
        seconds: float,
        unreachable: Callable[[Address], None],
        tell: Tell,
    ) -> None:
        self._addresses, self._key = addresses, key
        self._model, self._revision = model, revision
        self._delays, self._seconds = delays, seconds
        self._unreachable, self._tell = unreachable, tell
        self._served: Served | None = None
        self._identity: Identity | None = None
        self._warned: set[str] = set()
        self._tasks: dict[Address, asyncio.Task[None]] = {}

    async def first(self, patience: float) -> Identity:
        """Which model the addresses serve; those that answer are up, the others are watched.

        Raises:
            ServerRefusedError: An address refuses us or does not serve the model, or two differ.
            ServerLostError: None answered within `patience` seconds.
        """
        loop = asyncio.get_running_loop()
        start, (delay, longest) = loop.time(), self._delays
        told = False
        while not (answered := await self._ask_all()):
            if not told:  # whoever waits wants to know for what
                told = True
                for address in self._addresses.all:
                    self._tell("down", {"address": address.url, "reason": address.reason})
            left = start + patience - loop.time()
            if left <= 0:
                raise self._addresses.lost()
            await asyncio.sleep(min(delay, left))
            delay = min(2 * delay, longest)
        self._served = agree({address.url: served for address, served in answered.items()})
        self._identity = identify(self._served, self._revision)
        for address in self._addresses.all:
            if address in answered:
                self._addresses.up(address)
            else:
                if not told:
                    self._tell("down", {"address": address.url, "reason": address.reason})
                self.watch(address)
        return self._identity

    def watch(self, address: Address) -> None:
        """Probe `address`, which is down, until it is up."""
        task = self._tasks.get(address)
        if task is None or task.done():
            self._tasks[address] = asyncio.create_task(self._revive(address))

    async def close(self) -> None:
        """Stop probing."""
        for task in self._tasks.values():
            task.cancel()
        # a probe that broke of itself is a fault of this code: it is shown here at the latest
        for ended in await asyncio.gather(*self._tasks.values(), return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
                logger.error("a probe broke", exc_info=ended)
        self._tasks.clear()

    async def _ask_all(self) -> dict[Address, Served]:
        """Those that answer, with what they serve; the reason is noted at the others."""
        asked = self._addresses.all
        answers = await asyncio.gather(*(self._ask(address) for address in asked), return_exceptions=True)
        answered = {}
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Served):
                answered[address] = answer
            else:
                address.reason = answer
        return answered

    async def _revive(self, address: Address) -> None:
        """The first probe comes at once: after a single failed call the server is often well."""
        delay, longest = self._delays
        while (reason := await self._unfit(address)) is not None:
            address.reason = reason
            self._unreachable(address)
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)
        self._addresses.up(address)

    async def _unfit(self, address: Address) -> str | None:
        """Why no calls may be sent to `address`; None: it is well and serves what the others serve."""
        health = await self._get(address, "/health")
        # a server without /health says 404; /v1/models decides then
        if isinstance(health, Failure) and (health.kind in ("busy", "late", "lost")):
            return health.reason
        try:
            served = await self._ask(address)
        except ServerRefusedError as error:
            reason = str(error)
        else:
            if isinstance(served, str):
                return served
            if identify(served, self._revision) == self._identity:
                return None
            reason = f"{address.url} came back with {served}, but {self._served} is in use"
            if served == self._served:
                reason = f"{address.url} came back after the files in {served.root} had changed"
        if address.url not in self._warned:
            self._warned.add(address.url)
            logger.warning("%s: the address is left out until it serves the same again", reason)
        return reason

    async def _ask(self, address: Address) -> Served | str:
        """What `address` serves, or why it does not answer.

        Raises:
            ServerRefusedError: It refuses us, or does not serve the model.
        """
        models = await self._get(address, "/v1/models")
        if isinstance(models, Failure):
            if models.kind in ("us", "request"):
                raise ServerRefusedError(models.reason)
            return models.reason
        version = await self._get(address, "/version")
        if isinstance(version, Failure) and version.kind not in ("us", "request"):
            return version.reason
        refused = ""
        try:
            return read_served(
                address.url, models, None if isinstance(version, Failure) else version, self._model
            )
        except BrokenAnswerError as error:
            return self._key.clean(f"{address.url}: {error}")
        except ServerRefusedError as error:
            refused = self._key.clean(str(error))
        raise ServerRefusedError(refused)

    async def _get(self, address: Address, path: str) -> bytes | Failure:
        try:
            async with asyncio.timeout(self._seconds):
                return await address.link.get(path)
        except TimeoutError:
            return Failure("late", f"{address.url}{path}: no answer within {self._seconds:g} s")
