"""What is to be asked about which post, decided before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agents.ask.questioner import AgentQuestion
from selftrain.annotation.answers import FINAL, known_answers
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task
from selftrain.errors import TaskError


class Planned(NamedTuple):
    """One post of the manifest.

    Attributes:
        post: As it was read.
        asks: The questions that are asked about it.
        unasked: Question -> why it cannot be asked: no call is spent on it.
    """

    post: Post
    asks: tuple[AgentQuestion, ...] = ()
    unasked: Mapping[str, str] = {}


def choose(task: Task, names: Sequence[str] | None) -> tuple[Question, ...]:
    """The task's questions of these names, in the task's order; None: all.

    Raises:
        TaskError: The task has none, or not all of these.
    """
    known = [question.name for question in task.questions]
    if not known:
        raise TaskError(
            f"the task {task.name!r} has no questions; expected one [[questions]] block or more: add them, or"
            " begin with a task of `selftrain data tasks`"
        )
    if FINAL in known:
        raise TaskError(f"a question is called {FINAL!r}, the name of the final question: rename it")
    if names is None:
        return task.questions
    strangers = sorted(set(names) - set(known))
    if strangers or not names:
        raise TaskError(
            f"the task {task.name!r} has no questions {strangers or 'of no name'}; it has {known}: choose"
            " among these, or leave the choice out to ask all"
        )
    return tuple(question for question in task.questions if question.name in names)


def plan(
    posts: Sequence[Post],
    task: Task,
    questions: Sequence[Question],
    *,
    direct: bool = False,
    again: bool = False,
    limit: int | None = None,
    max_images: int = 16,
) -> list[Planned]:
    """One entry a post, in their order.

    A question that a person has answered is asked too: what the model says of it is the report's measure. One
    that a model has answered is not asked again.

    Args:
        posts: Of a manifest.
        task: For the classes.
        questions: To be asked, in order.
        direct: Whether the final question is asked too.
        again: Ask anew what a model has answered.
        limit: Only about the first posts; None: about all.
        max_images: Most pictures of a post that are sent.

    Raises:
        ManifestError: A post with a field of ours that holds something else.
    """
    asked = [
        AgentQuestion(q.name, q.wording, q.answers, "choice" if q.counting is None else "count")
        for q in questions
    ]
    if direct:
        asked.append(AgentQuestion(FINAL, "", task.names, "final"))
    return [
        _planned(post, asked, again, max_images) if limit is None or place < limit else Planned(post)
        for place, post in enumerate(posts)
    ]


def _planned(post: Post, asked: Sequence[AgentQuestion], again: bool, max_images: int) -> Planned:
    earlier = {} if again else known_answers(post).model
    asks, unasked = [], {}
    for one in asked:
        # an answer that the task no longer offers is none
        if one.name in earlier and earlier[one.name].get("answer") in one.answers:
            continue
        if one.kind == "count" and (reason := _uncountable(len(post.images), max_images)):
            unasked[one.name] = reason
        else:
            asks.append(one)
    return Planned(post, tuple(asks), unasked)


def _uncountable(images: int, most: int) -> str:
    if not images:
        return "the post has no pictures to count"
    if images > most:
        return f"only {most} of {images} pictures are sent, and the rule is about all: raise vlm.max_images"
    return ""
