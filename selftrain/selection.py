"""Which pool posts to send for verification: the surest, the least sure, any, or a mix of these.

Posts are ranked by one number, the log-odds of their likeliest class, and memory does not grow with the pool:
logits arrive in chunks, and of each ranking only the best `k` of each class stay.

Shape legend: ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from selftrain._util.numeric import decide, log_odds
from selftrain._util.plugins import name_of
from selftrain._util.types import Float32Array, FloatArray, IntArray
from selftrain.errors import RecipeError, SplitError

Shares = Literal["equal", "natural", "any"] | Mapping[str, float]
Criterion = Literal["uncertain", "random", "confident"]
Chunks = Iterable[tuple[IntArray, Float32Array]]


class Selection(NamedTuple):
    """The chosen posts, the most wanted first."""

    positions: IntArray  # [k] positions in the pool that was scored
    logits: Float32Array  # [k, K] calibrated logits


class Selector(Protocol):
    """Chooses the posts that the agents verify in a round.

    A selector is a value: asked again with the same arguments it chooses the same posts, because a round that
    was killed is done again.
    """

    def select(self, chunks: Chunks, *, most: int | None, classes: Sequence[str], seed: int) -> Selection:
        """Return the chosen posts, the most wanted first.

        Args:
            chunks: (positions [n], calibrated logits [n, K]) of the open pool posts, each post once; NaN for
                a post that cannot be read, which nobody can be asked about. The pool may be large: keep what
                is chosen, not the chunks.
            most: Posts that may be chosen at most, at least 1; None: any number.
            classes: K names, the positive one last.
            seed: Of this round's draws.

        Raises:
            SplitError: Settings that do not fit the classes.
        """
        ...


def selected(
    selector: Selector,
    chunks: Chunks,
    *,
    among: IntArray,
    most: int | None,
    classes: Sequence[str],
    seed: int,
) -> Selection:
    """Return what a selector chooses of chunks, whose positions are `among` [n]; see `Selector.select`.

    RecipeError: posts that are not open or stand twice, more than `most`, logits of another shape or NaN.
    """
    chosen = selector.select(chunks, most=most, classes=classes, seed=seed)
    positions, logits = np.asarray(chosen.positions), np.asarray(chosen.logits)
    count, strange = len(positions), positions[~np.isin(positions, among)]
    shapes = logits.shape == (count, len(classes)) and positions.shape == (count,)
    if not shapes or (count and not np.issubdtype(positions.dtype, np.integer)):
        fault = (
            f"positions of shape {positions.shape} ({positions.dtype}) and logits of shape {logits.shape}:"
            f" expected integers [k] and [k, {len(classes)}]"
        )
    elif len(strange):
        fault = (
            f"position {strange[0]}, which is no open post of the pool: expected some of the positions that"
            " the chunks hold, not places in the chunks"
        )
    elif len(np.unique(positions)) < count:
        fault = f"{len(np.unique(positions))} posts as {count}: expected each once"
    elif most is not None and count > most:
        fault = f"{count} posts: expected `most`, {most}, or fewer"
    elif not np.isfinite(logits).all():
        fault = "posts whose logits are not finite: these cannot be read, expected others"
    else:
        return Selection(positions.astype(np.int64), logits)
    raise RecipeError(f"{name_of(selector)} as selector: it chose {fault} (docs/extending.md)")


@dataclass(frozen=True)
class _ByOneCriterion:
    """The `k` posts that one criterion wants most, with a quota for each class; see `quotas` for `shares`."""

    criterion: ClassVar[Criterion]
    k: int = 500
    shares: Shares = "any"

    def select(self, chunks: Chunks, *, most: int | None, classes: Sequence[str], seed: int) -> Selection:
        """Return the chosen posts, the most wanted first."""
        k = self.k if most is None else min(self.k, most)
        return choose(chunks, k, {self.criterion: 1.0}, self.shares, classes=classes, seed=seed)


@dataclass(frozen=True)
class TopK(_ByOneCriterion):
    """The `k` most confident posts, as many of each class unless `shares` says otherwise.

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

    def select(self, chunks: Chunks, *, most: int | None, classes: Sequence[str], seed: int) -> Selection:
        """Return the chosen posts, criterion by criterion, in the order of `_RANKINGS`."""
        k = self.k if most is None else min(self.k, most)
        return choose(chunks, k, self.mix, self.shares, classes=classes, seed=seed)


# ---- rankings -----------------------------------------------------------------------------------------

Ranking = Callable[[IntArray, FloatArray, int], npt.NDArray[Any]]
"""(positions [n], log-odds of the likeliest class [n], seed) -> [n], the smallest for the most wanted."""


def _drawn(positions: IntArray, sureness: FloatArray, seed: int) -> npt.NDArray[np.uint64]:
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
    "uncertain": lambda positions, sureness, seed: sureness,
    "confident": lambda positions, sureness, seed: -sureness,
    "random": _drawn,
}


