"""A task: the classes, the policy that defines them, the agents' roles, the process questions.

On disk it is a TOML file::

    name = "offensive-tweets"
    positive = "offensive"       # the class that is looked for: filters let it pass
    policy = "..."

    [classes]                    # two or more
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

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from agents.judgment import ROLES
from selftrain._util.files import read_toml
from selftrain._util.printable import first_of, first_told, shorten
from selftrain._util.types import Json
from selftrain.errors import TaskError
from selftrain.store import checksums
from selftrain.store.atomic import write_bytes


class TaskClass(NamedTuple):
    """One class: its name, as manifests write it, and its meaning in one line."""

    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Question:
    """One ancillary question about a post.

    Raises:
        TaskError: Fewer than two answers, one twice, or a counting rule that is none.
    """

    name: str  # as the `process` field of a manifest writes it
    wording: str  # as the model reads it
    # Two or more. With a `counting` rule exactly two: the first holds when the rule is met.
    answers: tuple[str, ...]
    # None, or how a number of pictures becomes an answer: ``"any"`` (one is enough), ``"most"`` (more than
    # half), or the least share of them, in (0, 1]
    counting: str | float | None = None

    def __post_init__(self) -> None:
        where = f"question {self.name!r}"
        _require_text(self.name, "the name of a question")
        _require_text(self.wording, f"the wording of {where}")
        for answer in self.answers:
            _require_text(answer, f"an answer to {where}")
        if len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
            raise TaskError(
                f"{where} has the answers {list(self.answers)}; expected two or more different ones: "
                'list them, for instance answers = ["yes", "no"]'
            )
        if self.counting is None:
            return
        number = isinstance(self.counting, int | float) and not isinstance(self.counting, bool)
        # as it is: a whole number of any length is no float
        share = number and not isinstance(self.counting, str) and 0.0 < self.counting <= 1.0
        if self.counting not in ("any", "most") and not share:
            raise TaskError(
                f'{where} has the counting rule {self.counting!r}; expected "any", "most" or a share in '
                "(0, 1]: correct it or leave it out"
            )
        if len(self.answers) != 2:
            raise TaskError(
                f"{where} counts but has {len(self.answers)} answers; expected 2, the first for a rule "
                "that is met: list two, or leave the counting rule out"
            )

    def answer_for_count(self, count: int, total: int) -> str:
        """Return the answer when `count` of `total` pictures show what is asked for.

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

    Raises:
        TaskError: Any of these does not hold; found, expected and what to do.
    """

    name: str  # short, for folders and headings
    classes: tuple[TaskClass, ...]  # two or more, names unique
    positive: str  # the name of the class that is looked for
    policy: str  # the text that says what belongs to which class; the agents read it
    # "reviewer" or "user" -> a description that replaces the built-in one
    roles: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()  # the ancillary questions, names unique

    def __post_init__(self) -> None:
        _require_text(self.name, "`name`")
        _require_text(self.policy, "`policy`")
        for one in self.classes:
            _require_text(one.name, "the name of a class")
            _require_text(one.meaning, f"the meaning of class {one.name!r}")
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
        strange = [role for role in self.roles if role not in ROLES]
        if strange:
            raise TaskError(f"[roles] has {strange}; expected only {list(ROLES)}: correct or remove them")
        for role, description in self.roles.items():
            _require_text(description, f"the description of role {role!r}")
        asked = [question.name for question in self.questions]
        if len(set(asked)) < len(asked):
            raise TaskError(f"the questions are named {asked}; expected every name once: rename one")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the task's order."""
        return tuple(one.name for one in self.classes)

    @property
    def numbered(self) -> tuple[str, ...]:
        """The classes' names as the loop numbers them: the positive one last, so that of two it is 1."""
        return (*(name for name in self.names if name != self.positive), self.positive)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that says to which class a post belongs; what else is asked of it is not."""
        said = [self.positive, self.policy, self.classes, sorted(self.roles.items())]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def question(self, name: str) -> Question | None:
        """Return the question of that name, or None."""
        return next((question for question in self.questions if question.name == name), None)


def load_task(path: Path) -> Task:
    """Read the task in a TOML file.

    Raises:
        TaskError: The file is missing, is no TOML, or does not describe a task.
        RunStateError: It lies in a run's folder, and is not as it was written there.
    """
    path = Path(path)
    checksums.check(path)
    try:
        document = read_toml(path)
    except OSError as error:
        raise TaskError(
            f"no task could be read from {path}: {error.strerror}; expected a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{path} is not TOML: {error}; correct it there") from error
    try:
        return _TaskFile.model_validate(document).to_task()
    except ValidationError as error:
        raise TaskError(f"{path}: {_faults(error)}") from error
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error


def dump_task(task: Task, path: Path) -> None:
    """Write the task as TOML, atomically; `load_task` gives an equal one back.

    Raises:
        OSError: The disk refuses.
    """
    document: Json = {
        "name": task.name,
        "positive": task.positive,
        "policy": task.policy,
        "classes": {one.name: one.meaning for one in task.classes},
        "roles": dict(task.roles),
        "questions": [
            {key: value for key, value in asdict(one).items() if value is not None} for one in task.questions
        ],
    }
    written = tomli_w.dumps({key: value for key, value in document.items() if value})
    write_bytes(Path(path), written.encode())


# ---- the file -----------------------------------------------------------------------------------------


class _Table(BaseModel):
    """A table of the file. An unknown field is an error: a typing slip must not go unread."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _QuestionTable(_Table):
    name: str
    wording: str
    answers: list[str]
    counting: Any = None  # a rule or a share: `Question` says what is expected


