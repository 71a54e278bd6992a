"""Types that every room shares, declared once.

The leaves (`agents`, `losses`, `backbones`) import nothing of selftrain and name their arrays themselves.
"""

from __future__ import annotations

from typing import Any

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

LabelArray = npt.NDArray[np.int8]
"""One label a post: the class index, or -1 where there is none."""

BoolArray = npt.NDArray[np.bool_]
