"""Two agents that need no download: they learn from the labelled posts, each through views of its own.

Shape legend: ``B`` posts, ``K`` classes, ``L`` labelled posts.

Reviewer reads words and their stems and weighs the nearest labelled images; User reads characters within
words and compares with the mean image of each class. Each view is calibrated out of fold; an agent adds
their evidence up, and the prior of the labelled posts. Equal priors (``prior=0``) accept the rarer class as
often as the commoner one, at a lower precision (HarMeme, 100 labels: 87.0 % of 459 instead of 88.3 % of 440).

A view that knows nothing of a post adds nothing, and an agent whose views all know nothing abstains, in
cross-review too: an echo would not be a second look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.errors import LearningError, NotFittedError
from agents.judgment import Accepted, Candidate, Judgment, LabelledPost, PostLike, State
from agents.offline.text_model import CharacterNgrams, Floats, WordNgrams
from agents.offline.views import Finding, ImageVectors, ImageView, Lesson, TextView, View

FOLDS, FOLDS_LARGE, LARGE = 5, 3, 1_000
"""From `LARGE` accepted posts on, leaving a third of the labelled ones out costs little: fewer folds do."""
MARGIN, WEIGHT_OTHER, WEIGHT_CLASSIFIER = 1.0, 0.3, 0.0
"""Measured: weight on the classifier only makes agreement cheaper, since all candidates are certain to it."""
MOST_OF_POOL = 20_000
"""Pool posts that shape the views; a short text takes some 18 kB of memory."""
CERTAIN = 0.95
"""Probabilities of others are cut here: one voice must not silence the others."""


@dataclass(eq=False, repr=False)
class OfflineAgent:
    """One role that judges by what the labelled posts showed.

    Raises:
        LearningError: A class that is named twice, or fewer than two.
    """

    role: str  # "reviewer" or "user"
    views: Sequence[View]  # what it looks at
    classes: Sequence[str]  # class names, K >= 2
    _: KW_ONLY
    margin: float = MARGIN  # abstain when the log-odds of the best class over the second are below this, >= 0
    prior: float = 1.0  # share of the labelled posts' class log-prior that counts, in [0, 1]
    weight_other: float = WEIGHT_OTHER  # share of the other's log-odds taken over in cross-review, in [0, 1]
    weight_classifier: float = WEIGHT_CLASSIFIER  # the same of the classifier's
    seed: int = 0  # draws the folds

    simulated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._classes = list(self.classes)
        if len(set(self._classes)) != len(self._classes) or len(self._classes) < 2:
            raise LearningError(f"classes {self._classes}: expected two or more different names")
        self.source = "offline:" + "+".join(view.name.replace(" ", "-") for view in self.views)
        self._prior: Floats | None = None
        self._recalled: dict[str, Floats] = {}

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Learn from `labelled`, helped by `accepted` pseudo-labels; `pool` texts shape the views.

        Of a large pool every second, third, ... post does: at most `MOST_OF_POOL`, whose memory is bounded.
        Only `labelled` posts calibrate: pseudo-labels came from these agents.

        Raises:
            LearningError: A class with fewer than two labelled posts, or a label that is no class.
        """
        labels = self._indices([post.label for post in labelled])
        counts = np.bincount(labels, minlength=len(self._classes))
        if counts.min() < 2:
            shown = {name: int(count) for name, count in zip(self._classes, counts, strict=True)}
            raise LearningError(f"labelled posts a class: {shown}; an offline agent needs 2 of each")
        lesson = Lesson(
            posts=[*labelled, *(one.post for one in accepted)],
            targets=np.concatenate([np.eye(len(self._classes))[labels], self._soft(accepted)]),
            labels=labels,
            pool=pool[:: 1 + len(pool) // MOST_OF_POOL],
            folds=_folds(labels, FOLDS if len(accepted) < LARGE else FOLDS_LARGE, self.seed),
        )
        evidence = sum((view.fit(lesson) for view in self.views), np.zeros((len(labels), len(counts))))
        self._recalled = {post.id: row for post, row in zip(labelled, evidence, strict=True)}
        prior = np.log(counts / counts.sum())
        self._prior = self.prior * (prior - prior.mean())

    def judge(self, posts: Sequence[PostLike]) -> list[Judgment]:
        """Return a judgment of step 0 on each post.

        Raises:
            NotFittedError: Before `fit`.
        """
        prior = self._fitted_prior()
        if not posts:
            return []
        findings = [view.look(posts) for view in self.views]
        # centred over classes
        log_odds = sum((one.evidence for one in findings[1:]), findings[0].evidence) + prior
        findings = [view.look(posts, log_odds.argmax(axis=1)) for view in self.views]
        knowing = [[(one, i) for one in findings if one.known[i]] for i in range(len(posts))]
        return [self._first(row, bool(those), those) for row, those in zip(log_odds, knowing, strict=True)]

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> list[Judgment]:
        """Return judgments of step 0; posts learned from are judged out of fold, without details."""
        prior = self._fitted_prior()
        new = [post for post in labelled if post.id not in self._recalled]
        fresh = dict(zip((post.id for post in new), self.judge(new), strict=True))
        return [
            fresh[post.id]
            if post.id in fresh
            else self._first(self._recalled[post.id] + prior, bool(self._recalled[post.id].any()), [])
            for post in labelled
        ]

    def reconsider(
        self, candidates: Sequence[Candidate], own: Sequence[Judgment], other: Sequence[Judgment]
    ) -> list[Judgment]:
        """Return a judgment of step 1: own log-odds, and a share of the other's and the classifier's.

        The shares are below 1 because all three learned from the same labels: their evidence overlaps.
        """
        return [self._second(*case) for case in zip(candidates, own, other, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return views and parameters, in JSON values."""
        return {
            "role": self.role,
            "source": self.source,
            "simulated": False,
            "margin": self.margin,
            "prior": self.prior,
            "weight_other": self.weight_other,
            "weight_classifier": self.weight_classifier,
            "seed": self.seed,
        }

    # ---- learning ----------------------------------------------------------------------------------------

    def _indices(self, labels: Sequence[str | None]) -> npt.NDArray[np.int64]:
        unknown = sorted({repr(label) for label in labels if label not in self._classes})
        if unknown:
            raise LearningError(f"labels {', '.join(unknown)} to learn from; the classes are {self._classes}")
        return np.array([self._classes.index(str(label)) for label in labels], np.int64)

    def _soft(self, accepted: Sequence[Accepted]) -> Floats:
        """Return weights [B, K] of the classes of pseudo-labelled posts."""
        classes = len(self._classes)
        rows = np.zeros((len(accepted), classes))
        index = self._indices([one.label for one in accepted])
        for row, one, k in zip(rows, accepted, index, strict=True):
            if not (0 < one.target <= 1 and one.weight > 0):
                raise LearningError(f"post {one.post.id!r}: target {one.target}, weight {one.weight}")
            row[:] = one.weight * (1 - one.target) / (classes - 1)
            row[k] = one.weight * one.target
        return rows

    # ---- judging -----------------------------------------------------------------------------------------

    def _fitted_prior(self) -> Floats:
        if self._prior is None:
            raise NotFittedError(f"{self.role} is not fitted yet")
        return self._prior

    def _first(self, log_odds: Floats, known: bool, findings: Sequence[tuple[Finding, int]]) -> Judgment:
        details: dict[str, Any] = {
            "log_odds": self._named(log_odds),
            "known": known,
            "words": [word._asdict() for o, i in findings for word in (o.words[i] if o.words else [])],
            "nearest": [
                {**near._asdict(), "label": self._classes[near.label]}
                for o, i in findings
                for near in o.neighbours[i]
            ],
        }
        label, probability = self._decide(log_odds) if known else (None, None)
        words = _first_words(label, probability, details)
        return self._judgment(0, label, probability, words, details)

    def _second(self, candidate: Candidate, own: Judgment, other: Judgment) -> Judgment:
        mine = own.details.get("log_odds")
        if own.state is State.FAILED or mine is None or not own.details.get("known", False):
            reason = "Stays without an opinion: its views know nothing of this post."
            return self._judgment(1, None, None, reason, dict(own.details))
        shares = {
            "own": np.array([float(mine[name]) for name in self._classes]),
            other.agent: self.weight_other * self._log_odds_of(other.label, other.probability),
            "classifier": self.weight_classifier * self._log_odds_of(candidate.label, candidate.probability),
        }
        log_odds = sum(shares.values(), np.zeros(len(self._classes)))
        label, probability = self._decide(log_odds)
        details = {
            "log_odds": self._named(log_odds),
            "known": True,
            "before": own.label,
            "shares": {who: self._named(share) for who, share in shares.items()},
        }
        words = _second_words(label, probability, candidate, own, other)
        return self._judgment(1, label, probability, words, details)

    def _named(self, log_odds: Floats) -> dict[str, float]:
        return dict(zip(self._classes, map(float, log_odds), strict=True))

    def _log_odds_of(self, label: str | None, probability: float | None) -> Floats:
        """Return centred log-odds [K] of someone else's answer; zeros when they did not give one."""
        log_odds = np.zeros(len(self._classes))
        if label in self._classes and probability is not None:
            certain = float(np.clip(probability, 1 - CERTAIN, CERTAIN))
            log_odds[:] = np.log((1 - certain) / (len(log_odds) - 1))
            log_odds[self._classes.index(label)] = np.log(certain)
        centred: Floats = log_odds - log_odds.mean()
        return centred

    def _decide(self, log_odds: Floats) -> tuple[str | None, float | None]:
        """Return the best class and its probability, or nothing when the second is within the margin."""
        best, second = np.argsort(-log_odds, kind="stable")[:2]
        if log_odds[best] - log_odds[second] <= self.margin:
            return None, None
        mass = np.exp(log_odds - log_odds.max())
        return self._classes[int(best)], float(mass[best] / mass.sum())

    def _judgment(
        self, step: int, label: str | None, probability: float | None, words: str, details: dict[str, Any]
    ) -> Judgment:
        state = State.ABSTAIN if label is None else State.LABEL
        return Judgment(self.role, step, state, label, probability, words, self.source, details)


def _folds(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw the fold of each labelled post, classes spread evenly: each stays in two folds or more."""
    random = np.random.default_rng(seed)
    folds = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == k))
        folds[members] = np.arange(len(members)) % count
    return folds


def offline_agents(
    classes: Sequence[str],
    *,
    image_vectors: ImageVectors | None = None,
    seed: int = 0,
) -> tuple[OfflineAgent, OfflineAgent]:
    """Build Reviewer and User, each with views of its own and the usual shares.

    Args:
        classes: Class names, in any fixed order.
        image_vectors: Posts to rows [B, I], zeros where a post has no image; None looks at texts only.
        seed: As `OfflineAgent`.
    """
    reviewer: list[View] = [TextView(WordNgrams(), temper=1.0)]
    user: list[View] = [TextView(CharacterNgrams(), temper=0.2)]
    if image_vectors is not None:
        reviewer.append(ImageView(image_vectors, "neighbours"))
        user.append(ImageView(image_vectors, "centroid"))
    return (
        OfflineAgent("reviewer", reviewer, classes, seed=seed),
        OfflineAgent("user", user, classes, seed=seed),
    )


# ---- rationales: the evidence, as a sentence or two that a person can read -----------------------------


def _first_words(label: str | None, probability: float | None, details: Mapping[str, Any]) -> str:
    """Return the rationale of a first judgment; `details` holds words and nearest posts."""
    if not details["known"]:
        return "No opinion: its views know nothing of this post."
    if label is None or probability is None:
        opening = "Undecided: the evidence lies within the margin"
    else:
        opening = f"{label} ({probability:.2f})"
    parts = [_direction(details["words"], 1, "for it"), _direction(details["words"], -1, "against")]
    told = ", ".join(part for part in parts if part)
    near = _neighbours(details["nearest"])
    return opening + (f": {told}" if told else "") + (f". Nearest labelled posts: {near}." if near else ".")


def _second_words(
    label: str | None, probability: float | None, candidate: Candidate, own: Judgment, other: Judgment
) -> str:
    """Return the rationale of a judgment after the others were seen."""
    seen = f"the classifier says {candidate.label} ({candidate.probability:.2f}), {_stance(other)}"
    before = own.label or "no label"
    if label is None or probability is None:
        return f"Undecided after {before}: {seen}, and together they lie within the margin."
    if label == own.label:
        return f"Stays with {label} ({probability:.2f}): {seen}; its own evidence holds."
    return f"Changes from {before} to {label} ({probability:.2f}): {seen}, which outweighs its own evidence."


def _stance(judgment: Judgment) -> str:
    if judgment.label is None:
        return f"{judgment.agent} gives no label"
    certain = "" if judgment.probability is None else f" ({judgment.probability:.2f})"
    return f"{judgment.agent} says {judgment.label}{certain}"


def _direction(words: list[dict[str, Any]], sign: int, how: str) -> str:
    told = [f"'{word['word']}'" for word in words if word["weight"] * sign > 0]
    return f"{' and '.join(told)} {'speaks' if len(told) == 1 else 'speak'} {how}" if told else ""


def _neighbours(posts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{post['id']} ({post['label']}, {post['similarity']:.2f})" for post in posts)
