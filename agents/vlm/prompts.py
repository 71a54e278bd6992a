"""Prompts: files that a user may edit, filled from the task and the post.

Every prompt begins with the task, its policy, who the agents are and the form of an answer, goes on with the
post and its pictures, and ends with who is asked: all calls on a post share everything but their last lines,
and a server keeps what they share in its prefix cache.
Ids and file names never enter a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..chat.base import Message, Picture
from ..judgment import Judgment, State
from .brief import Brief
from .fencing import cut, neutralise, quoted
from .forms import Form
from .templates import Templates

ROLES = ("reviewer", "user")
"""Roles that are described; a judge alone has none."""
BUILT_IN = Path(__file__).parent / "prompts"

_PLACEHOLDERS = {
    "system.txt": {"task", "policy", "classes", "roles", "form"},
    "post.txt": {"contents", "words"},
    "form.reason_first.txt": {"labels", "unsure"},
    "form.label_first.txt": {"labels", "unsure"},
    "form.label_only.txt": {"labels", "unsure"},
    "form.cot.txt": {"labels", "unsure"},
    "reviewer.role.txt": set(),
    "user.role.txt": set(),
    "reviewer.first.txt": set(),
    "user.first.txt": set(),
    "reviewer.again.txt": {"own", "other", "classifier"},
    "user.again.txt": {"own", "other", "classifier"},
    "user.sequential.txt": {"other"},
    "judge.zero_shot.txt": set(),
    "judge.few_shot.txt": set(),
    "judge.cot.txt": set(),
}
"""File -> the placeholders that it may use; those of `_REQUIRED` it must."""

_REQUIRED = {"form", "own", "other", "words", "policy", "classes", "labels"}


class Prompts:
    """The prompt files of a task.

    Args:
        brief: Policy, classes, roles.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of another agent's words.
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
        self.brief = brief
        self._text_chars = text_chars
        self._special = tuple(special)
        self._templates = Templates(BUILT_IN, _PLACEHOLDERS, _REQUIRED, folder)

    def system(self, form: Form, roles: Sequence[str] = ()) -> Message:
        """The task, its policy and classes, the roles and the form of an answer: the same for every call.

        Args:
            form: Of the answers.
            roles: The agents that take part; each hears of the others too. A judge alone has no role.
        """
        labels = ", ".join(f'"{label}"' for label in form.labels)
        told = [f"The {role.capitalize()}: {self._role(role)}" for role in roles]
        words = self._fill(
            "system.txt",
            task=self.brief.task,
            policy=self.brief.policy.strip(),
            classes=self.brief.listing,
            roles="\n\n".join(told),
            form=self._fill(f"form.{form.name}.txt", labels=labels, unsure=form.unsure),
        )
        words = re.sub(r"\n{3,}", "\n\n", words)  # where there are no roles
        return Message("system", (words,))

    def post(self, text: str, pictures: Sequence[Picture], ending: str) -> Message:
        """One post, its pictures, and at the end what is asked about it."""
        return message(self._post_words(text, len(pictures)), pictures, ending)

    def ending(
        self,
        template: str,
        *,
        own: Judgment | None = None,
        other: Judgment | None = None,
        classifier: str | None = None,
    ) -> str:
        """The last part of a prompt: who is asked, and what.

        Args:
            template: "reviewer.first" and so on: a file's name without its ending.
            own, other: Earlier judgments that the template shows.
            classifier: The classifier's label.
        """
        return self._fill(
            f"{template}.txt",
            own=self._words_of(own),
            other=self._words_of(other),
            classifier=classifier or "",
        )

    def _role(self, role: str) -> str:
        given = self.brief.roles.get(role)
        return given.strip() if given else self._fill(f"{role}.role.txt")

    def _post_words(self, text: str, pictures: int) -> str:
        return self._fill("post.txt", **told_of(text, pictures, self._text_chars, self._special))

    def _words_of(self, judgment: Judgment | None) -> str:
        if judgment is None:
            return ""
        if judgment.state is State.FAILED:
            return "no answer that could be read"
        label = judgment.label if judgment.label is not None else self.brief.unsure
        said = cut(neutralise(judgment.rationale, self._special), self._text_chars).text
        return f'"{label}"' + (f"\n{quoted(said)}" if said.strip() else "")

    def _fill(self, file: str, **values: str) -> str:
        return self._templates.fill(file, **values)


def message(told: str, pictures: Sequence[Picture], ending: str) -> Message:
    """What is told of a post, its pictures, and at the end what is asked about it.

    Templates join the parts as they are: without the line breaks the question would go on in the last line of
    the quotation.
    """
    return Message("user", (told + "\n", *pictures, "\n" + ending))


def told_of(text: str, pictures: int, limit: int, special: Collection[str] = ()) -> dict[str, str]:
    """What a prompt says of a post: `contents` in a few words, and its own `words`, quoted.

    Args:
        text: As it was posted.
        pictures: How many are sent with it.
        limit: Most characters of the text.
        special: See `fencing.neutralise`.
    """
    seen = {0: "no picture", 1: "one picture"}.get(pictures, f"{pictures} pictures")
    shown = cut(neutralise(text, special), limit)
    if not shown.text.strip():
        return {"contents": f"no words and {seen}", "words": ""}
    words = quoted(shown.text)
    if shown.shortened:
        words += f"\n(cut here: {len(shown.text):,} of {shown.total:,} characters are shown)"
    return {"contents": f"words and {seen}", "words": words}
