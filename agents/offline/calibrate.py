"""Scores to calibrated log-probabilities, fitted on scores that were given out of fold.

Shape legend: ``B`` posts, ``K`` classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Calibrator:
    """Multinomial logistic regression on class scores (Platt's scaling when there are two classes)."""

    def __init__(self, scores: Floats, labels: npt.NDArray[np.int64], classes: int) -> None:
        """Fit on out-of-fold `scores` [B, K] and class indices `labels` [B], every class present.

        Raises:
            ValueError: A class without a post.
        """
        from sklearn.linear_model import LogisticRegression

        counts = np.bincount(labels, minlength=classes)
        if not counts.all():
            raise ValueError(f"posts a class: {counts.tolist()}; each class needs one")
        self._scale = float(np.abs(scores).mean()) or 1.0
        # balanced: what comes out is evidence, which several views can add up without counting a prior twice
        self._model = LogisticRegression(C=1.0, class_weight="balanced")
        self._model.fit(self._features(scores), labels)

    def _features(self, scores: Floats) -> Floats:
        return (scores[:, 1:] - scores[:, :1]) / self._scale

    def evidence(self, scores: Floats) -> Floats:
        """Log-likelihoods [B, K] centred over classes: 0 where the scores say nothing either way."""
        logits = self._model.decision_function(self._features(scores))
        if logits.ndim == 1:
            logits = np.stack([-logits / 2, logits / 2], axis=1)
        centred: Floats = logits - logits.mean(axis=1, keepdims=True)
        return centred
