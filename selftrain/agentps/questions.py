"""What the model is asked about every post of a task, and which answers it may give.

Shape legend: ``Q`` process questions, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from backbones.mllm.answering import Variant
from backbones.mllm.base import Wording
from selftrain._util.types import Float32Array
from selftrain.data.task import Task
from selftrain.errors import TaskError

FINAL = "final"
Target = Float32Array


class Asked(NamedTuple):
    """One question: its name, its wording, its answers in the order of the logits."""

    name: str
    wording: str
    answers: tuple[str, ...]


class Questionnaire(NamedTuple):
    """The questions of a task as one variant asks them.

    Attributes:
        process: The Q process questions that have a head; none for "vanilla".
        final: The classes.
        positive: The index of the class that is looked for.
        wording: The words around every post; only "agentps" reads the process questions.
    """

    process: tuple[Asked, ...]
    final: Asked
    positive: int
    wording: Wording

    @property
    def all(self) -> tuple[Asked, ...]:
        """Every question that has a head, the final one last."""
        return (*self.process, self.final)


def questionnaire(task: Task, variant: Variant, *, policy: bool = False) -> Questionnaire:
    """The questions of `task`.

    Args:
        task: With questions, unless the variant is "vanilla".
        variant: Where the heads read.
        policy: Put the policy before the post; otherwise only the meaning of the positive class.

    Raises:
        TaskError: A task without questions, a question called like the final one, for a variant that asks.
    """
    if variant != "vanilla" and not task.questions:
        raise TaskError(
            f"task {task.name!r} has no questions, and the variant {variant!r} learns from their answers:"
            " add [[questions]] to the task (`selftrain data tasks` shows some), or set"
            ' model.variant = "vanilla"'
        )
    if task.question(FINAL) is not None:
        raise TaskError(f"a question is called {FINAL!r}, which stands for the classes: rename it")
    process = tuple(Asked(one.name, one.wording, one.answers) for one in task.questions)
    meaning = next(one.meaning for one in task.classes if one.name == task.positive)
    opening = f"Policy: {task.policy}\nPost:" if policy else "Post:"
    if len(task.classes) == 2:
        closing = f"Is this post {spoken(task.positive)}: {meaning}?"
    else:
        closing = f"Which is it: {', '.join(spoken(name) for name in task.names)}?"
    asked = process if variant == "agentps" else ()
    return Questionnaire(
        process if variant != "vanilla" else (),
        Asked(FINAL, closing, task.names),
        task.names.index(task.positive),
        Wording(opening, tuple(one.wording for one in asked), closing),
    )


def spoken(name: str) -> str:
    """The name of a class as a word in a sentence.

    >>> spoken("not_hateful")
    'not hateful'
    """
    return name.replace("_", " ").replace("-", " ")


def hard_target(answers: tuple[str, ...], answer: str | None) -> Target:
    """[K] one for the answer; all zeros where there is none, which the loss leaves out.

    Raises:
        TaskError: An answer outside `answers`.
    """
    target = np.zeros(len(answers), dtype=np.float32)
    if answer is None:
        return target
    if answer not in answers:
        raise TaskError(f"the answer {answer!r} is none of {list(answers)}: correct it, or leave it out")
    target[answers.index(answer)] = 1.0
    return target


def soft_target(answers: tuple[str, ...], answer: str, share: float) -> Target:
    """[K] `share` for the answer, the rest evenly over the others.

    Args:
        share: In (1/K, 1].

    Raises:
        TaskError: As `hard_target`.
    """
    rest = (1.0 - share) / (len(answers) - 1)
    target = np.full(len(answers), rest, dtype=np.float32)
    target[hard_target(answers, answer).argmax()] = share
    return target


def targets(
    asked: Questionnaire, label: str | None, process: Mapping[str, str], *, share: float = 1.0
) -> tuple[Target, ...]:
    """The targets of one post, one for each of `asked.all`.

    Args:
        asked: The questions.
        label: A class, or None.
        process: Question -> answer, as far as they are known.
        share: What the label is worth: 1 for a person's, less for a pseudo-label.

    Raises:
        TaskError: A label or an answer that the task does not know.
    """
    final = asked.final.answers
    last = hard_target(final, None) if label is None else soft_target(final, label, share)
    return (*(hard_target(one.answers, process.get(one.name)) for one in asked.process), last)
