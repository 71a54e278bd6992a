"""The repair of torchvision beside a CPU build of torch, for processes in which vLLM runs."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
"""On PYTHONPATH it repairs every Python process that starts: see `sitecustomize` in it."""


def python_path(inherited: str | None) -> str:
    """The value of PYTHONPATH that repairs processes started with it, with what it held before."""
    return os.pathsep.join([str(FOLDER), *([inherited] if inherited else [])])


def repair_here() -> None:
    """Repair this process, before torchvision is imported, and those that it starts."""
    from agents.vllm.torchvision_shim import sitecustomize  # noqa: F401 -- importing it is what does it

    os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH"))
