"""The loop's classifier as a `Scorer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftrain._util.numeric import sigmoid
from selftrain.data.posts import Post
from selftrain.models.best_model import open_best
from selftrain.models.scorer import UNSEEN, PostScore, ScoreFailure, ValidationScores
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import read_scores

_CHUNK = 256  # posts whose rows are held at once; the backbone takes its own batches out of them


class RunScorer:
    """A finished run's best model; features are computed anew, none are cached.

    Args:
        folder: A run with at least one finished round.

    Raises:
        RunStateError, RunMismatchError, BackboneError: As `selftrain.models.best_model.open_best`.
    """

    kind = "classifier"

    def __init__(self, folder: RunFolder) -> None:
        self.model = open_best(folder)
        self.name = folder.path.resolve().name
        self.positive: str = self.model.classes.positive
        self.classes: tuple[str, ...] = tuple(self.model.classes)
        self.fingerprint = self.model.fingerprint

    def score(self, posts: Sequence[Post]) -> list[PostScore | ScoreFailure]:
        """See `Scorer.score`."""
        results: list[PostScore | ScoreFailure] = []
        for start in range(0, len(posts), _CHUNK):
            results += self._score(posts[start : start + _CHUNK])
        return results

    def validation(self) -> ValidationScores | None:
        """The best round's; None for a run that is older than the file they are in."""
        names = self.model.classes._asdict()
        stored = (read_scores(self.model.file.parent, **names) or {}).get("validation")
        return None if stored is None else ValidationScores(stored.labels, sigmoid(stored.logits))

    def _score(self, posts: Sequence[Post]) -> list[PostScore | ScoreFailure]:
        encoded = self.model.encode(posts)
        logits = self.model.classify(encoded.rows)
        reasons = dict.fromkeys(np.flatnonzero(~np.isfinite(logits)).tolist(), "its features are not finite")
        reasons |= {failure.index: failure.reason for failure in encoded.failures}
        reasons |= {index: UNSEEN for index, post in enumerate(posts) if post.video is not None}
        return [
            ScoreFailure(reasons[index]) if index in reasons else self._post_score(float(logit), float(odds))
            for index, (logit, odds) in enumerate(zip(logits, sigmoid(logits), strict=True))
        ]

    def _post_score(self, logit: float, odds: float) -> PostScore:
        positive, negative = self.model.classes
        both = {positive: odds, negative: 1 - odds}
        label = positive if logit > 0 else negative
        return PostScore(label, both[label], both)
