"""Questions about many posts: what is to be asked in, answers out, each paid for once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agents.ask.metering import UsageTotals
from agents.ask.questions.asking import Given, Questioner
from agents.ask.questions.question import Asked
from agents.ask.runner import Runner
from agents.client.base import Identity, PromptSize
from agents.errors import TooManyFailedError
from agents.judgment import PostLike, State

# below so many questions a share says little
_FEWEST = 20
_LISTED = 5


class ToAsk(NamedTuple):
    """A post, and the questions that are asked about it."""

    post: PostLike
    questions: tuple[Asked, ...]


class QuestionPanel:
    """An agent behind a backend that answers questions about posts.

    Args:
        runner: What answers, where answers are kept, and what they may cost; closed here, its store too.
        questioner: Prompts, pictures, forms.
        max_failed: The largest share of questions without a usable answer, in [0, 1].
    """

    def __init__(self, runner: Runner, questioner: Questioner, *, max_failed: float = 1.0) -> None:
        self._runner = runner
        self._questioner = questioner
        self._max_failed = max_failed

    def ask(self, posts: Sequence[ToAsk]) -> list[tuple[Given, ...]]:
        """What comes back on each post, in its questions' order.

        Raises:
            TooManyFailedError: More questions without a usable answer than tolerated; told as soon as it is
                clear, not after the last post.
            TokenCapError: The tokens are spent.
            ServerLostError, ServerRefusedError: Nobody answers.
            StoreError: The answers cannot be kept.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept, whatever
                is raised.
        """
        tally = _Tally(self._max_failed)

        async def one(item: ToAsk) -> tuple[Given, ...]:
            payer = await self._runner.payer()
            seen = await self._questioner.prepare_post(item.post)
            given = []
            # one after the other: the first call computes the prefix that the others read from the cache
            for asked in item.questions:
                given.append(await self._questioner.ask(seen, asked, payer))
                tally.count(item.post.id, given[-1])
                tally.check(_FEWEST)
            return tuple(given)

        answers = self._runner.work("posts", posts, one)
        tally.check(1)
        return answers

    def measure(self, posts: Sequence[ToAsk]) -> list[PromptSize]:
        """The size of every prompt about `posts`; no answer is asked for.

        Raises:
            ChatError: The server cannot be asked, or does not measure.
        """

        async def sizes(item: ToAsk) -> list[PromptSize]:
            seen = await self._questioner.prepare_post(item.post)
            if seen.fault:
                return []
            measure = self._runner.backend.measure
            return [await measure(self._questioner.request(seen, asked)) for asked in item.questions]

        return [size for one in self._runner.work("prompt sizes", posts, sizes) for size in one]

    def most_tokens(self, item: ToAsk) -> int:
        """Most tokens of the answers about one post, each asked for once."""
        return sum(self._questioner.most_tokens(item.post, asked) for asked in item.questions)

    def identity(self) -> Identity:
        """The model that answers; it is reached if it was not before."""
        return self._runner.identity()

    def reached(self) -> Identity | None:
        """The model that answers, if it was reached."""
        return self._runner.reached()

    def usage(self) -> UsageTotals:
        """What this process has asked and paid so far."""
        return self._runner.usage()

    def close(self) -> None:
        """Let go of the server and the store; safe to repeat."""
        self._runner.close()
        self._runner.store.close()


class _Tally:
    """Counts questions, and those without a usable answer."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._asked = 0
        self._failed: list[tuple[str, Given]] = []

    def count(self, post_id: str, given: Given) -> None:
        self._asked += 1
        if given.state is State.FAILED:
            self._failed.append((post_id, given))

    def check(self, fewest: int) -> None:
        """Stops where more failed than tolerated, of `fewest` questions or more."""
        if self._asked < fewest or len(self._failed) <= self._most * self._asked:
            return
        lines = [f"  post {post_id!r}, {g.question}: {g.fault}" for post_id, g in self._failed[:_LISTED]]
        if more := len(self._failed) - len(lines):
            lines.append(f"  and {more:,} more")
        listed = "\n".join(lines)
        raise TooManyFailedError(
            f"{len(self._failed):,} of {self._asked:,} questions ({len(self._failed) / self._asked:.1%}) have"
            f" no usable answer, at most {self._most:.1%} tolerated:\n{listed}\nTry a stronger model, a"
            " longer rationale if answers are cut off, or fewer or smaller pictures if the server refuses"
            " them; or tolerate more. What was paid for is kept."
        )
