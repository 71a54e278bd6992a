"""Prompt files: those of the package, each of which a user's own may replace, filled for a task and a post.

Every prompt begins with the task, its policy and classes, goes on with the post and its pictures, and ends
with what is asked: all calls on a post share everything but their last lines, and a server keeps what they
share in its prefix cache. Ids, file names and known labels never enter a prompt; what strangers or other
models wrote enters it sanitized and quoted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import ClassVar

from agents.ask.answer_schema import AnswerSchema
from agents.ask.prepare import PreparedPost
from agents.ask.sanitize import cut, quoted, sanitize
from agents.client.base import Message, Part, Picture
from agents.errors import PromptFileError

_MARK = re.compile(r"^(?:[-*\u2022]|(\d{1,3})[.)])\s+")  # of a list's item; its group: a number of its own
# what else begins an item or a heading: (a), b), iv., 2.1, § 3, ##
_BEGINS = re.compile(r"\(?\w{1,3}[.)]\s|\d+(?:\.\d+)+|[#\u00a7\u2013]")
_ENDS = tuple('.;!?\u2026\u3002\u061f\u06d4\u0964)"\u201d')  # of a sentence, in several scripts
BUILT_IN = Path(__file__).parent / "prompt_texts"
"""The package's own files, a folder a kind."""
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Brief:
    """A task as an agent reads it."""

    task: str  # its name
    policy: str  # the text that says what belongs to which class
    classes: Mapping[str, str]  # class name -> meaning in one line, two or more
    # role -> description that replaces the built-in one
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def listing(self) -> str:
        """A line a class, with its meaning."""
        return "\n".join(f"- {name}: {meaning}" for name, meaning in self.classes.items())

    @property
    def clauses(self) -> tuple[str, ...]:
        """The clauses of the policy, without their own numbers or marks; none where it is a single one.

        They are what the policy numbers from 1, if it does; else its lines, those that were only broken to
        fit a width put together.
        """
        items, own = self._items, self._numbers_itself
        found = tuple(_MARK.sub("", item) for item in items if not own or _own(item))
        return found if len(found) > 1 else ()

    @property
    def numbered(self) -> str:
        """The policy with a number before each clause."""
        if self._numbers_itself:  # it may speak of them: "see 3"
            return self.policy.strip()
        clauses = self.clauses
        return "\n".join(f"{n}. {text}" for n, text in enumerate(clauses, 1)) or self.policy.strip()

    @property
    def _numbers_itself(self) -> bool:
        items = self._items
        own = [int(number) for item in items if (number := _own(item))]
        # else it is a list within the policy
        return 2 * len(own) >= max(len(items), 4) and own == list(range(1, len(own) + 1))

    @property
    def _items(self) -> list[str]:
        """The lines of the policy, those put together that were broken to fit a width."""
        lines, indent = self.policy.splitlines(), 0
        items: list[str] = []
        width = max(map(len, lines), default=0)
        for before, line in zip(["", *lines], lines, strict=False):
            text = line.strip()
            deeper = len(line) - len(line.lstrip()) > indent
            broken = not before.rstrip().endswith(_ENDS) and len(f"{before} {text.split(' ')[0]}") > width
            begins = _MARK.match(text) or _BEGINS.match(text)
            if text and before.strip() and not begins and (deeper or broken):
                items[-1] += f" {text}"
            elif text:
                items.append(text)
                indent = len(line) - len(line.lstrip())
        return items

    @property
    def unsure(self) -> str:
        """The answer of an agent that cannot tell; never the name of a class."""
        return unsure_beside(self.classes)


def _own(item: str) -> str | None:
    """Return the number that the policy itself gives an item."""
    mark = _MARK.match(item)
    return mark[1] if mark else None


def unsure_beside(answers: Collection[str]) -> str:
    """Return the answer of an agent that cannot tell, where `answers` are those of one that can."""
    words = ("unsure", "cannot tell", "no answer", "abstain")
    return next(word for word in words if word not in answers)


