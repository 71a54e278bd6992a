"""What an annotation would cost, estimated before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from agents.ask.questioner import PostQuestions
from agents.errors import CallFailedError, RequestRefusedError, ServerRefusedError
from selftrain.annotation.plan import Planned

if TYPE_CHECKING:
    from agents.ask.questioner import Questioner

SAMPLE = 16
"""Posts whose prompts are measured."""


class AnnotationCost(NamedTuple):
    """The cost of an annotation, answers that are stored already not taken off.

    Attributes:
        posts: About which something is asked.
        calls: Questions about them.
        unasked: Questions on which no call is spent.
        prompt, image: Tokens of all prompts, and the part of their pictures; None where the server does not
            measure.
        completion: Most tokens of the answers.
        measured: Prompts measured.
        fault: Why the server does not measure; empty if it does.
    """

    posts: int
    calls: int
    unasked: int
    prompt: float | None
    image: float | None
    completion: int
    measured: int
    fault: str = ""

    def lines(self, cap: int | None = None) -> Iterator[str]:
        """For people to read."""
        yield f"posts          {self.posts:,}"
        yield f"calls          {self.calls:,}"
        if self.unasked:
            yield f"not asked      {self.unasked:,} questions that cannot be: counts where no pictures are"
        if self.prompt is None or self.image is None:
            yield f"prompt tokens  not known: {self.fault}"
        else:
            yield (
                f"prompt tokens  {round(self.prompt):,}, of which pictures {round(self.image):,}"
                f" (by {self.measured:,} prompts measured)"
            )
        yield f"answer tokens  at most {self.completion:,}"
        yield "Answers that are in the store already cost nothing; those asked for again cost once more."
        if cap is not None and self.prompt is not None:
            enough = self.prompt + self.completion <= cap
            yield f"The token cap of {cap:,} {'is enough' if enough else 'may end the work early'}."


def estimate_cost(plan: Sequence[Planned], questioner: Questioner, seed: int = 0) -> AnnotationCost:
    """Measure the prompts of a sample of posts; no answer is asked for.

    Raises:
        AgentError: The server cannot be reached, or refuses us.
    """
    asking = [PostQuestions(one.post, one.asks) for one in plan if one.asks]
    calls = sum(len(one.questions) for one in asking)
    unasked = sum(len(one.unasked) for one in plan)
    completion = sum(questioner.most_tokens(one) for one in asking)
    if not asking:
        return AnnotationCost(0, 0, unasked, 0.0, 0.0, 0, 0)
    questioner.identity()  # a server that is none is told as such, not as one that does not measure
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(asking), size=min(SAMPLE, len(asking)), replace=False)
    try:
        sizes = questioner.measure([asking[i] for i in chosen])
    except (ServerRefusedError, RequestRefusedError, CallFailedError) as error:
        return AnnotationCost(len(asking), calls, unasked, None, None, completion, 0, str(error))
    if not sizes:
        fault = "no picture of the posts that were drawn could be read"
        return AnnotationCost(len(asking), calls, unasked, None, None, completion, 0, fault)
    prompt, image = (sum(size[part] for size in sizes) / len(sizes) * calls for part in (0, 1))
    return AnnotationCost(len(asking), calls, unasked, prompt, image, completion, len(sizes))
