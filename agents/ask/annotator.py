"""The annotator: a model that gives posts a label, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from agents.ask.answer_schema import AnswerForm, AnswerSchema
from agents.ask.metering import PostPrompt, Response
from agents.ask.prepare import PreparedPost
from agents.ask.prompt_files import BUILT_IN, PromptFiles, listed
from agents.ask.runner import Runner
from agents.client.base import Message
from agents.judgment import PostLike

# eleven steps of ten per cent begin with ten different digits, and a quote may come in between
TOP_LOGPROBS = 16

_OPTIONS = {"options", "unsure"}
_LABEL, _REASONS = _OPTIONS | {"label"}, _OPTIONS | {"reasoning"}


class AnnotationPrompts(PromptFiles):
    """The prompt files of annotator and criticizer; see `PromptFiles`.

    Every file uses all of its placeholders, but that for what an answer out of doubt is.
    """

    built_in = BUILT_IN / "annotation"
    placeholders: ClassVar[dict[str, set[str]]] = {
        "system.txt": {"task", "policy", "classes"},
        "post.txt": {"contents", "words"},
        "annotate.plain.txt": _OPTIONS,
        "annotate.reasoning.txt": _OPTIONS,
        "criticize.plain.txt": _LABEL,
        "criticize.reasoning.txt": _LABEL,
        "criticize.graded.txt": _LABEL,
        "criticize.devils_advocate.txt": _REASONS,
        "criticize.log_probability.txt": _LABEL,
        "criticize.perplexity.txt": _LABEL,
    }
    required: ClassVar[set[str]] = {
        "task", "policy", "classes", "contents", "words", "options", "label", "reasoning",
    }  # fmt: skip

    def messages(
        self, template: str, schema: AnswerSchema, post: PreparedPost, *, label: str = "", reasoning: str = ""
    ) -> tuple[Message, ...]:
        """Return task and policy, the post, and at the end what is asked about it.

        Args:
            template: "annotate.plain" and so on: a file's name without its ending.
            schema: Of the answer.
            post: Prepared.
            label: The annotator's class, where the prompt shows it.
            reasoning: The annotator's reasons, where the prompt shows them; shown with the class.
        """
        quoted = self.quote(reasoning)
        ending = self.fill(
            f"{template}.txt",
            options=listed(schema.classes),
            unsure=schema.unsure,
            label=label,
            reasoning=f'"{label}"\n{quoted}' if quoted else f'"{label}" (no reasons were given)',
        )
        system = Message("system", (self.task_words(),))
        return system, self.post(post.post.text, post.pictures, ending)


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


class Annotator:
    """Asks for a label, with reasons first or without.

    Args:
        prompts: The prompt files.
        reasoning: Whether reasons are written first.
        rationale_chars: Most characters of them.
        seed: Of the model's draws where an answer has to be asked for again.
    """

    def __init__(
        self,
        prompts: AnnotationPrompts,
        *,
        reasoning: bool = True,
        rationale_chars: int = 360,
        seed: int = 0,
    ) -> None:
        self.name = "reasoning" if reasoning else "plain"
        brief = prompts.brief
        form: AnswerForm = "reason_first" if reasoning else "label_only"
        self._schema = AnswerSchema(brief.names, brief.unsure, form, rationale_chars)
        self._prompts, self._seed = prompts, seed

    def annotate(self, runner: Runner, posts: Sequence[PostLike]) -> list[Annotation]:
        """Return one annotation a post, in order; one without a label says why.

        Raises:
            TokenCapError, ServerLostError, ServerRefusedError, StoreError: Nobody can be asked any more.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept.
        """

        async def one(post: PostLike) -> Annotation:
            prepared = await runner.prepare(post)
            messages = self._prompts.messages(f"annotate.{self.name}", self._schema, prepared)
            prompt = PostPrompt(
                prepared, messages, self._schema, "annotator", seed=self._seed, top_logprobs=TOP_LOGPROBS
            )
            return _annotation(post.id, await runner.ask(prompt))

        return runner.map("annotations", posts, one)


def _annotation(post_id: str, response: Response) -> Annotation:
    """Return the label in a response."""
    answer, source = response.answer, response.source
    if response.fault:
        return Annotation(post_id, None, None, "", None, response.fault, source)
    probability = None
    if answer.label is not None and answer.probabilities is not None:
        probability = float(answer.probabilities[answer.label])
    return Annotation(
        post_id, answer.label, probability, answer.rationale, answer.perplexity,
        "" if answer.label is not None else "the annotator was unsure", source,
    )  # fmt: skip
