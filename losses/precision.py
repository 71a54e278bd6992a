"""In which precision losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """Return a tensor in float32 at least: half precision, and integers, are widened before they are used."""
    return values if values.dtype == torch.float64 else values.float()
