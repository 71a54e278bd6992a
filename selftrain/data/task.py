"""A task: the classes, the policy that defines them, the agents' roles, the process questions.

On disk it is a TOML file::

    name = "offensive-tweets"
    positive = "offensive"
    policy = "..."

    [classes]
    offensive = "insults, threatens or demeans"
    inoffensive = "everything else"

    [roles]                      # optional; replaces the built-in description of a role
    reviewer = "..."

    [[questions]]                # optional; the ancillary questions of AgentPS
    name = "faces"
    wording = "Do most of the pictures show a face?"
    answers = ["yes", "no"]
    counting = "most"            # optional: "any", "most" or a share in (0, 1]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from selftrain.errors import TaskError
from selftrain.store.atomic import write_bytes

ROLES = ("reviewer", "user")
_FIELDS = ("name", "positive", "policy", "classes", "roles", "questions")
_QUESTION_FIELDS = ("name", "wording", "answers", "counting")


class TaskClass(NamedTuple):
    """One class: its name, as manifests write it, and its meaning in one line."""

    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Question:
    """One ancillary question about a post.

    Attributes:
        name: As the `process` field of a manifest writes it.
        wording: As the model reads it.
        answers: Two or more. With a `counting` rule exactly two: the first holds when the rule is met.
        counting: None, or how a number of pictures becomes an answer: ``"any"`` (one is enough),
            ``"most"`` (more than half), or the least share of them, in (0, 1].

    Raises:
        TaskError: Fewer than two answers, one twice, or a counting rule that is none.
    """

    name: str
    wording: str
    answers: tuple[str, ...]
    counting: str | float | None = None

    def __post_init__(self) -> None:
        where = f"question {self.name!r}"
        _text(self.name, "the name of a question")
        _text(self.wording, f"the wording of {where}")
        for answer in self.answers:
            _text(answer, f"an answer to {where}")
        if len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
            raise TaskError(
                f"{where} has the answers {list(self.answers)}; expected two or more different ones: "
                'list them, for instance answers = ["yes", "no"]'
            )
        if self.counting is None:
            return
        share = isinstance(self.counting, int | float) and not isinstance(self.counting, bool)
        if self.counting not in ("any", "most") and not (share and 0.0 < float(self.counting) <= 1.0):
            raise TaskError(
                f'{where} has the counting rule {self.counting!r}; expected "any", "most" or a '
                f"share in (0, 1]: "
                "correct it or leave it out"
            )
        if len(self.answers) != 2:
            raise TaskError(
                f"{where} counts but has {len(self.answers)} answers; expected 2, the first for a "
                f"rule that is met: "
                "list two, or leave the counting rule out"
            )

    def answer_for_count(self, count: int, total: int) -> str:
        """The answer when `count` of `total` pictures show what is asked for.

        Raises:
            ValueError: The question does not count, or not 0 <= count <= total with total >= 1.
        """
        if self.counting is None:
            raise ValueError(f"question {self.name!r} has no counting rule")
        if not (0 <= count <= total and total >= 1):
            raise ValueError(
                f"{count} of {total} for question {self.name!r}: expected 0 <= count <= total, total >= 1"
            )
        if self.counting == "any":
            met = count >= 1
        elif self.counting == "most":
            met = 2 * count > total
        else:
            met = count / total >= float(self.counting)
        return self.answers[0] if met else self.answers[1]


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be told apart, and by which policy.

    Attributes:
        name: Short, for folders and headings.
        classes: Two or more, names unique.
        positive: The name of the class that is looked for.
        policy: The text that says what belongs to which class; the agents read it.
        roles: "reviewer" or "user" -> a description that replaces the built-in one.
        questions: The ancillary questions, names unique.

    Raises:
        TaskError: Any of these does not hold; found, expected and what to do.
    """

    name: str
    classes: tuple[TaskClass, ...]
    positive: str
    policy: str
    roles: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        _text(self.name, "`name`")
        _text(self.policy, "`policy`")
        for one in self.classes:
            _text(one.name, "the name of a class")
            _text(one.meaning, f"the meaning of class {one.name!r}")
        names = self.names
        if len(names) < 2 or len(set(names)) < len(names):
            raise TaskError(
                f"task {self.name!r} has the classes {list(names)}; expected two or more different names: "
                "add them under [classes]"
            )
        if self.positive not in names:
            raise TaskError(
                f"`positive` is {self.positive!r}; expected one of {list(names)}: name the class "
                f"that is looked for"
            )
        _known(self.roles, ROLES, "[roles]")
        for role, description in self.roles.items():
            _text(description, f"the description of role {role!r}")
        asked = [question.name for question in self.questions]
        if len(set(asked)) < len(asked):
            raise TaskError(f"the questions are named {asked}; expected every name once: rename one")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the task's order; a class index is relative to this tuple."""
        return tuple(one.name for one in self.classes)

    @property
    def negative(self) -> str:
        """The other class of a two-class task.

        Raises:
            TaskError: There are more than two classes.
        """
        if len(self.classes) != 2:
            raise TaskError(
                f"task {self.name!r} has {len(self.classes)} classes {list(self.names)}; expected "
                f"2: only then is "
                "there one negative class"
            )
        return next(name for name in self.names if name != self.positive)

    def question(self, name: str) -> Question | None:
        """The question of that name, or None."""
        return next((question for question in self.questions if question.name == name), None)


