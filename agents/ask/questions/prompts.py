"""The prompts of questions: files that a user may edit, filled from the task, the post and the question.

Task, policy, classes and the form of an answer come first, then the post and its pictures, and the question
last: all questions about a post share everything but their last lines, and a server keeps what they share in
its prefix cache. Ids, file names, labels and answers that are known already never enter a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agents.ask.answer_schema import Form, FormName
from agents.ask.prompt_files import PromptFiles, message
from agents.ask.questions.question import Asked
from agents.client.base import Message, Picture

BUILT_IN = Path(__file__).parent / "prompts"

_OFFER = {"wording", "labels", "unsure"}
_PLACEHOLDERS: dict[str, set[str]] = {
    "system.txt": {"task", "policy", "classes", "form"},
    "post.txt": {"contents", "words"},
    "form.reason_first.txt": set(),
    "form.label_first.txt": set(),
    "form.label_only.txt": set(),
    "form.cot.txt": set(),
    "question.choice.txt": _OFFER,
    "question.count.txt": _OFFER,
    "question.final.txt": {"labels", "unsure"},
}
"""File -> the placeholders that it may use; those of `_REQUIRED` it must."""

_REQUIRED = {"form", "words", "wording", "labels"}


class QuestionPrompts(PromptFiles):
    """The prompt files of a task's questions; see `PromptFiles`."""

    built_in = BUILT_IN
    placeholders = _PLACEHOLDERS
    required = _REQUIRED

    def system(self, form: FormName) -> Message:
        """The task, its policy and classes, and the form of an answer: the same for every question."""
        return Message("system", (self._system(form=self._fill(f"form.{form}.txt")),))

    def question(self, text: str, pictures: Sequence[Picture], asked: Asked, form: Form) -> Message:
        """One post, its pictures, and at the end what is asked about it."""
        told = self._fill("post.txt", **self._told_of(text, len(pictures)))
        ending = self._fill(
            f"question.{asked.kind}.txt",
            wording=asked.wording.strip(),
            labels=", ".join(f'"{label}"' for label in form.labels),
            unsure=form.unsure,
        )
        return message(told, pictures, ending)