class _Ranked(NamedTuple):
    """Posts with their logits [n, K] and the log-odds of their likeliest class [n]."""

    positions: IntArray
    logits: Float32Array
    sureness: FloatArray

    def at(self, places: npt.NDArray[Any]) -> _Ranked:
        """Return some of them, in that order: copies, which keep no larger array alive."""
        return _Ranked(self.positions[places], self.logits[places], self.sureness[places])

    def best(self, criterion: Criterion, seed: int, most: int | None = None) -> _Ranked:
        """Return `most` of them, the most wanted first; a tie goes to the post earlier in the pool."""
        wanted = _RANKINGS[criterion](self.positions, self.sureness, seed)
        return self.at(np.lexsort((self.positions, wanted))[:most])


def _joined(parts: Sequence[_Ranked]) -> _Ranked:
    return _Ranked(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class _Best:
    """The `quota` most wanted posts of one class."""

    def __init__(self, quota: int, classes: int, criterion: Criterion = "confident", seed: int = 0) -> None:
        self._quota, self._criterion, self._seed = quota, criterion, seed
        self.posts = _Ranked(np.empty(0, np.int64), np.empty((0, classes), np.float32), np.empty(0))

    def offer(self, posts: _Ranked) -> None:
        self.posts = _joined([self.posts, posts]).best(self._criterion, self._seed, self._quota)

    def without(self, taken: IntArray, count: int) -> _Ranked:
        """Return the `count` most wanted posts that are not `taken`."""
        return self.posts.at(np.flatnonzero(~np.isin(self.posts.positions, taken))[:count])


# ---- choosing -----------------------------------------------------------------------------------------


def choose(
    chunks: Chunks,
    k: int,
    mix: Mapping[Criterion, float],
    shares: Shares,
    *,
    classes: Sequence[str],
    seed: int,
) -> Selection:
    """Return the `k` most wanted posts of the pool, by criteria and, unless `shares` is "any", by class.

    A class with fewer posts than its quota leaves the rest of it unused: filling it up from another class
    would undo the balance that the quota is for. `mix` says which share of the posts each criterion takes,
    and no post counts for two of them. For the other arguments see `Selector.select`, for `shares` and what
    is raised `quotas`.
    """
    criteria = [criterion for criterion in _RANKINGS if mix.get(criterion)]
    # "natural" quotas are known only at the end, and posts may be taken by two criteria: each keeps k
    sides = [
        {one: _Best(k, len(classes), one, seed) for one in criteria}
        for _ in (classes if shares != "any" else ("any",))
    ]
    found = np.zeros(len(classes), np.int64)
    for positions, logits in chunks:
        read = np.isfinite(logits).all(1)
        posts = _Ranked(positions[read], logits[read], log_odds(logits[read]).max(1))
        given = decide(posts.logits)
        found += np.bincount(given, minlength=len(classes))
        for side, bests in enumerate(sides):
            part = posts.at(given == side) if shares != "any" else posts
            for best in bests.values():
                best.offer(part)
    counts = [k] if shares == "any" else quotas(k, shares, classes=classes, found=found)
    taken = [_by_criteria(side, count, mix) for side, count in zip(sides, counts, strict=True)]
    # what a criterion took of each class, the most wanted first
    chosen = _joined([_joined([one[this] for one in taken]).best(this, seed) for this in criteria])
    return Selection(chosen.positions, chosen.logits)


def _by_criteria(
    side: Mapping[Criterion, _Best], count: int, mix: Mapping[Criterion, float]
) -> dict[Criterion, _Ranked]:
    """Return the posts of one class that each criterion takes, `count` in all."""
    found: dict[Criterion, _Ranked] = {}
    done, begun = np.empty(0, np.int64), 0.0
    for criterion, best in side.items():
        # rounded along the sum, so that the parts add up to the whole
        ended = begun + count * mix[criterion]
        found[criterion] = best.without(done, _rounded(ended) - _rounded(begun))
        done, begun = np.concatenate([done, found[criterion].positions]), ended
    return found


def _rounded(count: float) -> int:
    return int(np.floor(count + 0.5))


def quotas(k: int, shares: Shares, *, classes: Sequence[str], found: IntArray | None = None) -> list[int]:
    """Return how many posts of each class make up `k`: in "equal" parts, by `shares`, or "natural".

    Natural are the classifier's own shares of the pool, by `found` [K], its posts of each class; None:
    unknown. The positive class is the last of the K. SplitError: shares that do not name all classes, or do
    not add up to 1.
    """
    if isinstance(shares, Mapping):
        named = set(shares) == set(classes) and abs(sum(shares.values()) - 1) <= 1e-6
        if not named or min(shares.values()) < 0:
            expected = " and ".join([", ".join(map(repr, classes[:-1])), repr(classes[-1])])
            raise SplitError(f"selection shares are {dict(shares)}: expected {expected} adding up to 1")
        parts = [shares[name] for name in classes]
    elif shares == "natural" and found is not None and found.sum():
        parts = (found / found.sum()).tolist()
    else:
        parts = [1 / len(classes)] * len(classes)
    # rounded along the sum, the positive class first, so that the parts add up to the whole
    ends = [_rounded(k * end) for end in np.cumsum(parts[::-1]).tolist()]
    return [end - start for start, end in pairwise([0, *ends[:-1], k])][::-1]
