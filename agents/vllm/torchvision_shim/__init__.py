"""The repair of torchvision beside a CPU build of torch, for processes in which vLLM runs."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
"""On PYTHONPATH it repairs every Python process that starts: see `sitecustomize` in it."""


def python_path(inherited: str | None) -> str:
    """Return the PYTHONPATH that repairs processes started with it, with what it held before."""
    return os.pathsep.join([str(FOLDER), *([inherited] if inherited else [])])
