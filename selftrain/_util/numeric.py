"""Arithmetic that must not overflow."""

from __future__ import annotations

import numpy as np

from selftrain._util.types import Float32Array, FloatArray


def sigmoid(logits: Float32Array | FloatArray) -> FloatArray:
    """Turn logits into probabilities, both of any one shape; +-1e30 gives 1 and 0."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))
