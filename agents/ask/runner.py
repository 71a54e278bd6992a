"""One way to ask a model about many posts: side by side, cached, metered, ended in good order.

Whoever asks (the judges of `judge`, annotator, criticizer, questioner) gives `Runner.map` the work on one
post: prepare it, make prompts of it, `ask` them, read the responses. A post goes from its first prompt to its
last, so that all calls on it follow each other closely: its policy, words and pictures are computed once by
the server and then read from its prefix cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from agents.ask.cache import ResponseCache
from agents.ask.metering import (
    USUAL,
    Account,
    Manner,
    MeteredClient,
    PostPrompt,
    Response,
    StoppedError,
    UsageTotals,
)
from agents.ask.prepare import FrameReader, Opener, PictureLoader, PreparedPost
from agents.client.base import Backend, Identity, PromptSize
from agents.errors import CallFailedError, RequestRefusedError
from agents.judgment import PostLike

logger = logging.getLogger(__name__)

ShowProgress = Callable[[str, int], Callable[[UsageTotals], None]]
"""From what is done and how many there are to a function that is called after each."""

DEFAULT = ""
"""The role under which the model stands that everybody asks who has none of their own."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, repr=False)
class Runner:
    """A model at work on many posts, used from code that knows nothing of event loops.

    The loop runs in a thread of its own: a notebook has a running loop already, and a signal reaches the main
    thread only, so that Ctrl-C finds it waiting, free to let the calls under way come home.
    """

    backend: Backend  # what answers; opened at the first prompt, closed by `close`
    cache: ResponseCache  # where answers are kept; closed by whoever opened it: several runners may share one
    _: KW_ONLY
    run: str  # who pays: the resolved path of a run's folder
    opener: Opener  # opens image files
    image_side: int = 768  # longest side of a picture, in pixels
    max_images: int = 16  # most pictures of a post that are sent, in order; so many frames of a video
    frames: FrameReader | None = None  # samples videos; None where none is shown
    width: int = 64  # posts under way at a time, at most
    worth: Callable[[], int] | None = None  # returns how many of them are worth it at the moment; None: all
    manner: Manner = USUAL  # how the model is asked
    # role -> another model that answers whatever is asked of that role, and how it is asked
    others: Mapping[str, tuple[Backend, Manner]] = field(default_factory=dict)
    token_cap: int | None = None  # most tokens of the run in all its starts; None: any number
    progress: ShowProgress | None = None  # shows how far the work is

    def __post_init__(self) -> None:
        self._models = {DEFAULT: (self.backend, self.manner), **self.others}
        self._pictures = PictureLoader(self.opener, self.image_side, frames=self.frames)
        self._account = Account(self.cache, self.run, self.token_cap)
        self._opening = asyncio.Lock()
        self._clients: dict[str, MeteredClient] = {}
        self._begun: set[str] = set()
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()

    # ---- from the caller's thread ---------------------------------------------------------------------

    def map(
        self,
        what: str,
        items: Sequence[Item],
        work: Callable[[Item], Awaitable[Result]],
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Result]:
        """Return `work` of each item, done side by side, in the order of the items.

        It runs on the loop and may `prepare`, `ask` and `measure`; `first` comes before all of it, and `what`
        is shown on a bar. What was paid for is kept, whatever is raised.

        Raises:
            TokenCapError: The tokens are spent.
            ServerLostError, ServerRefusedError: Nobody answers.
            StoreError: The answers cannot be kept.
            Exception: Whatever else was the first error of an item, once those under way have ended.
            KeyboardInterrupt: After the calls under way have come home.
        """
        show = self.progress(what, len(items)) if self.progress is not None else None
        stopped = asyncio.Event()

        def stop() -> None:
            stopped.set()
            self._account.stopped = True

        async def run() -> list[Result]:
            self._account.resume()
            if first is not None:
                await first()
            return await self._side_by_side(items, work, stopped, stop, show)

        return self._call(run, on_interrupt=stop)

    def identity(self) -> Identity:
        """Return the model that answers; it is reached if it was not before."""
        return self._call(self.client).identity

    def reached(self) -> dict[str, Identity]:
        """Return role -> the model that answers it, of those that were reached; see `DEFAULT`."""
        return {role: client.identity for role, client in self._clients.items()}

    def usage(self) -> UsageTotals:
        """Return what this process has asked and paid so far."""
        return self._account.totals

    def close(self) -> None:
        """Let go of the servers; safe to repeat."""
        while self._begun:
            backend, _ = self._models[self._begun.pop()]
            self._call(backend.close)
        self._stack.close()
        self._portal = None

    # ---- on the event loop ----------------------------------------------------------------------------

    async def client(self, role: str = DEFAULT) -> MeteredClient:
        """Return whoever pays for answers of a role; its model is reached if it was not before."""
        place = role if role in self._models else DEFAULT
        async with self._opening:
            if place not in self._clients:
                self._begun.add(place)  # also if it fails: what was begun is to be closed
                backend, manner = self._models[place]
                identity = await backend.open()
                self._clients[place] = MeteredClient(
                    backend, identity, self._account, manner, self._pictures, width=self.width
                )
        return self._clients[place]

    async def prepare(self, post: PostLike, video: Path | None = None) -> PreparedPost:
        """Return `post` with its pictures, or frames of its video, which are decoded once they are sent."""
        return await self._pictures.prepare(post, self.max_images, video)

    async def ask(self, prompt: PostPrompt) -> Response:
        """Return what comes back on `prompt`; FAILED with the reason when nothing usable does.

        Raises:
            TokenCapError, ServerRefusedError, ServerLostError, StoreError: Nobody can be asked any more.
        """
        client = await self.client(prompt.role)
        if prompt.post.fault:
            return self._failed(prompt.post.fault, client)
        try:
            return await client.ask(prompt)
        except (RequestRefusedError, CallFailedError) as error:
            return self._failed(str(error), client)

    def _failed(self, fault: str, client: MeteredClient) -> Response:
        self._account.count(UsageTotals(failed=1))
        return Response.failed(fault, client.source)

    async def ask_together(self, prompts: Sequence[PostPrompt]) -> list[Response]:
        """Return what comes back on prompts that do not wait for each other, in their order."""
        found = await asyncio.gather(*(self.ask(prompt) for prompt in prompts), return_exceptions=True)
        # only now, when none is under way any more: what the others brought is kept. That the work ends is
        # told last: why it does may be among them
        errors = [one for one in found if isinstance(one, BaseException)]
        for error in sorted(errors, key=lambda one: isinstance(one, StoppedError)):
            raise error
        return [one for one in found if isinstance(one, Response)]

    async def measure(self, prompt: PostPrompt) -> PromptSize:
        """Return the size of a prompt; no answer is asked for."""
        client = await self.client(prompt.role)
        return await client.measure(prompt)

    async def _side_by_side(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Awaitable[Result]],
        stopped: asyncio.Event,
        stop: Callable[[], None],
        show: Callable[[UsageTotals], None] | None,
    ) -> list[Result]:
        """Work on so many items at a time; after the first error, or `stop`, none is taken up any more.

        Items are taken up as places become free, so that what one needs (its pictures) exists only while it
        is worked on. Those under way come to their end first: what they wait for is paid for.
        """
        results: dict[int, Result] = {}
        errors: list[Exception] = []
        waiting, under_way = iter(range(len(items))), 0

        def take_up(group: asyncio.TaskGroup) -> None:
            nonlocal under_way
            while (
                not stopped.is_set()
                and under_way < (self.width if self.worth is None else min(self.width, self.worth()))
                and (index := next(waiting, None)) is not None
            ):
                under_way += 1
                group.create_task(one(index, group))

        async def one(index: int, group: asyncio.TaskGroup) -> None:
            nonlocal under_way
            try:
                results[index] = await work(items[index])
            except StoppedError:
                return  # what it would have bought is not bought any more
            except Exception as error:
                errors.append(error)
                stop()
                return
            finally:
                under_way -= 1
            if show is not None:
                show(self.usage())
            take_up(group)

        async with asyncio.TaskGroup() as group:
            take_up(group)
        if errors:
            raise errors[0]
        if len(results) < len(items):
            raise StoppedError
        return [results[index] for index in range(len(items))]

    def _call(
        self, work: Callable[[], Awaitable[Result]], on_interrupt: Callable[[], None] | None = None
    ) -> Result:
        """Run `work` on the loop and return its result.

        At the first Ctrl-C `on_interrupt` is called there, for `work` to come to an end by itself; a second
        one cancels it. Without `on_interrupt`, the first does.
        """
        if self._portal is None:
            self._portal = self._stack.enter_context(
                start_blocking_portal(backend_options={"use_uvloop": True}, name="agents")
            )
        future = self._portal.start_task_soon(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            if on_interrupt is None:
                future.cancel()
                raise
            self._portal.start_task_soon(on_interrupt)
            logger.warning("calls under way are waited for, they are paid for: Ctrl-C again gives them up")
            try:
                future.exception()  # wait; what it ended with does not matter any more
            except KeyboardInterrupt:
                future.cancel()
            except CancelledError:
                pass
            raise
