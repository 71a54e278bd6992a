"""Low-rank adapters, and the one row of the embedding table that is trained with them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from backbones.mllm.answer_token import embedding_name
from backbones.mllm.base import Mllm


def adapt(
    model: Mllm, answer_id: int, *, rank: int, alpha: int, dropout: float = 0.0, vision: bool = False
) -> Any:  # noqa: ANN401 -- a PeftModel
    """`model.module` with adapters; everything else is frozen but the answer token's row and new parts.

    Args:
        model: Its module is changed in place.
        answer_id: As `add_answer_token` gave it.
        rank, alpha: Of the adapters (published: 128 and 256).
        dropout: Before each adapter, in [0, 1).
        vision: Adapt the vision tower too.

    Raises:
        ValueError: A vision tower without linear layers was to be adapted.
    """
    from peft import LoraConfig, get_peft_model

    if vision and not model.vision_layers:
        raise ValueError(f"the vision tower of {model.name} has no linear layer to adapt")
    targets = [*model.language_layers, *(model.vision_layers if vision else ())]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        trainable_token_indices={embedding_name(model.module): [answer_id]},
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that it calls deprecated: nothing that a user could mend
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        adapted = get_peft_model(model.module, config)
    for name in model.new_parts:
        for parameter in adapted.get_submodule(f"base_model.model.{name}").parameters():
            parameter.requires_grad_(True)
    return adapted


def trained_names(module: nn.Module) -> tuple[str, ...]:
    """Names of what is trained, and so of what is saved."""
    return tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def merge(adapted: Any) -> nn.Module:  # noqa: ANN401 -- a PeftModel
    """The base module with the adapters multiplied into its weights and the row put into its table."""
    merged: nn.Module = adapted.merge_and_unload()
    return merged
