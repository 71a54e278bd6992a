"""A multimodal language model as AgentPS needs it: prompts in, hidden states out.

Shape legend: ``B`` prompts, ``L`` tokens after images were expanded, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from backbones.mllm.prompts import Inputs, Reader, Wording

Padding = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Mllm:
    """A pretrained model whose hidden states are read."""

    name: str  # as a recipe writes it
    module: nn.Module  # ``module(**inputs).last_hidden_state`` is [B, L, D], after the last norm
    width: int  # D
    tokenizer: Any  # of transformers; it knows the answer token
    # makes the reader of a task's wording, of a padding side and of a budget of text tokens
    reader: Callable[[Wording, Padding, int], Reader]
    language_layers: tuple[str, ...]  # names, within `module`, of the linear layers of the language model
    vision_layers: tuple[str, ...]  # likewise of the vision tower
    # names of submodules without pretrained weights: they are always trained, in full
    new_parts: tuple[str, ...]
    fingerprint: str  # hex SHA-256 of all pretrained weights and what reads for them: another is another base
    # saves `module`, adapters merged into it, as a checkpoint of its own
    write: Callable[[nn.Module, Path], None]
    revision: str = ""  # the commit, of a model from a hub
    positions: int = 0  # tokens of a prompt that it was made for; 0: it does not say


def linear_layers(module: nn.Module, under: str) -> tuple[str, ...]:
    """Return the names of the linear layers below the submodule `under`."""
    prefix = f"{under}."
    return tuple(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(prefix)
    )


def to_device(inputs: Mapping[str, Tensor], device: Any) -> Inputs:  # noqa: ANN401 -- as torch takes it
    """Return the tensors on `device`; from pinned memory they are copied while it computes."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
