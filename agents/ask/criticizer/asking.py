"""What annotator and criticizer ask, and what their answers say: no network, no store."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from agents.ask.answer_schema import Form, read_answer
from agents.ask.criticizer.strategies import STRATEGIES, UNREADABLE, Strategy
from agents.ask.criticizer.wording import Wording
from agents.ask.metering import Reply
from agents.client.base import ChatRequest, Completion, Picture, Sampling, Token
from agents.judgment import PostLike, State

# eleven steps of ten per cent begin with ten different digits, and a quote may come in between
_TOP_LOGPROBS = 16


class Annotation(NamedTuple):
    """A machine label.

    Attributes:
        post_id: The post.
        label: A class name; None where there is none.
        probability: Its share of the probability of all classes, not calibrated; None without
            log-probabilities.
        rationale: The annotator's reasons; empty where none were asked for.
        perplexity: Of these reasons, >= 1; None without reasons or log-probabilities.
        fault: Why there is no label: the annotator was unsure, or the call failed. Empty otherwise.
        source: What answered.
    """

    post_id: str
    label: str | None
    probability: float | None
    rationale: str
    perplexity: float | None
    fault: str
    source: str


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


class Annotator:
    """Asks for a label, with reasons first or without.

    Args:
        wording: The prompt files.
        reasoning: Whether reasons are written first.
        rationale_chars: Most characters of them.
        seed: Of the model's draws where an answer has to be asked for again.
    """

    role = "annotator"

    def __init__(
        self, wording: Wording, *, reasoning: bool = True, rationale_chars: int = 360, seed: int = 0
    ) -> None:
        brief = wording.brief
        self.form = Form(
            brief.names, brief.unsure, "reason_first" if reasoning else "label_only", rationale_chars
        )
        self.name = "reasoning" if reasoning else "plain"
        self._wording, self._seed = wording, seed

    def request(self, post: PostLike, pictures: Sequence[Picture]) -> ChatRequest:
        """The call that asks for the label of a post."""
        asked = self._wording.question(f"annotate.{self.name}", self.form, post.text, pictures)
        sampling = Sampling(self.form.max_tokens, seed=self._seed, top_logprobs=_TOP_LOGPROBS)
        return ChatRequest((self._wording.system(), asked), self.form.schema(), sampling, affinity=post.id)

    def read(self, completion: Completion) -> tuple[Mapping[str, Any], str]:
        """What a completion says, as the store keeps it, and why it cannot be used."""
        return _read(completion, self.form)

    def annotation(self, post_id: str, reply: Reply, source: str) -> Annotation:
        """The label in an answer."""
        if reply.fault:
            return self.failed(post_id, _no_answer(reply), source)
        answer = reply.answer
        label, shares = answer["label"], answer["probabilities"]
        return Annotation(
            post_id, label, None if label is None or shares is None else float(shares[label]),
            answer["rationale"], answer["perplexity"],
            "" if label is not None else "the annotator was unsure", source,
        )  # fmt: skip

    def failed(self, post_id: str, fault: str, source: str) -> Annotation:
        """No label, and why."""
        return Annotation(post_id, None, None, "", None, fault, source)


class Criticizer:
    """Asks how likely a label is wrong.

    Args:
        wording: The prompt files.
        strategy: A name of `strategies.STRATEGIES`.
        rationale_chars: Most characters of its reasons.
        seed: As for `Annotator`.
    """

    role = "criticizer"

    def __init__(
        self,
        wording: Wording,
        strategy: str = "devils_advocate",
        *,
        rationale_chars: int = 360,
        seed: int = 0,
    ) -> None:
        self.strategy: Strategy = STRATEGIES[strategy]
        self.form = Form(tuple(self.strategy.options), UNREADABLE, self.strategy.form, rationale_chars)
        self._wording, self._seed = wording, seed

    def request(self, post: PostLike, pictures: Sequence[Picture], annotation: Annotation) -> ChatRequest:
        """The call that asks about the label of a post. A post without a label has nothing to criticize."""
        asked = self._wording.question(
            f"criticize.{self.strategy.name}", self.form, post.text, pictures,
            label=annotation.label or "", reasoning=annotation.rationale,
        )  # fmt: skip
        sampling = Sampling(self.form.max_tokens, seed=self._seed, top_logprobs=_TOP_LOGPROBS)
        return ChatRequest((self._wording.system(), asked), self.form.schema(), sampling, affinity=post.id)

    def read(self, completion: Completion) -> tuple[Mapping[str, Any], str]:
        """As for `Annotator`."""
        return _read(completion, self.form)

    def criticism(self, post_id: str, reply: Reply, source: str) -> Criticism:
        """The error estimate in an answer."""
        if reply.fault:
            return self.failed(post_id, _no_answer(reply), source)
        error = self._error(reply.answer)
        if error is None:
            needed = {
                "answer": "the criticizer could not read the post",
                "log_probability": "the server gave no log-probabilities of yes and no",
                "perplexity": "the server gave no log-probabilities of the reasons",
            }[self.strategy.reading]
            return self.failed(post_id, needed, source)
        return Criticism(post_id, self.strategy.name, error, "", reply.answer["rationale"], source)

    def failed(self, post_id: str, fault: str, source: str) -> Criticism:
        """No estimate, and why."""
        return Criticism(post_id, self.strategy.name, None, fault, "", source)

    def _error(self, answer: Mapping[str, Any]) -> float | None:
        options, shares = self.strategy.options, answer["probabilities"]
        if self.strategy.reading == "perplexity":
            return None if answer["perplexity"] is None else 1.0 - 1.0 / float(answer["perplexity"])
        if shares is not None:
            return min(max(sum(float(shares[name]) * value for name, value in options.items()), 0.0), 1.0)
        if self.strategy.reading == "log_probability" or answer["state"] != State.LABEL:
            return None
        return float(options[answer["label"]])


def perplexity(tokens: Sequence[Token]) -> float | None:
    """exp(- mean log-probability) of the tokens that write the reasons; None where there are none."""
    text = "".join(token.text for token in tokens)
    found = re.search(r'"rationale"\s*:\s*"((?:[^"\\]|\\.)*)', text, re.DOTALL)
    if found is None:
        return None
    begin, end = found.span(1)
    position, logprobs = 0, []
    for token in tokens:
        # a token belongs to the reasons when it begins in them; the one that opens the quotation does not
        if begin <= position < end:
            logprobs.append(token.logprob)
        position += len(token.text)
    return math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None


def _read(completion: Completion, form: Form) -> tuple[Mapping[str, Any], str]:
    answer = asdict(read_answer(completion, form))
    fault = str(answer.pop("fault"))
    return {**answer, "perplexity": perplexity(completion.tokens)}, fault


def _no_answer(reply: Reply) -> str:
    return f"no usable answer in {reply.attempts} attempt(s); the last was {reply.fault}"
