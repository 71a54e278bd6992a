"""The prompts of questions: files that a user may edit, filled from the task, the post and the question.

Task, policy, classes and the form of an answer come first, then the post and its pictures, and the question
last: all questions about a post share everything but their last lines, and a server keeps what they share in
its prefix cache. Ids, file names, labels and answers that are known already never enter a prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ..chat.base import Message, Picture
from ..vlm.brief import Brief
from ..vlm.forms import Form, FormName
from ..vlm.prompts import message, told_of
from ..vlm.templates import Templates
from .question import Asked

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


class QuestionPrompts:
    """The prompt files of a task's questions.

    Args:
        brief: Name, policy, classes.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text.
        special: Strings that the tokenizer treats as single tokens, see `fencing.neutralise`.

    Raises:
        PromptError: A file of no known name, a placeholder that is unknown, or one that is missing.
    """

    def __init__(
        self,
        brief: Brief,
        *,
        folder: Path | None = None,
        text_chars: int = 4000,
        special: Collection[str] = (),
    ) -> None:
        self._brief = brief
        self._text_chars = text_chars
        self._special = tuple(special)
        self._templates = Templates(BUILT_IN, _PLACEHOLDERS, _REQUIRED, folder)

    def system(self, form: FormName) -> Message:
        """The task, its policy and classes, and the form of an answer: the same for every question."""
        words = self._templates.fill(
            "system.txt",
            task=self._brief.task,
            policy=self._brief.policy.strip(),
            classes=self._brief.listing,
            form=self._templates.fill(f"form.{form}.txt"),
        )
        return Message("system", (words,))

    def question(self, text: str, pictures: Sequence[Picture], asked: Asked, form: Form) -> Message:
        """One post, its pictures, and at the end what is asked about it."""
        told = self._templates.fill(
            "post.txt", **told_of(text, len(pictures), self._text_chars, self._special)
        )
        ending = self._templates.fill(
            f"question.{asked.kind}.txt",
            wording=asked.wording.strip(),
            labels=", ".join(f'"{label}"' for label in form.labels),
            unsure=form.unsure,
        )
        return message(told, pictures, ending)
