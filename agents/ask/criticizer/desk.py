"""One model at work on many posts: annotating, or criticizing what itself or another annotated.

Self-criticism is a desk that criticizes its own annotations, cross-criticism one that is handed another's.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.ask.criticizer.asking import Annotation, Annotator, Criticism, Criticizer
from agents.ask.metering import UsageTotals
from agents.ask.pictures import Opener
from agents.ask.runner import Runner
from agents.ask.vlm_agent import PreparedPost, prepare_post, source_of
from agents.client.base import Identity
from agents.errors import CallFailedError, JudgmentError, RequestRefusedError
from agents.judgment import PostLike


class Desk:
    """A model that annotates and criticizes.

    Args:
        runner: What answers, where answers are kept, and what they may cost; closed here, but for its store,
            which several desks may share.
        opener: Opens image files.
        image_side: Longest side of a picture, in pixels.
        max_images: Most pictures of a post that are sent, in order.
    """

    def __init__(
        self, runner: Runner, *, opener: Opener, image_side: int = 768, max_images: int = 16
    ) -> None:
        self._opener, self._image_side, self._max_images = opener, image_side, max_images
        self._runner = runner

    def annotate(self, posts: Sequence[PostLike], annotator: Annotator) -> list[Annotation]:
        """One annotation a post, in order; a post without a label says why.

        Raises:
            TokenCapError, ServerLostError, ServerRefusedError, StoreError: Nobody can be asked any more.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept.
        """

        async def one(post: PostLike) -> Annotation:
            payer, seen = await self._runner.payer(), await self._look_at(post)
            if seen.fault:
                return annotator.failed(post.id, seen.fault, source_of(payer))
            try:
                reply = await payer.ask(
                    annotator.request(post, seen.pictures), annotator.read,
                    post=post.id, role=annotator.role, step=0,
                )  # fmt: skip
            except (RequestRefusedError, CallFailedError) as error:
                return annotator.failed(post.id, str(error), source_of(payer))
            return annotator.annotation(post.id, reply, source_of(payer))

        return self._runner.work("annotations", posts, one)

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
            payer = await self._runner.payer()
            if annotation.label is None:
                return criticizer.failed(post.id, f"not annotated: {annotation.fault}", source_of(payer))
            seen = await self._look_at(post)
            if seen.fault:
                return criticizer.failed(post.id, seen.fault, source_of(payer))
            try:
                reply = await payer.ask(
                    criticizer.request(post, seen.pictures, annotation), criticizer.read,
                    post=post.id, role=criticizer.role, step=1,
                )  # fmt: skip
            except (RequestRefusedError, CallFailedError) as error:
                return criticizer.failed(post.id, str(error), source_of(payer))
            return criticizer.criticism(post.id, reply, source_of(payer))

        pairs = list(zip(posts, annotations, strict=True))
        return self._runner.work(f"criticisms, {criticizer.strategy.name}", pairs, one)

    def identity(self) -> Identity:
        """The model that answers; it is reached if it was not before."""
        return self._runner.identity()

    def usage(self) -> UsageTotals:
        """What this desk has asked and paid so far."""
        return self._runner.usage()

    def close(self) -> None:
        """Let go of the server; safe to repeat."""
        self._runner.close()

    async def _look_at(self, post: PostLike) -> PreparedPost:
        return await prepare_post(post, self._opener, self._image_side, self._max_images)
