"""What a view of an offline agent offers.

Shape legend: ``B`` posts, ``K`` classes, ``L`` labelled posts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from agents.judgment import PostLike

Floats = npt.NDArray[np.float64]


class Lesson(NamedTuple):
    """What a view learns from.

    Attributes:
        posts: The L labelled posts, then the accepted ones, B in all.
        targets: [B, K] weight of each class for each post.
        labels: [L] class indices of the labelled posts.
        pool: Posts without labels; may be empty.
        folds: [L] fold of each labelled post, for scores out of fold.
    """

    posts: Sequence[PostLike]
    targets: Floats
    labels: npt.NDArray[np.int64]
    pool: Sequence[PostLike]
    folds: npt.NDArray[np.int64]


class Word(NamedTuple):
    """A telling word; `weight` is its share of the evidence for the label judged, negative against it."""

    word: str
    weight: float


class Neighbour(NamedTuple):
    """A labelled post that is near; `similarity` is a cosine."""

    id: str
    label: int
    similarity: float


@dataclass(slots=True)
class Opinion:
    """What a view says of B posts.

    Attributes:
        evidence: [B, K] calibrated log-likelihoods, centred over classes; zero where nothing is known.
        known: [B] whether the view knows anything of the post.
        words: Telling words of each post, largest first, for the class index asked.
        neighbours: Nearest labelled posts of each post.
    """

    evidence: Floats
    known: npt.NDArray[np.bool_]
    words: list[list[Word]] = field(default_factory=list)
    neighbours: list[list[Neighbour]] = field(default_factory=list)


class View(Protocol):
    """One way to look at a post, with a model and a calibration of its own."""

    @property
    def name(self) -> str: ...

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and give the calibrated evidence [L, K] on the labelled posts, out of fold."""
        ...

    def look(self, posts: Sequence[PostLike]) -> Opinion:
        """Evidence on posts that were not learned from, without words and neighbours."""
        ...

    def explain(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64]) -> Opinion:
        """The same with words (for the class index of each post) and neighbours."""
        ...
