"""Prompts of annotator and criticizer: files, filled from the task and the post.

Task, policy and post come first and are the same in every call on a post, so that a server keeps them in its
prefix cache; what is asked, and in which form, comes last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ..chat.base import Message, Picture
from ..vlm.brief import Brief
from ..vlm.fencing import cut, neutralise, quoted
from ..vlm.forms import Form
from ..vlm.prompts import Prompts
from ..vlm.templates import Templates
from .strategies import STRATEGIES

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


class Wording:
    """The prompt files of annotator and criticizer, for one task.

    Args:
        brief: Policy and classes.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of an annotator's reasons.
        special: Strings that the tokenizer treats as single tokens, see `fencing.neutralise`.

    Raises:
        PromptError: A file of no known name, or one whose placeholders are not its own.
    """

    def __init__(
        self,
        brief: Brief,
        *,
        folder: Path | None = None,
        text_chars: int = 4000,
        special: Collection[str] = (),
    ) -> None:
        self.brief = brief
        self._text_chars = text_chars
        self._special = tuple(special)
        self._posts = Prompts(brief, text_chars=text_chars, special=special)
        self._templates = Templates(BUILT_IN, PLACEHOLDERS, _REQUIRED, folder)

    def system(self) -> Message:
        """Task, policy and classes: the same for every call."""
        words = self._templates.fill(
            "system.txt",
            task=self.brief.task,
            policy=self.brief.policy.strip(),
            classes=self.brief.listing,
        )
        return Message("system", (words,))

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
        said = quoted(cut(neutralise(reasoning, self._special), self._text_chars).text)
        ending = self._templates.fill(
            f"{template}.txt",
            options=", ".join(f'"{name}"' for name in form.classes),
            unsure=form.unsure,
            label=label,
            reasoning=f'"{label}"\n{said}' if reasoning.strip() else f'"{label}" (no reasons were given)',
        )
        return self._posts.post(text, pictures, ending)
