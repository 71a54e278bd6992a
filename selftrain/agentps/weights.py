"""The trained weights, apart from the pretrained ones: adapters, heads, one token's row, new parts.

Training in progress is one file, replaced whole: what the optimiser remembers lies beside the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backbones.mllm.adapters import trained_names
from selftrain._util.types import Json
from selftrain.errors import ModelError
from selftrain.store import atomic

_MOMENTS = ("exp_avg", "exp_avg_sq")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    wanted = set(trained_names(model))
    return {name: parameter for name, parameter in model.named_parameters() if name in wanted}


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the trained weights as safetensors.

    Raises:
        StorageError: The disk is full or refuses.
    """
    _write(file, {name: one.detach() for name, one in trained(model).items()}, {})


def load_weights(model: nn.Module, file: Path) -> None:
    """Put the weights of `save_weights` into a model of the same architecture.

    Raises:
        ModelError: No such file, no safetensors, or weights of another architecture.
    """
    tensors, _ = _read(file)
    _fill(trained(model), tensors, file)


class Progress(NamedTuple):
    """Where training stands, beside weights and moments.

    Attributes:
        step: The next one.
        identity: What is trained on what; another one cannot go on from here.
        epochs: The figures of each finished epoch.
    """

    step: int
    identity: str
    epochs: list[Json]


def save_progress(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, file: Path) -> None:
    """Write weights, the optimiser's moments and `progress`, atomically.

    Raises:
        StorageError: The disk is full or refuses; an earlier file is as it was.
    """
    tensors = {f"weight/{name}": one.detach() for name, one in trained(model).items()}
    for name, parameter in trained(model).items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}/{name}": state[moment] for moment in _MOMENTS if moment in state}
        if "step" in state:
            tensors[f"step/{name}"] = torch.as_tensor(state["step"], dtype=torch.float32)
    _write(file, tensors, {"progress": json.dumps(progress._asdict())})


def load_progress(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, identity: str) -> Progress:
    """Put everything back as `save_progress` found it.

    Raises:
        ModelError: The file is damaged, or of another training.
    """
    tensors, about = _read(file)
    progress = Progress(**json.loads(about.get("progress", "{}") or "{}"))
    if progress.identity != identity:
        raise ModelError(
            f"{file.parent} holds a training of other posts or settings: give another --out, or restore the"
            " recipe and the data that it was begun with"
        )
    parameters = trained(model)
    _fill(parameters, _under(tensors, "weight"), file)
    moments = {key: _under(tensors, key) for key in (*_MOMENTS, "step")}
    for name, parameter in parameters.items():
        if name in moments["step"]:
            optimizer.state[parameter] = {
                key: _placed(moments[key][name], parameter, key) for key in (*_MOMENTS, "step")
            }
    return progress


def _placed(tensor: Tensor, parameter: nn.Parameter, key: str) -> Tensor:
    # torch counts steps on the CPU, unless its fused kernels do
    return tensor.clone() if key == "step" else tensor.to(parameter.device, copy=True)


def _under(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    prefix = f"{key}/"
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], file: Path) -> None:
    found = {name: tuple(one.shape) for name, one in tensors.items()}
    wanted = {name: tuple(one.shape) for name, one in parameters.items()}
    if found != wanted:
        differing = sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
        )
        raise ModelError(
            f"{file} holds weights of another architecture: {len(differing)} of {len(wanted)} differ,"
            f" {differing[0]} first (found {found.get(differing[0])}, expected {wanted.get(differing[0])})."
            " Use the base model, task and recipe that it was trained with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    ready = {name: one.cpu().contiguous() for name, one in tensors.items()}
    size = sum(one.numel() * one.element_size() for one in ready.values())
    with atomic.replacing(file, size) as part:
        save_file(ready, part, metadata={"format": "pt", **about})


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read as safetensors ({error}): expected the weights of a trained model."
            " Restore the file, or train again"
        ) from error