class _TaskFile(_Table):
    """The form of the file; what its values mean together is checked by `Task` and `Question`."""

    name: str
    positive: str
    policy: str
    classes: dict[str, str] = {}
    roles: dict[str, str] = {}
    questions: list[_QuestionTable] = []

    def to_task(self) -> Task:
        return Task(
            self.name,
            tuple(TaskClass(name, meaning) for name, meaning in self.classes.items()),
            self.positive,
            self.policy,
            self.roles,
            tuple(Question(q.name, q.wording, tuple(q.answers), q.counting) for q in self.questions),
        )


def _faults(error: ValidationError) -> str:
    """Say what is wrong with a file's form, in its own words and one fault after the other."""
    faults = error.errors(include_url=False)
    places = [one["loc"] for one in faults if one["type"] == "extra_forbidden"]
    if places:
        # as they are named beside them, each once: a question's stand in a list
        unknown = list(dict.fromkeys(".".join(str(p) for p in loc if isinstance(p, str)) for loc in places))
        known = [*_TaskFile.model_fields, *(f"questions.{name}" for name in _QuestionTable.model_fields)]
        return (
            f"the task has the unknown fields {first_of(unknown)}; expected only {known}: correct or remove"
            " them"
        )
    return "; ".join(first_told(_fault(one["loc"], one["type"], one["input"]) for one in faults))


def _fault(loc: tuple[int | str, ...], kind: str, found: object) -> str:
    what = "the meaning of class" if loc[0] == "classes" else "the description of role"
    match loc:
        case ("classes" | "roles", name):
            place = f"{what} {shorten(name)}"
        case ("questions", int(number), *rest):
            place = f"`{rest[0]}` of question {number + 1}" if rest else f"question {number + 1}"
        case _:
            place = f"`{loc[0]}`"
    expected = {
        "dict_type": f"a table: write [{loc[0]}] and one NAME = TEXT a line",
        "list_type": "a list: one [[questions]] block a question, two or more texts as its answers",
        "model_type": "a table: one [[questions]] block a question",
        "model_attributes_type": "a table: one [[questions]] block a question",
    }
    shown = "missing" if kind == "missing" else shorten(found)
    kind = "list_type" if kind == "missing" and loc[-1] == "answers" else kind
    return f"{place} is {shown}; expected {expected.get(kind, 'a text that is not empty: write it')}"


# ---- checks -------------------------------------------------------------------------------------------


def _require_text(value: str, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{what} is {value!r}; expected a text that is not empty: write it")
