"""Arithmetic of logits that must not overflow.

What a classifier says of posts is everywhere logits [B, K], one a class: their softmax gives the
probabilities. A model of two classes may fix the first at 0; the second is then the log-odds of its class.

Shape legend: ``B`` posts, ``K`` classes, ``C`` classes that are set against the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftrain._util.types import Float32Array, FloatArray, IntArray


def sigmoid(logits: Float32Array | FloatArray) -> FloatArray:
    """Turn logits into probabilities, both of any one shape; +-1e30 gives 1 and 0."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))


def decide(logits: Float32Array | FloatArray, cut: Sequence[float] | None = None) -> IntArray:
    """Return the class [B] that logits [B, K] predict: the likeliest, of equals the first.

    `cut` [K] is added to each class's log-probability first; None: nothing.
    """
    moved = logits if cut is None else logits + np.asarray(cut, logits.dtype)
    return np.asarray(moved.argmax(1), dtype=np.int64)


def decide_shown(logits: Float32Array | FloatArray, cut: Sequence[float] | None = None) -> IntArray:
    """Return what `decide` does, of logits and a cut with the positive class first: the loop numbers it last.

    So of equals it is never the positive one, for a model as for the loop that measured it.
    """
    turned = None if cut is None else (*cut[1:], cut[0])
    return np.asarray((decide(np.roll(logits, -1, axis=1), turned) + 1) % logits.shape[1], dtype=np.int64)


def class_columns(classes: int) -> IntArray:
    """Return the classes [C] that are set against the rest: of two the second, whose mirror the first is."""
    return np.arange(1 if classes == 2 else 0, classes, dtype=np.int64)


def log_odds(logits: Float32Array | FloatArray) -> FloatArray:
    """Return each class's log-odds against all others together [B, K], of logits [B, K]."""
    wide = logits.astype(np.float64)
    others = (np.delete(wide, k, axis=1) for k in range(wide.shape[1]))
    return np.stack([wide[:, k] - np.logaddexp.reduce(rest, axis=1) for k, rest in enumerate(others)], axis=1)


def log_probs(logits: Float32Array | FloatArray) -> FloatArray:
    """Return the log-probability of each class [B, K], of logits [B, K]."""
    return np.asarray(-np.logaddexp(0, -log_odds(logits)))
