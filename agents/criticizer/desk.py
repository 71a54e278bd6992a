"""One model at work on many posts: annotating, or criticizing what itself or another annotated.

Self-criticism is a desk that criticizes its own annotations, cross-criticism one that is handed another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from ..chat.base import Backend, Identity, Picture
from ..errors import CallFailedError, JudgmentError, RequestRefusedError
from ..judgment import PostLike
from ..vlm.paying import Payer, Spending
from ..vlm.pictures import Opener, encode
from ..vlm.side_by_side import SideBySide
from ..vlm.store import AnswerStore
from ..vlm.threads import LoopThread
from .asking import Annotation, Annotator, Criticism, Criticizer

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[str, int], Callable[[Spending], None]]
"""From what is done and how many there are to a function that is told after each."""


class _Seen(NamedTuple):
    pictures: tuple[Picture, ...]
    fault: str


class Desk:
    """A model behind a backend, its store and its cap on tokens.

    Args:
        backend: What answers; opened at the first question.
        store: Where answers are kept; not closed here, several desks may share it.
        run: Who pays, see `store.Note`.
        opener: Opens image files.
        image_side: Longest side of a picture, in pixels.
        max_images: Most pictures of a post that are sent, in order.
        width: Posts under way at a time.
        attempts: Most answers to one question.
        token_cap: Most tokens of the run; None: any number.
        progress: Told of the work, or None.
    """

    def __init__(
        self,
        backend: Backend,
        store: AnswerStore,
        *,
        run: str,
        opener: Opener,
        image_side: int = 768,
        max_images: int = 16,
        width: int = 64,
        attempts: int = 3,
        token_cap: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._backend, self._store, self._run = backend, store, run
        self._opener, self._image_side, self._max_images = opener, image_side, max_images
        self._width, self._attempts, self._cap = width, attempts, token_cap
        self._progress = progress
        self._thread = LoopThread()
        self._payer: Payer | None = None
        self._reached = False

    def annotate(self, posts: Sequence[PostLike], annotator: Annotator) -> list[Annotation]:
        """One annotation a post, in order; a post without a label says why.

        Raises:
            TokenCapError, ServerLostError, ServerRefusedError, StoreError: Nobody can be asked any more.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept.
        """

        async def one(post: PostLike) -> Annotation:
            payer, seen = await self._opened(), await self._look_at(post)
            if seen.fault:
                return annotator.failed(post.id, seen.fault, _source(payer))
            try:
                reply = await payer.ask(
                    annotator.request(post, seen.pictures), annotator.read,
                    post=post.id, role=annotator.role, step=0,
                )  # fmt: skip
            except (RequestRefusedError, CallFailedError) as error:
                return annotator.failed(post.id, str(error), _source(payer))
            return annotator.annotation(post.id, reply, _source(payer))

        return self._work("annotations", posts, one)

    def criticize(
        self, posts: Sequence[PostLike], annotations: Sequence[Annotation], criticizer: Criticizer
    ) -> list[Criticism]:
        """One criticism a post, in order; nothing is asked of a post without a label.

        Raises:
            JudgmentError: Annotations of other posts.
            Others as `annotate`.
        """
        if [post.id for post in posts] != [annotation.post_id for annotation in annotations]:
            raise JudgmentError(
                f"{len(posts)} posts and {len(annotations)} annotations: expected one of each post, in order"
            )

        async def one(pair: tuple[PostLike, Annotation]) -> Criticism:
            post, annotation = pair
            payer = await self._opened()
            if annotation.label is None:
                return criticizer.failed(post.id, f"not annotated: {annotation.fault}", _source(payer))
            seen = await self._look_at(post)
            if seen.fault:
                return criticizer.failed(post.id, seen.fault, _source(payer))
            try:
                reply = await payer.ask(
                    criticizer.request(post, seen.pictures, annotation), criticizer.read,
                    post=post.id, role=criticizer.role, step=1,
                )  # fmt: skip
            except (RequestRefusedError, CallFailedError) as error:
                return criticizer.failed(post.id, str(error), _source(payer))
            return criticizer.criticism(post.id, reply, _source(payer))

        pairs = list(zip(posts, annotations, strict=True))
        return self._work(f"criticisms, {criticizer.strategy.name}", pairs, one)

    def identity(self) -> Identity:
        """The model that answers; it is reached if it was not before."""
        return self._thread.run(self._opened()).identity

    def spending(self) -> Spending:
        """What this desk has asked and paid so far."""
        return self._payer.spending if self._payer is not None else Spending()

    def close(self) -> None:
        """Let go of the server; safe to repeat."""
        if self._reached:
            self._reached = False
            self._thread.run(self._backend.close())
        self._thread.close()

    def _work(
        self, what: str, items: Sequence[Item], one: Callable[[Item], Awaitable[Result]]
    ) -> list[Result]:
        told = self._progress(what, len(items)) if self._progress is not None else None

        def on_done(_: object) -> None:
            if told is not None:
                told(self.spending())

        def stop() -> None:
            if self._payer is not None:
                self._payer.stop()

        work = SideBySide(self._width, stop)

        async def run() -> list[Result]:
            (await self._opened()).resume()
            return await work.run(items, one, on_done)

        return self._thread.run(run(), on_interrupt=work.stop)

    async def _opened(self) -> Payer:
        if self._payer is None:
            self._reached = True  # also if it fails: what was begun is to be closed
            identity = await self._backend.open()
            self._payer = Payer(
                self._backend, identity, self._store,
                run=self._run, attempts=self._attempts, token_cap=self._cap,
            )  # fmt: skip
        return self._payer

    async def _look_at(self, post: PostLike) -> _Seen:
        paths = tuple(post.images)[: self._max_images]
        try:
            # decoding takes long enough to hold up every other call
            pictures = [await asyncio.to_thread(encode, p, self._opener, self._image_side) for p in paths]
        except Exception as error:  # decoders raise a dozen types; the reason is kept
            return _Seen((), f"a picture of this post could not be read: {error}")
        return _Seen(tuple(pictures), "")


def _source(payer: Payer) -> str:
    revision = f"@{payer.identity.revision[:12]}" if payer.identity.revision else ""
    return f"vlm:{payer.identity.model}{revision}"
