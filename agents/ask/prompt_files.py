"""Prompt files: those of the package, each of which a user's own may replace, filled for a task and a post.

Every prompt begins with the task, its policy and classes, goes on with the post and its pictures, and ends
with what is asked: all calls on a post share everything but their last lines, and a server keeps what they
share in its prefix cache. Ids, file names and known labels never enter a prompt; what strangers or other
models wrote enters it sanitized and quoted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import ClassVar

from agents.ask.sanitize import cut, quoted, sanitize
from agents.client.base import Message, Picture
from agents.errors import PromptFileError

BUILT_IN = Path(__file__).parent / "prompt_texts"
"""The package's own files, a folder a kind."""


@dataclass(frozen=True, slots=True)
class Brief:
    """A task as an agent reads it.

    Attributes:
        task: Its name.
        policy: The text that says what belongs to which class.
        classes: Class name -> meaning in one line, two or more.
        roles: Role -> description that replaces the built-in one.
    """

    task: str
    policy: str
    classes: Mapping[str, str]
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def listing(self) -> str:
        """A line a class, with its meaning."""
        return "\n".join(f"- {name}: {meaning}" for name, meaning in self.classes.items())

    @property
    def unsure(self) -> str:
        """The answer of an agent that cannot tell; never the name of a class."""
        return unsure_beside(self.classes)


def unsure_beside(answers: Collection[str]) -> str:
    """Return the answer of an agent that cannot tell, where `answers` are those of one that can."""
    words = ("unsure", "cannot tell", "no answer", "abstain")
    return next(word for word in words if word not in answers)


class PromptFiles:
    """The prompt files of one kind, for one task.

    Args:
        brief: Policy, classes, roles.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of another model's words.

    Raises:
        PromptFileError: A file of no known name, a placeholder that is unknown, or one that is missing.

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
    ) -> None:
        self.brief = brief
        self._text_chars = text_chars
        if folder is not None:
            _check_names(folder, self.placeholders)
        self._templates = {}
        for name, allowed in self.placeholders.items():
            own = folder / name if folder is not None else None
            file = own if own is not None and own.exists() else self.built_in / name
            self._templates[name] = _read_template(file, allowed, self.required)

    def fill(self, file: str, **values: str) -> str:
        """Return the file's text; values that it may not use are left out."""
        allowed = self.placeholders[file]
        filled = self._templates[file].substitute({k: v for k, v in values.items() if k in allowed})
        return filled.strip("\n")

    def task_words(self, **values: str) -> str:
        """Return the system prompt: task, policy and classes, and what else the kind says first."""
        brief = self.brief
        return self.fill(
            "system.txt", task=brief.task, policy=brief.policy.strip(), classes=brief.listing, **values
        )

    def quote(self, words: str) -> str:
        """Return what another model said, cut and quoted line by line."""
        shown = cut(sanitize(words), self._text_chars).text
        return quoted(shown) if shown.strip() else ""

    def post(self, text: str, pictures: Sequence[Picture], ending: str) -> Message:
        """Return one post, its pictures, and at the end what is asked about it.

        Templates of chat models join the parts as they are: without the line breaks the question would go on
        in the last line of the quotation.
        """
        seen = {0: "no picture", 1: "one picture"}.get(len(pictures), f"{len(pictures)} pictures")
        shown = cut(sanitize(text), self._text_chars)
        if not shown.text.strip():
            about = self.fill("post.txt", contents=f"no words and {seen}", words="")
        else:
            words = quoted(shown.text)
            if shown.shortened:
                words += f"\n(cut here: {len(shown.text):,} of {shown.total:,} characters are shown)"
            about = self.fill("post.txt", contents=f"words and {seen}", words=words)
        return Message("user", (about + "\n", *pictures, "\n" + ending))


def listed(answers: Sequence[str]) -> str:
    """Return answers as prompts list them: quoted, with commas."""
    return ", ".join(f'"{answer}"' for answer in answers)


def _check_names(folder: Path, known: Collection[str]) -> None:
    try:
        files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise PromptFileError(
            f"no prompt files can be read from {folder}: {error.strerror or error}"
        ) from error
    strangers = sorted(file.name for file in files if file.name not in known)
    if strangers:
        raise PromptFileError(
            f"{folder} holds {strangers}; expected only prompt files named {sorted(known)}: "
            "rename or remove them"
        )


def _read_template(file: Path, allowed: set[str], required: set[str]) -> Template:
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"the prompt file {file} cannot be read: {error}") from error
    if not template.is_valid():
        raise PromptFileError(f"{file}: a $ that begins no placeholder; write $$ for a dollar sign")
    found = set(template.get_identifiers())
    if found - allowed:
        raise PromptFileError(
            f"{file} uses the placeholders {sorted(found - allowed)}; it may use {sorted(allowed)}: "
            "correct them, or write $$ for a dollar sign"
        )
    missing = (allowed & required) - found
    if missing:
        raise PromptFileError(
            f"{file} lacks the placeholders {sorted(missing)}: without them nothing can be judged"
        )
    return template