class PromptFiles:
    """The prompt files of one kind, for one task.

    A user's file may use the placeholders of the built-in file that it replaces, and no others.

    Args:
        brief: Policy, classes, roles.
        folder: Files that replace the built-in ones of the same name; None for none.
        text_chars: Most characters of a post's text, and of another model's words.

    Raises:
        PromptFileError: A file of no known name, a placeholder that is unknown, or one that is missing.
    """

    built_in: ClassVar[Path]  # folder of the package's own files of this kind
    required: ClassVar[set[str]]  # of those that it may use, a file must use these

    def __init__(self, brief: Brief, *, folder: Path | str | None = None, text_chars: int = 4000) -> None:
        self.brief = brief
        self._text_chars = text_chars
        # of the posts that are asked about just now: all that is asked about one begins alike
        self._opening = lru_cache(maxsize=256)(self._opened)
        self._templates = {file.name: _read_template(file) for file in self.built_in.glob("*.txt")}
        for file in _own_files(Path(folder), self._templates) if folder is not None else ():
            template, allowed = _read_template(file), set(self._templates[file.name].get_identifiers())
            _check_placeholders(file, set(template.get_identifiers()), allowed, allowed & self.required)
            self._templates[file.name] = template

    def fill(self, template: str, **values: str) -> str:
        """Return the text of a file, named without its ending; values that it does not use are left out."""
        return self._templates[f"{template}.txt"].substitute(values).strip("\n")

    def system(self, **values: str) -> Message:
        """Return the turn that comes first: task, policy and classes, and what else the kind says."""
        brief = self.brief
        words = self.fill("system", task=brief.task, policy=brief.numbered, classes=brief.listing, **values)
        return Message("system", (words,))

    def about(self, post: PreparedPost, template: str, schema: AnswerSchema, **values: str) -> Message:
        """Return one post, its pictures, and at the end what the file `template` asks about it.

        The file may list the labels of `schema`, or its options: those without doubt.
        """
        spelt = schema.spelt
        offered = {"labels": listed(spelt.values()), "options": listed(spelt[one] for one in schema.classes)}
        ending = self.fill(template, **offered, unsure=spelt[schema.unsure], **values)
        return self.post(post.post.text, post.pictures, ending)

    def bare(self, post: PreparedPost) -> tuple[Part, ...]:
        """Return one post and nothing else, for a model whose own template asks."""
        words = cut(sanitize(post.post.text), self._text_chars).text
        return (*((words,) if words.strip() or not post.pictures else ()), *post.pictures)

    def quote(self, words: str) -> str:
        """Return what another model said, cut and quoted line by line."""
        shown = cut(sanitize(words), self._text_chars).text
        return quoted(shown) if shown.strip() else ""

    def post(self, text: str, pictures: Sequence[Picture], ending: str) -> Message:
        """Return one post, its pictures, and at the end what is asked about it.

        Templates of chat models join the parts as they are: without the line breaks the question would go on
        in the last line of the quotation.
        """
        return Message("user", (self._opening(text, _seen(pictures)) + "\n", *pictures, "\n" + ending))

    def _opened(self, text: str, seen: str) -> str:
        """Return what stands before a post's pictures."""
        shown = cut(sanitize(text), self._text_chars)
        if not shown.text.strip():
            return self.fill("post", contents=f"no words and {seen}", words="")
        words = quoted(shown.text)
        if shown.shortened:
            words += f"\n(cut here: {len(shown.text):,} of {shown.total:,} characters are shown)"
        return self.fill("post", contents=f"words and {seen}", words=words)


def _seen(pictures: Sequence[Picture]) -> str:
    """Return in words what is shown of a post."""
    count = len(pictures)
    seen = {0: "no picture", 1: "one picture"}.get(count, f"{count} pictures")
    return f"{seen} from a video" if count and pictures[0].frame is not None else seen


def listed(answers: Iterable[str]) -> str:
    """Return answers as prompts list them: quoted, with commas."""
    return ", ".join(f'"{answer}"' for answer in answers)


def _own_files(folder: Path, known: Collection[str]) -> list[Path]:
    """Return a user's files, each of which has the name of a known one."""
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
    return files


def _read_template(file: Path) -> Template:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:  # a FIFO would block, a device never end
        raise PromptFileError(f"the prompt file {file} is no regular file of at most {MAX_BYTES:,} bytes")
    try:
        template = Template(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"the prompt file {file} cannot be read: {error}") from error
    if not template.is_valid():
        raise PromptFileError(f"{file}: a $ that begins no placeholder; write $$ for a dollar sign")
    return template


def _check_placeholders(file: Path, found: set[str], allowed: set[str], required: set[str]) -> None:
    if found - allowed:
        raise PromptFileError(
            f"{file} uses the placeholders {sorted(found - allowed)}; it may use {sorted(allowed)}: "
            "correct them, or write $$ for a dollar sign"
        )
    if missing := required - found:
        raise PromptFileError(
            f"{file} lacks the placeholders {sorted(missing)}: without them nothing can be judged"
        )
