"""Types that every room shares, declared once.

The leaves (`agents`, `losses`, `backbones`) import nothing of selftrain and name their arrays themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Json = dict[str, Any]
"""A JSON object as it was read or will be written: taken apart in `from_json` and `to_json` alone."""

FloatArray = npt.NDArray[np.float64]
"""Probabilities, weights and everything that is summed."""

Float32Array = npt.NDArray[np.float32]
"""Features and logits, as the models compute them."""

IntArray = npt.NDArray[np.int64]
"""Positions, counts and class indices."""

LabelArray = npt.NDArray[np.int16]
"""One label a post: the class index, or -1 where there is none."""

BoolArray = npt.NDArray[np.bool_]


class Interval(NamedTuple):
    """A figure and the ends of its 95 % interval, all in the figure's unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def per_cent(self) -> str:
        """Return the share and its interval in per cent."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
