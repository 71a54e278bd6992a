"""Posts with their targets, as training and evaluation take them.

Shape legend: ``Q`` process questions, ``K`` answers of a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from selftrain.agentps.questions import Questionnaire, Target, targets
from selftrain.data.posts import Post


class Example(NamedTuple):
    """One post.

    Attributes:
        id: As in its manifest.
        text: May be empty.
        pictures: Image files, or one video.
        targets: One [K] a question, the final one last; zeros where nobody answered.
    """

    id: str
    text: str
    pictures: tuple[Path, ...]
    targets: tuple[Target, ...]


def example(post: Post, asked: Questionnaire, *, share: float = 1.0) -> Example:
    """A post with what is known of it.

    Args:
        post: Its video, if it has one, stands for its pictures.
        asked: The questions.
        share: What its label is worth as a target, in (1/K, 1].

    Raises:
        TaskError: A label or an answer that the task does not know.
    """
    return Example(post.id, post.text, pictures(post), targets(asked, post.label, post.process, share=share))


def pictures(post: Post) -> tuple[Path, ...]:
    """The post's images, or its video."""
    return post.images if post.video is None else (post.video,)


def examples(
    posts: Iterable[Post],
    asked: Questionnaire,
    shares: Mapping[str, float] | None = None,
    finals: Mapping[str, Target] | None = None,
) -> list[Example]:
    """`example` of each post.

    Args:
        posts: With what is known of them.
        asked: The questions.
        shares: Post id -> what its label is worth; 1 for posts that it does not name.
        finals: Post id -> the target [K] of the final question, for posts whose label does not say it.
    """
    found = [example(post, asked, share=(shares or {}).get(post.id, 1.0)) for post in posts]
    if not finals:
        return found
    return [one._replace(targets=(*one.targets[:-1], finals.get(one.id, one.targets[-1]))) for one in found]


def answer_of(target: Target) -> int | None:
    """The index of the answer that a target stands for; None where it is missing."""
    return int(target.argmax()) if target.any() else None


def known_counts(found: Sequence[Example]) -> list[int]:
    """How many posts answer each question."""
    return [
        sum(bool(one.any()) for one in column) for column in zip(*(e.targets for e in found), strict=True)
    ]
