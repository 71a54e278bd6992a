"""Whatever was trained here, opened as a `Scorer`: only the libraries of its own kind are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.errors import ServingError
from selftrain.models.scorer import ACT_FILE, AGENTPS_FILE, RUN_FILE, Scorer

if TYPE_CHECKING:
    from selftrain.models.act_model import ACTPrediction
    from selftrain.models.prediction import Prediction


def open_scorer(path: Path, *, threads: int | None = None) -> Scorer:
    """A run's best classifier, a trained AgentPS model, or a classifier that was exported to ONNX.

    Args:
        path: A run folder, an AgentPS folder, or an ``.onnx`` file.
        threads: Of one model call in the calling thread; None: the library's choice.

    Raises:
        ServingError: It is none of these.
        SelftrainError, BackboneError: It is, and cannot be loaded; see `RunScorer` and `OnnxScorer`.
    """
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        from selftrain.models.onnx_scorer import OnnxScorer

        return OnnxScorer(path, threads=threads or 0)
    if (path / AGENTPS_FILE).is_file():
        from selftrain.agentps.scorer import open_agentps

        _set_threads(threads)
        return open_agentps(path)
    if (path / ACT_FILE).is_file():
        from selftrain.models.act_model import ACTModel

        _set_threads(threads)
        return ACTModel.load(path)
    if (path / RUN_FILE).is_file():
        from selftrain.models.run_scorer import RunScorer
        from selftrain.store.run_dir import RunFolder

        _set_threads(threads)
        return RunScorer(RunFolder(path))
    raise ServingError(
        f"{path} is {_what(path)}; expected a run folder (with {RUN_FILE}) as `selftrain run` writes it, a"
        f" model of `selftrain act train` (with {ACT_FILE}) or of AgentPS (with {AGENTPS_FILE}), or an .onnx"
        " file of `selftrain export`"
    )


def open_prediction(path: Path, manifest: Path, *, progress: bool = False) -> Prediction | ACTPrediction:
    """Labels for the posts of a manifest: by a run's best model, or by one of `selftrain act train`.

    Raises:
        SelftrainError, BackboneError: See `Prediction` and `ACTPrediction`.
    """
    from selftrain.models.act_model import ACTPrediction
    from selftrain.models.prediction import Prediction
    from selftrain.store.run_dir import RunFolder

    if (path / ACT_FILE).is_file():
        return ACTPrediction(path, manifest)
    return Prediction(RunFolder(path), manifest, progress=progress)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _what(path: Path) -> str:
    if not path.exists():
        return "not there"
    if not path.is_dir():
        return "a file"
    names = sorted(one.name for one in path.iterdir())
    return f"a folder with {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "empty"
