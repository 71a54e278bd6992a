"""The annotator: a model that gives posts a label, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from agents.ask.answer_schema import AnswerForm, AnswerSchema
from agents.ask.metering import PostPrompt, Response
from agents.ask.prompt_files import BUILT_IN, PromptFiles
from agents.ask.runner import Runner
from agents.judgment import PostLike


class AnnotationPrompts(PromptFiles):
    """The prompt files of annotator and criticizer; see `PromptFiles`.

    Every file uses all of its placeholders, but that for what an answer out of doubt is.
    """

    built_in = BUILT_IN / "annotation"
    required: ClassVar[set[str]] = {
        "task", "policy", "classes", "contents", "words", "options", "label", "reasoning",
    }  # fmt: skip


class Annotation(NamedTuple):
    """A machine label."""

    post_id: str  # the post
    label: str | None  # a class name; None where there is none
    # its share of the probability of all classes, not calibrated; None without log-probabilities
    probability: float | None
    rationale: str  # the annotator's reasons; empty where none were asked for
    perplexity: float | None  # of these reasons, >= 1; None without reasons or log-probabilities
    fault: str  # why there is no label: the annotator was unsure, or the call failed. Empty otherwise
    source: str  # what answered

    @classmethod
    def of(cls, post_id: str, response: Response) -> Annotation:
        """Return the label in a response."""
        answer, probability = response.answer, None
        if answer.label is not None and answer.probabilities is not None:
            probability = float(answer.probabilities[answer.label])
        doubt = "" if answer.label is not None else "the annotator was unsure"
        return cls(
            post_id, answer.label, probability, answer.rationale, answer.perplexity,
            response.fault or doubt, response.source,
        )  # fmt: skip


class Annotator:
    """Asks for a label, with reasons first or without; `seed` is that of answers asked for again."""

    def __init__(
        self, prompts: AnnotationPrompts, *, reasoning: bool = True, rationale_chars: int = 360, seed: int = 0
    ) -> None:
        self.name = "reasoning" if reasoning else "plain"
        form: AnswerForm = "reason_first" if reasoning else "label_only"
        self._schema = AnswerSchema(prompts.brief.names, prompts.brief.unsure, form, rationale_chars)
        self._prompts, self._seed = prompts, seed

    def annotate(self, runner: Runner, posts: Sequence[PostLike]) -> list[Annotation]:
        """Return one annotation a post, in order; one without a label says why. Raises as `Runner.map`."""

        async def one(post: PostLike) -> Annotation:
            prepared = await runner.prepare(post)
            asked = self._prompts.about(prepared, f"annotate.{self.name}", self._schema)
            prompt = PostPrompt(
                prepared, (self._prompts.system(), asked), self._schema, "annotator",
                seed=self._seed,
            )  # fmt: skip
            return Annotation.of(post.id, await runner.ask(prompt))

        return runner.map("annotations", posts, one)
