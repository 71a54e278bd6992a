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

from agents.ask.annotator import Annotation, AnnotationPrompts
from agents.ask.answer_schema import AnswerForm, AnswerSchema, ParsedAnswer
from agents.ask.metering import PostPrompt, Response
from agents.ask.runner import Runner
from agents.errors import JudgmentError
from agents.judgment import PostLike

Reading = Literal["answer", "log_probability", "perplexity"]


class Strategy(NamedTuple):
    """One way to criticize."""

    name: str  # its prompt file is ``criticize.NAME.txt``
    form: AnswerForm  # whether reasons are written first
    options: Mapping[str, float]  # answer -> the probability of an error that it stands for
    # what the estimate is read from: the answer (by its log-probabilities if there are any), its log-
    # probabilities alone, or the perplexity of the reasons
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
_WITHOUT: Mapping[Reading, str] = {
    "answer": "the criticizer could not read the post",
    "log_probability": "the server gave no log-probabilities of yes and no, or too few beside them",
    "perplexity": "the server gave no log-probabilities of the reasons",
}
"""Why an estimate is missing although there is an answer."""

UNREADABLE = "cannot be read"
"""The answer of a criticizer that can say nothing: the estimate is missing."""


class Criticism(NamedTuple):
    """An error estimate."""

    post_id: str  # the post
    strategy: str  # how it was asked for
    error: float | None  # e, how likely the label is wrong, in [0, 1]; None where it is missing
    fault: str  # why it is missing; empty otherwise
    rationale: str  # the criticizer's reasons; empty where none were asked for
    source: str  # what answered


class Criticizer:
    """Asks how likely a label is wrong, in one of the `STRATEGIES`."""

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
            JudgmentError: Annotations of other posts. Else as `Runner.map`.
        """
        if [post.id for post in posts] != [annotation.post_id for annotation in annotations]:
            raise JudgmentError(
                f"{len(posts)} posts and {len(annotations)} annotations: expected one of each post, in order"
            )

        async def one(pair: tuple[PostLike, Annotation]) -> Criticism:
            post, annotation = pair
            if annotation.label is None:
                fault, source = f"not annotated: {annotation.fault}", (await runner.client()).source
                return self._criticism(post.id, Response.failed(fault, source))
            prepared = await runner.prepare(post)
            reasons = self._prompts.quote(annotation.rationale)
            reasons = f"\n{reasons}" if reasons else " (no reasons were given)"
            asked = self._prompts.about(
                prepared, f"criticize.{self.strategy.name}", self._schema, label=annotation.label,
                reasoning=f'"{annotation.label}"{reasons}',
            )  # fmt: skip
            prompt = PostPrompt(
                prepared, (self._prompts.system(), asked), self._schema, "criticizer", 1,
                seed=self._seed,
            )  # fmt: skip
            return self._criticism(post.id, await runner.ask(prompt))

        pairs = list(zip(posts, annotations, strict=True))
        return runner.map(f"criticisms, {self.strategy.name}", pairs, one)

    def _criticism(self, post_id: str, response: Response) -> Criticism:
        """Return the error estimate in a response."""
        error, fault, rationale = self._error(response.answer), "", response.answer.rationale
        if error is None:
            fault, rationale = response.fault or _WITHOUT[self.strategy.reading], ""
        return Criticism(post_id, self.strategy.name, error, fault, rationale, response.source)

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
