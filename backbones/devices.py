"""Where and how precisely a backbone computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Placement(NamedTuple):
    """A device and the type in which the towers multiply; weights and rows are float32 everywhere."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a tower runs; does nothing at float32."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve the two arguments that every backbone takes.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: "fp32", "bf16", "fp16", or "auto": fp32 on a CPU, bf16 on a GPU that has it, else fp16.

    Raises:
        ValueError: another dtype, or "cuda" where there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    if dtype == "auto":
        dtype = "fp32"
        if where.type == "cuda":
            dtype = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected 'auto' or one of {', '.join(_DTYPES)}")
    return Placement(where, _DTYPES[dtype])
