"""Prompts of annotator and criticizer: files, filled from the task and the post.

Task, policy and post come first and are the same in every call on a post, so that a server keeps them in its
prefix cache; what is asked, and in which form, comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from agents.ask.answer_schema import Form
from agents.ask.criticizer.strategies import STRATEGIES
from agents.ask.prompt_files import PromptFiles
from agents.ask.prompts import Prompts
from agents.client.base import Message, Picture

BUILT_IN = Path(__file__).parent / "prompts"
_OPTIONS = {"options", "unsure"}
PLACEHOLDERS: dict[str, set[str]] = {
    "system.txt": {"task", "policy", "classes"},
    "annotate.plain.txt": _OPTIONS,
    "annotate.reasoning.txt": _OPTIONS,
    **{
        f"criticize.{one.name}.txt": _OPTIONS | ({"reasoning"} if one.sees_reasoning else {"label"})
        for one in STRATEGIES.values()
    },
}
"""File -> its placeholders; every file uses all of its own, but that for what an answer out of doubt is."""
_REQUIRED = {name for names in PLACEHOLDERS.values() for name in names} - {"unsure"}


class Wording(PromptFiles):
    """The prompt files of annotator and criticizer, for one task; see `PromptFiles`."""

    built_in = BUILT_IN
    placeholders = PLACEHOLDERS
    required = _REQUIRED

    @cached_property
    def _posts(self) -> Prompts:
        """Posts are shown as Reviewer and User see them."""
        return Prompts(self.brief, text_chars=self._text_chars, special=self._special)

    def system(self) -> Message:
        """Task, policy and classes: the same for every call."""
        return Message("system", (self._system(),))

    def question(
        self,
        template: str,
        form: Form,
        text: str,
        pictures: Sequence[Picture],
        *,
        label: str = "",
        reasoning: str = "",
    ) -> Message:
        """One post, and at the end what is asked about it.

        Args:
            template: "annotate.plain" and so on: a file's name without its ending.
            form: Of the answer.
            text, pictures: Of the post.
            label: The annotator's class, where the prompt shows it.
            reasoning: The annotator's reasons, where the prompt shows them; shown with the class.
        """
        said = self._quoted(reasoning)
        ending = self._fill(
            f"{template}.txt",
            options=", ".join(f'"{name}"' for name in form.classes),
            unsure=form.unsure,
            label=label,
            reasoning=f'"{label}"\n{said}' if said else f'"{label}" (no reasons were given)',
        )
        return self._posts.post(text, pictures, ending)
