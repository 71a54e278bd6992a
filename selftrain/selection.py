"""Which pool posts to send for verification: the most confident ones, by class.

Memory does not grow with the pool: logits arrive in chunks and only the best `quota` of each class stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from selftrain._util.types import Float32Array, IntArray
from selftrain.errors import SplitError

Shares = Literal["equal", "natural"] | Mapping[str, float]


class Selection(NamedTuple):
    """The chosen posts, most confident first, classes interleaved by confidence.

    Attributes:
        positions: [k] positions in the pool that was scored.
        logits: [k] calibrated logits of the positive class; the sign is the label.
    """

    positions: IntArray
    logits: Float32Array


class _Best:
    """The `quota` largest |logit| of one class; a tie goes to the post that stands earlier in the pool."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.positions = np.empty(0, np.int64)
        self.logits = np.empty(0, np.float32)

    def offer(self, positions: IntArray, logits: Float32Array) -> None:
        positions = np.concatenate([self.positions, positions])
        logits = np.concatenate([self.logits, logits])
        order = np.lexsort((positions, -np.abs(logits)))[: self.quota]
        self.positions, self.logits = positions[order], logits[order]


class Selector(Protocol):
    """Chooses the posts that the agents verify in a round.

    A selector is a value: asked again with the same arguments it chooses the same posts, because a round that
    was killed is done again.
    """

    def select(
        self,
        chunks: Iterable[tuple[IntArray, Float32Array]],
        *,
        most: int | None,
        classes: tuple[str, str],
        seed: int,
    ) -> Selection:
        """Return the chosen posts, the most wanted first.

        Args:
            chunks: (positions [n], calibrated logits [n] of the positive class) of the open pool posts, each
                post once. The pool may be large: keep what is chosen, not the chunks.
            most: Posts that may be chosen at most, at least 1; None: any number.
            classes: Names of the positive and of the negative class.
            seed: Of this round's draws.

        Raises:
            SplitError: Settings that do not fit the classes.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """The `k` most confident posts, with a quota for each class; see `quotas` for `shares`."""

    k: int = 500
    shares: Shares = "equal"

    def select(
        self,
        chunks: Iterable[tuple[IntArray, Float32Array]],
        *,
        most: int | None,
        classes: tuple[str, str],
        seed: int,
    ) -> Selection:
        """Return the chosen posts, most confident first."""
        k = self.k if most is None else min(self.k, most)
        return select(chunks, k, self.shares, positive=classes[0], negative=classes[1])


def quotas(k: int, shares: Shares, *, positive: str, negative: str, positive_share: float) -> tuple[int, int]:
    """Return how many posts of the positive and of the negative class make up the top k.

    Args:
        k: Posts in all.
        shares: "equal" halves, "natural" by the classifier's own shares of the pool, or class name -> share.
        positive: Name of the positive class.
        negative: Name of the negative class.
        positive_share: Share of the pool that the classifier calls positive, in [0, 1] (for "natural").

    Raises:
        SplitError: Shares that do not name both classes, or do not add up to 1.
    """
    if shares == "equal":
        share = 0.5
    elif shares == "natural":
        share = positive_share
    else:
        if (
            set(shares) != {positive, negative}
            or abs(sum(shares.values()) - 1) > 1e-6
            or min(shares.values()) < 0
        ):
            raise SplitError(
                f"selection shares are {dict(shares)}: expected {positive!r} and {negative!r} adding up to 1"
            )
        share = shares[positive]
    n_positive = int(np.floor(k * share + 0.5))
    return n_positive, k - n_positive


def select(
    chunks: Iterable[tuple[IntArray, Float32Array]],
    k: int,
    shares: Shares = "equal",
    *,
    positive: str = "positive",
    negative: str = "negative",
) -> Selection:
    """Return the top k of the pool by confidence, with a quota for each class.

    A class with fewer posts than its quota leaves the rest of it unused: filling it up from the other class
    would undo the balance that the quota is for.

    Args:
        chunks: (positions [n], logits [n]) of the pool, each post once, in any chunking.
        k: How many posts, at least 1.
        shares: See `quotas`.
        positive: Name of the positive class (logit > 0).
        negative: Name of the negative class (logit <= 0).
    """
    # "natural" quotas are known only at the end: until then each class keeps k.
    ups, downs = _Best(k), _Best(k)
    total = positives = 0
    for positions, logits in chunks:
        up = logits > 0
        total, positives = total + len(logits), positives + int(up.sum())
        ups.offer(positions[up], logits[up])
        downs.offer(positions[~up], logits[~up])
    share = positives / total if total else 0.5
    n_positive, n_negative = quotas(k, shares, positive=positive, negative=negative, positive_share=share)
    positions = np.concatenate([ups.positions[:n_positive], downs.positions[:n_negative]])
    logits = np.concatenate([ups.logits[:n_positive], downs.logits[:n_negative]])
    order = np.lexsort((positions, -np.abs(logits)))
    return Selection(positions[order], logits[order])
