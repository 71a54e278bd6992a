"""Whatever was trained here, opened as a `Predictor`: only the libraries of its own kind are loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from selftrain.errors import ServingError
from selftrain.models.predictor import ACT_FILE, AGENTPS_FILE, RUN_FILE, Predictor

# By name, not by import: where an ONNX file is served there is no torch, and a run needs no transformers.
KINDS = {
    AGENTPS_FILE: ("selftrain.agentps.predict", "AgentPSPredictor"),
    ACT_FILE: ("selftrain.models.act_model", "ACTModel"),
    RUN_FILE: ("selftrain.models.run_predictor", "RunPredictor"),
}
"""File that tells a folder's kind -> module and class whose `load` opens it."""


def load_predictor(path: Path | str, *, threads: int | None = None) -> Predictor:
    """Open a run's best classifier, a model of ACT or AgentPS training, or one that was exported to ONNX.

    The global random state is left as it was.

    Args:
        path: A run folder, a model's folder, or an ``.onnx`` file.
        threads: Of one model call in the calling thread, at least 1; None: the library's choice. But for an
            ONNX file they are torch's own (`torch.set_num_threads`), for whatever else it computes too.

    Raises:
        ServingError: It is none of these, or the threads are none.
        SelftrainError, BackboneError: It is, and cannot be loaded; see `load` of the classes in `KINDS`.

    Example::

        predictor = load_predictor("runs/mine")
        [one.label or one.reason for one in predictor.predict(posts)]
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise ServingError(f"threads is {threads}: expected at least 1, or None for the library's choice")
    kind = kind_of(path)
    if not kind:
        module: Any = import_module("selftrain.models.onnx_predictor")
        opened: Predictor = module.OnnxPredictor(path, threads=threads or 0)
        return opened
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    where, name = KINDS[kind]
    with torch.random.fork_rng(devices=[]):  # layers are drawn before their weights are read
        loaded: Predictor = getattr(import_module(where), name).load(path)
    return loaded


def kind_of(path: Path) -> str:
    """Return the key of `KINDS`; empty for an ONNX file."""
    if path.suffix == ".onnx" and path.is_file():
        return ""
    for file in KINDS:
        if (path / file).is_file():
            return file
    names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    shown = f"a folder with {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "empty"
    found = shown if path.is_dir() else "a file" if path.exists() else "not there"
    raise ServingError(
        f"{path} is {found}; expected a run folder (with {RUN_FILE}) as `selftrain run` writes it, a model of"
        f" `selftrain act train` (with {ACT_FILE}) or of AgentPS (with {AGENTPS_FILE}), or an .onnx file of"
        " `selftrain export`"
    )