def load_task(path: Path) -> Task:
    """The task in a TOML file.

    Raises:
        TaskError: The file is missing, is no TOML, or does not describe a task.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise TaskError(
            f"no task could be read from {path}: {error.strerror}; expected a TOML file"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TaskError(f"{path} is not TOML in UTF-8: {error}; correct it there") from error
    try:
        return _parse(document)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error


def dump_task(task: Task, path: Path) -> None:
    """Writes the task as TOML, atomically; `load_task` gives an equal one back.

    Raises:
        OSError: The disk refuses.
    """
    lines = [f"{key} = {_toml(getattr(task, key))}" for key in ("name", "positive", "policy")]
    lines += ["", "[classes]", *(f"{_toml(one.name)} = {_toml(one.meaning)}" for one in task.classes)]
    if task.roles:
        lines += ["", "[roles]", *(f"{_toml(role)} = {_toml(text)}" for role, text in task.roles.items())]
    for question in task.questions:
        lines += [
            "",
            "[[questions]]",
            f"name = {_toml(question.name)}",
            f"wording = {_toml(question.wording)}",
        ]
        lines.append(f"answers = [{', '.join(map(_toml, question.answers))}]")
        if question.counting is not None:
            lines.append(f"counting = {_toml(question.counting)}")
    write_bytes(Path(path), ("\n".join(lines) + "\n").encode())


def _parse(document: Mapping[str, Any]) -> Task:
    _known(document, _FIELDS, "the task")
    classes = _table(document, "classes")
    questions = document.get("questions", [])
    if not isinstance(questions, list) or not all(isinstance(one, dict) for one in questions):
        raise TaskError("`questions` is no list of tables; expected one [[questions]] block a question")
    return Task(
        name=_text(document.get("name"), "`name`"),
        classes=tuple(
            TaskClass(name, _text(text, f"the meaning of class {name!r}")) for name, text in classes.items()
        ),
        positive=_text(document.get("positive"), "`positive`"),
        policy=_text(document.get("policy"), "`policy`"),
        roles={role: _text(text, f"role {role!r}") for role, text in _table(document, "roles").items()},
        questions=tuple(map(_question, questions)),
    )


def _question(block: Mapping[str, Any]) -> Question:
    _known(block, _QUESTION_FIELDS, "a question")
    answers = block.get("answers")
    if not isinstance(answers, list):
        raise TaskError(f"`answers` of a question is {answers!r}; expected a list of two or more texts")
    return Question(
        name=_text(block.get("name"), "the name of a question"),
        wording=_text(block.get("wording"), f"the wording of question {block.get('name')!r}"),
        answers=tuple(answers),
        counting=block.get("counting"),
    )


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise TaskError(f"`{key}` is {table!r}; expected a table: write [{key}] and one NAME = TEXT a line")
    return table


def _text(value: object, what: str) -> str:
    """`value`, if it is a text with something in it."""
    if not isinstance(value, str) or not value.strip():
        found = "missing" if value is None else f"{value!r}"
        raise TaskError(f"{what} is {found}; expected a text that is not empty: write it")
    return value


def _known(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """A field that nobody reads is a misspelling more often than not."""
    unknown = [key for key in table if key not in known]
    if unknown:
        raise TaskError(
            f"{where} has the unknown fields {unknown}; expected only {list(known)}: correct or remove them"
        )


def _toml(value: str | float) -> str:
    """A TOML basic string, or a number. JSON's escapes are TOML's, but for DEL, which TOML forbids bare."""
    import json

    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
