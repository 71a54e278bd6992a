"""Prompts: files that a user may edit, filled from the task and the post.

Every prompt begins with the task, its policy, who the agents are and the form of an answer, goes on with the
post and its pictures, and ends with who is asked: all calls on a post share everything but their last lines,
and a server keeps what they share in its prefix cache.
Ids and file names never enter a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from agents.ask.answer_schema import Form
from agents.ask.prompt_files import PromptFiles, message
from agents.client.base import Message, Picture
from agents.judgment import Judgment, State

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


class Prompts(PromptFiles):
    """The prompt files of Reviewer, User and a judge alone; see `PromptFiles`."""

    built_in = BUILT_IN
    placeholders = _PLACEHOLDERS
    required = _REQUIRED

    def system(self, form: Form, roles: Sequence[str] = ()) -> Message:
        """The task, its policy and classes, the roles and the form of an answer: the same for every call.

        Args:
            form: Of the answers.
            roles: The agents that take part; each hears of the others too. A judge alone has no role.
        """
        labels = ", ".join(f'"{label}"' for label in form.labels)
        told = [f"The {role.capitalize()}: {self._role(role)}" for role in roles]
        shape = self._fill(f"form.{form.name}.txt", labels=labels, unsure=form.unsure)
        words = self._system(roles="\n\n".join(told), form=shape)
        words = re.sub(r"\n{3,}", "\n\n", words)  # where there are no roles
        return Message("system", (words,))

    def post(self, text: str, pictures: Sequence[Picture], ending: str) -> Message:
        """One post, its pictures, and at the end what is asked about it."""
        return message(self._fill("post.txt", **self._told_of(text, len(pictures))), pictures, ending)

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

    def _words_of(self, judgment: Judgment | None) -> str:
        if judgment is None:
            return ""
        if judgment.state is State.FAILED:
            return "no answer that could be read"
        label = judgment.label if judgment.label is not None else self.brief.unsure
        said = self._quoted(judgment.rationale)
        return f'"{label}"' + (f"\n{said}" if said else "")
