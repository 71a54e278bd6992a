"""Which pool posts to send for verification: the surest, the least sure, any, or a mix of these.

Posts are ranked by one number, their calibrated logit, and memory does not grow with the pool: logits
arrive in chunks, and of each ranking only the best `k` of each class stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from selftrain._util.types import BoolArray, Float32Array, IntArray
from selftrain.errors import SplitError

Shares = Literal["equal", "natural", "any"] | Mapping[str, float]
Criterion = Literal["uncertain", "random", "confident"]
Chunks = Iterable[tuple[IntArray, Float32Array]]


class Selection(NamedTuple):
    """The chosen posts, the most wanted first.

    Attributes:
        positions: [k] positions in the pool that was scored.
        logits: [k] calibrated logits of the positive class; the sign is the label.
    """

    positions: IntArray
    logits: Float32Array


class Selector(Protocol):
    """Chooses the posts that the agents verify in a round.

    A selector is a value: asked again with the same arguments it chooses the same posts, because a round that
    was killed is done again.
    """

    def select(self, chunks: Chunks, *, most: int | None, classes: tuple[str, str], seed: int) -> Selection:
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
class _ByOneCriterion:
    """The `k` posts that one criterion wants most, with a quota for each class; see `quotas` for `shares`."""

    criterion: ClassVar[Criterion]
    k: int = 500
    shares: Shares = "any"

    def select(self, chunks: Chunks, *, most: int | None, classes: tuple[str, str], seed: int) -> Selection:
        """Return the chosen posts, the most wanted first."""
        mix = {self.criterion: 1.0}
        return choose(chunks, at_most(self.k, most), mix, self.shares, classes=classes, seed=seed)


@dataclass(frozen=True)
class TopK(_ByOneCriterion):
    """The `k` most confident posts, half of each class unless `shares` says otherwise.

    They are what the classifier is most often right about, so what agents say of them changes little; but
    a rule that learns only where all agree finds most agreement here.
    """

    criterion = "confident"
    shares: Shares = "equal"


class Uncertain(_ByOneCriterion):
    """The `k` posts that the classifier is least sure of: an answer on them changes most.

    Uncertainty sampling: Lewis & Gale, SIGIR 1994.
    """

    criterion = "uncertain"


class RandomPosts(_ByOneCriterion):
    """`k` posts drawn evenly from the pool: what is learned from them is true of the pool at large."""

    criterion = "random"


@dataclass(frozen=True)
class Mixed:
    """`k` posts, some by each criterion; no post is chosen twice.

    Args:
        k: Posts in all.
        mix: Criterion ("uncertain", "random", "confident") -> its share of the posts; shares add up to 1.
        shares: A quota for each class, within which the mix holds too; see `quotas`.

    Raises:
        SplitError: A mix of other criteria, or one that does not add up to 1.
    """

    k: int = 500
    mix: Mapping[Criterion, float] = field(default_factory=lambda: {"uncertain": 0.5, "random": 0.5})
    shares: Shares = "any"

    def __post_init__(self) -> None:
        known = set(self.mix) <= set(_RANKINGS)
        if not known or abs(sum(self.mix.values()) - 1) > 1e-6 or min(self.mix.values()) < 0:
            raise SplitError(
                f"the mix of a selection is {dict(self.mix)}: expected shares of {', '.join(_RANKINGS)} that"
                " add up to 1"
            )

    def select(self, chunks: Chunks, *, most: int | None, classes: tuple[str, str], seed: int) -> Selection:
        """Return the chosen posts, criterion by criterion, in the order of `_RANKINGS`."""
        return choose(chunks, at_most(self.k, most), self.mix, self.shares, classes=classes, seed=seed)


# ---- rankings -----------------------------------------------------------------------------------------

Ranking = Callable[[IntArray, Float32Array, int], npt.NDArray[Any]]
"""(positions [n], logits [n], seed) -> [n] numbers, the smallest for the most wanted post."""


def _drawn(positions: IntArray, logits: Float32Array, seed: int) -> npt.NDArray[np.uint64]:
    """Return [n] numbers as if drawn, each from seed and position alone: chunks and their order do not count.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    # in Python first: NumPy warns where a single number wraps around, which is what is wanted here
    start = np.uint64((seed * 0xD1342543DE82EF95 + 1) % 2**64)
    mixed = (positions.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


# in the order in which a mix takes its shares: what is rare and telling first, what abounds last
_RANKINGS: Mapping[Criterion, Ranking] = {
    "uncertain": lambda positions, logits, seed: np.abs(logits),
    "confident": lambda positions, logits, seed: -np.abs(logits),
    "random": _drawn,
}


class _Best:
    """The `quota` most wanted posts of one class; a tie goes to the post that stands earlier in the pool."""

    def __init__(self, quota: int, criterion: Criterion = "confident", seed: int = 0) -> None:
        self.quota = quota
        self._ranking, self._seed = _RANKINGS[criterion], seed
        self.positions = np.empty(0, np.int64)
        self.logits = np.empty(0, np.float32)

    def offer(self, positions: IntArray, logits: Float32Array) -> None:
        positions = np.concatenate([self.positions, positions])
        logits = np.concatenate([self.logits, logits])
        order = np.lexsort((positions, self._ranking(positions, logits, self._seed)))[: self.quota]
        self.positions, self.logits = positions[order], logits[order]

    def without(self, taken: IntArray, count: int) -> Selection:
        """Return the `count` most wanted posts that are not `taken`."""
        left = ~np.isin(self.positions, taken)
        return Selection(self.positions[left][:count], self.logits[left][:count])


# ---- choosing -----------------------------------------------------------------------------------------


def choose(
    chunks: Chunks,
    k: int,
    mix: Mapping[Criterion, float],
    shares: Shares,
    *,
    classes: tuple[str, str],
    seed: int,
) -> Selection:
    """Return the `k` most wanted posts of the pool, by criteria and, unless `shares` is "any", by class.

    A class with fewer posts than its quota leaves the rest of it unused: filling it up from the other class
    would undo the balance that the quota is for.

    Args:
        chunks: (positions [n], logits [n]) of the pool, each post once, in any chunking.
        k: How many posts, at least 1.
        mix: Criterion -> its share of the posts; no post counts for two of them.
        shares: See `quotas`; "any": no quotas.
        classes: Names of the positive class (logit > 0) and of the negative one.
        seed: Of the draws.

    Raises:
        SplitError: As `quotas`.
    """
    criteria = [criterion for criterion in _RANKINGS if mix.get(criterion)]
    # "natural" quotas are known only at the end, and posts may be taken by two criteria: each keeps k
    sides = [{one: _Best(k, one, seed) for one in criteria} for _ in range(1 if shares == "any" else 2)]
    total = positives = 0
    for positions, logits in chunks:
        up: BoolArray = logits > 0
        total, positives = total + len(logits), positives + int(up.sum())
        parts = (np.ones_like(up),) if shares == "any" else (up, ~up)
        for side, part in zip(sides, parts, strict=True):
            for best in side.values():
                best.offer(positions[part], logits[part])
    share = positives / total if total else 0.5
    counts: tuple[int, ...] = (k,)
    if shares != "any":
        counts = quotas(k, shares, positive=classes[0], negative=classes[1], positive_share=share)
    taken = [_by_criteria(side, count, mix) for side, count in zip(sides, counts, strict=True)]
    return _joined([_ranked([one[criterion] for one in taken], criterion, seed) for criterion in criteria])


def _by_criteria(
    side: Mapping[Criterion, _Best], count: int, mix: Mapping[Criterion, float]
) -> dict[Criterion, Selection]:
    """Return the posts of one class that each criterion takes, `count` in all."""
    found: dict[Criterion, Selection] = {}
    done, begun = np.empty(0, np.int64), 0.0
    for criterion, best in side.items():
        # rounded along the sum, so that the parts add up to the whole
        ended = begun + count * mix[criterion]
        found[criterion] = best.without(done, _rounded(ended) - _rounded(begun))
        done, begun = np.concatenate([done, found[criterion].positions]), ended
    return found


def _ranked(parts: list[Selection], criterion: Criterion, seed: int) -> Selection:
    """Join what a criterion took of each class, the most wanted first."""
    positions, logits = _joined(parts)
    order = np.lexsort((positions, _RANKINGS[criterion](positions, logits, seed)))
    return Selection(positions[order], logits[order])


def _joined(parts: list[Selection]) -> Selection:
    return Selection(
        np.concatenate([part.positions for part in parts]), np.concatenate([part.logits for part in parts])
    )


def _rounded(count: float) -> int:
    return int(np.floor(count + 0.5))


def at_most(k: int, most: int | None) -> int:
    """Return how many of `k` posts may be chosen where `most` are left to be."""
    return k if most is None else min(k, most)


def quotas(k: int, shares: Shares, *, positive: str, negative: str, positive_share: float) -> tuple[int, int]:
    """Return how many posts of the positive and of the negative class make up `k`.

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
            not isinstance(shares, Mapping)
            or set(shares) != {positive, negative}
            or abs(sum(shares.values()) - 1) > 1e-6
            or min(shares.values()) < 0
        ):
            found = dict(shares) if isinstance(shares, Mapping) else shares
            raise SplitError(
                f"selection shares are {found}: expected {positive!r} and {negative!r} adding up to 1"
            )
        share = shares[positive]
    n_positive = _rounded(k * share)
    return n_positive, k - n_positive
