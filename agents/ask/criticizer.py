"""The criticizer: a model that estimates how likely machine labels are wrong, in one of six ways.

===============  =====================  ==========  ======================================================
strategy         reasons first          sees        error estimate e
===============  =====================  ==========  ======================================================
plain            no                     the label   per cent in tens
reasoning        for and against        the label   per cent in tens
graded           no                     the label   five grades in words: 0, .25, .5, .75, 1
devils_advocate  against                the label   the five grades
                                        and the
                                        annotator's
                                        reasons
log_probability  no                     the label   P(yes) / (P(yes) + P(no)) of "is it wrong?"
perplexity       for                    the label   1 - 1/perplexity of these reasons: hard to find words
                                                    for, or not
===============  =====================  ==========  ======================================================

Where the server gives log-probabilities, an estimate in grades or per cent is the mean over the answers by
their probability, not the one answer written: finer, and without ties.

Whoever criticizes its own labels is asked by the runner that annotated, cross-criticism by another's.

Source: "ACT as Human" (arXiv 2511.09833) for the strategies; all wording is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from agents.ask.annotator import TOP_LOGPROBS, Annotation, AnnotationPrompts
from agents.ask.answer_schema import AnswerForm, AnswerSchema, ParsedAnswer
from agents.ask.metering import PostPrompt, Response
from agents.ask.runner import Runner
from agents.errors import JudgmentError
from agents.judgment import PostLike

Reading = Literal["answer", "log_probability", "perplexity"]


class Strategy(NamedTuple):
    """One way to criticize.

    Attributes:
        name: Its prompt file is ``criticize.NAME.txt``.
        form: Whether reasons are written first.
        options: Answer -> the probability of an error that it stands for.
        reading: What the estimate is read from: the answer (by its log-probabilities if there are any), its
            log-probabilities alone, or the perplexity of the reasons.
    """

    name: str
    form: AnswerForm
    options: Mapping[str, float]
    reading: Reading = "answer"


PER_CENT: Mapping[str, float] = {str(number): number / 100 for number in range(0, 101, 10)}
GRADES: Mapping[str, float] = {
    "certainly right": 0.0,
    "probably right": 0.25,
    "could be either": 0.5,
    "probably wrong": 0.75,
    "certainly wrong": 1.0,
}
WRONG: Mapping[str, float] = {"yes": 1.0, "no": 0.0}

STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("plain", "label_only", PER_CENT),
        Strategy("reasoning", "reason_first", PER_CENT),
        Strategy("graded", "label_only", GRADES),
        Strategy("devils_advocate", "reason_first", GRADES),
        Strategy("log_probability", "label_only", WRONG, reading="log_probability"),
        Strategy("perplexity", "reason_first", WRONG, reading="perplexity"),
    )
}
UNREADABLE = "cannot be read"
"""The answer of a criticizer that can say nothing: the estimate is missing."""


class Criticism(NamedTuple):
    """An error estimate.

    Attributes:
        post_id: The post.
        strategy: How it was asked for.
        error: e, how likely the label is wrong, in [0, 1]; None where it is missing.
        fault: Why it is missing; empty otherwise.
        rationale: The criticizer's reasons; empty where none were asked for.
        source: What answered.
    """

    post_id: str
    strategy: str
    error: float | None
    fault: str
    rationale: str
    source: str


class Criticizer:
    """Asks how likely a label is wrong.

    Args:
        prompts: The prompt files.
        strategy: A name of `STRATEGIES`.
        rationale_chars: Most characters of its reasons.
        seed: As for `Annotator`.
    """

    def __init__(
        self,
        prompts: AnnotationPrompts,
        strategy: str = "devils_advocate",
        *,
        rationale_chars: int = 360,
        seed: int = 0,
    ) -> None:
        self.strategy: Strategy = STRATEGIES[strategy]
        options = tuple(self.strategy.options)
        self._schema = AnswerSchema(options, UNREADABLE, self.strategy.form, rationale_chars)
        self._prompts, self._seed = prompts, seed

    def criticize(
        self, runner: Runner, posts: Sequence[PostLike], annotations: Sequence[Annotation]
    ) -> list[Criticism]:
        """Return one criticism a post, in order; nothing is asked of a post without a label.

        Raises:
            JudgmentError: Annotations of other posts.
            TokenCapError, ServerLostError, ServerRefusedError, StoreError: Nobody can be asked any more.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept.
        """
        if [post.id for post in posts] != [annotation.post_id for annotation in annotations]:
            raise JudgmentError(
                f"{len(posts)} posts and {len(annotations)} annotations: expected one of each post, in order"
            )

        async def one(pair: tuple[PostLike, Annotation]) -> Criticism:
            post, annotation = pair
            if annotation.label is None:
                source = (await runner.client()).source
                return self._missing(post.id, f"not annotated: {annotation.fault}", source)
            prepared = await runner.prepare(post)
            messages = self._prompts.messages(
                f"criticize.{self.strategy.name}", self._schema, prepared,
                label=annotation.label, reasoning=annotation.rationale,
            )  # fmt: skip
            prompt = PostPrompt(
                prepared, messages, self._schema, "criticizer", 1,
                seed=self._seed, top_logprobs=TOP_LOGPROBS,
            )  # fmt: skip
            return self._criticism(post.id, await runner.ask(prompt))

        pairs = list(zip(posts, annotations, strict=True))
        return runner.map(f"criticisms, {self.strategy.name}", pairs, one)

    def _criticism(self, post_id: str, response: Response) -> Criticism:
        """Return the error estimate in a response."""
        if response.fault:
            return self._missing(post_id, response.fault, response.source)
        error = self._error(response.answer)
        if error is None:
            needed = {
                "answer": "the criticizer could not read the post",
                "log_probability": "the server gave no log-probabilities of yes and no",
                "perplexity": "the server gave no log-probabilities of the reasons",
            }[self.strategy.reading]
            return self._missing(post_id, needed, response.source)
        return Criticism(post_id, self.strategy.name, error, "", response.answer.rationale, response.source)

    def _missing(self, post_id: str, fault: str, source: str) -> Criticism:
        return Criticism(post_id, self.strategy.name, None, fault, "", source)

    def _error(self, answer: ParsedAnswer) -> float | None:
        options, probs = self.strategy.options, answer.probabilities
        if self.strategy.reading == "perplexity":
            return None if answer.perplexity is None else 1.0 - 1.0 / answer.perplexity
        if probs is not None:
            # the mean over the answers by their probability: finer than the one written, and without ties
            return min(max(sum(probs[name] * value for name, value in options.items()), 0.0), 1.0)
        if self.strategy.reading == "log_probability" or answer.label is None:
            return None
        return options[answer.label]
