"""What every kind of prompts has: a task, files that a user may replace, and posts that are quoted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from agents.ask.brief import Brief
from agents.ask.sanitize import cut, quoted, sanitize
from agents.ask.templates import Templates
from agents.client.base import Message, Picture


class PromptFiles:
    """The prompt files of a task.

    Args:
        brief: Policy, classes, roles.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of another model's words.
        special: Strings that the tokenizer treats as single tokens, see `fencing.sanitize`.

    Raises:
        PromptError: A file of no known name, a placeholder that is unknown, or one that is missing.

    Attributes:
        built_in: Folder of the package's own files of this kind.
        placeholders: File -> the placeholders that it may use.
        required: Of these it must use those that it may.
    """

    built_in: ClassVar[Path]
    placeholders: ClassVar[Mapping[str, set[str]]]
    required: ClassVar[set[str]]

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
        self._templates = Templates(self.built_in, self.placeholders, self.required, folder)

    def _fill(self, file: str, **values: str) -> str:
        return self._templates.fill(file, **values)

    def _system(self, **values: str) -> str:
        """Task, policy and classes, and what else the kind says first."""
        brief = self.brief
        return self._fill(
            "system.txt", task=brief.task, policy=brief.policy.strip(), classes=brief.listing, **values
        )

    def _quoted(self, said: str) -> str:
        """What another model said, cut and quoted line by line."""
        shown = cut(sanitize(said, self._special), self._text_chars).text
        return quoted(shown) if shown.strip() else ""

    def _told_of(self, text: str, pictures: int) -> dict[str, str]:
        """What a prompt says of a post: `contents` in a few words, and its own `words`, quoted.

        Args:
            text: As it was posted.
            pictures: How many are sent with it.
        """
        seen = {0: "no picture", 1: "one picture"}.get(pictures, f"{pictures} pictures")
        shown = cut(sanitize(text, self._special), self._text_chars)
        if not shown.text.strip():
            return {"contents": f"no words and {seen}", "words": ""}
        words = quoted(shown.text)
        if shown.shortened:
            words += f"\n(cut here: {len(shown.text):,} of {shown.total:,} characters are shown)"
        return {"contents": f"words and {seen}", "words": words}


def message(told: str, pictures: Sequence[Picture], ending: str) -> Message:
    """What is told of a post, its pictures, and at the end what is asked about it.

    Templates join the parts as they are: without the line breaks the question would go on in the last line of
    the quotation.
    """
    return Message("user", (told + "\n", *pictures, "\n" + ending))
