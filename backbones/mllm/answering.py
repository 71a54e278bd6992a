"""Vision encoder -> projector -> language model -> answer heads, in one module.

AgentPS (arXiv 2412.15251): the answer to question i is read by a small network of its own from the hidden
state at the i-th answer token, the final answer from the last token of the prompt. Trained are the heads,
low-rank adapters in the language model, and the answer token's one row of the embedding table.

================  =====================  ===================
variant           questions in prompts   process heads read
================  =====================  ===================
vanilla           no                     (there are none)
vanilla_asked     yes                    (there are none)
multitask         no                     the last token
multitask_asked   yes                    the last token
agentps           yes                    their answer tokens
================  =====================  ===================

The final head reads the last token in all of them. Each step down the table changes one thing, so that a gain
can be traced to the prompt, to the supervision or to the place.

Shape legend: ``B`` posts, ``L`` tokens, ``Q`` process questions, ``K`` answers of a question, ``D`` width.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.errors import WeightsError
from backbones.mllm.base import Mllm
from backbones.mllm.prompts import answer_positions, embedding_name
from backbones.mllm.vision import Features, given_features, taken_features

Variant = Literal["vanilla", "vanilla_asked", "multitask", "multitask_asked", "agentps"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


class Asking(NamedTuple):
    """What a variant does with the process questions."""

    asked: bool  # they stand in the prompt, each with its answer token
    answered: bool  # each has a head
    in_place: bool  # those heads read the answer tokens, not the last token


ASKING: Mapping[Variant, Asking] = {
    "vanilla": Asking(asked=False, answered=False, in_place=False),
    "vanilla_asked": Asking(asked=True, answered=False, in_place=False),
    "multitask": Asking(asked=False, answered=True, in_place=False),
    "multitask_asked": Asking(asked=True, answered=True, in_place=False),
    "agentps": Asking(asked=True, answered=True, in_place=True),
}


class AnswerHeads(nn.ModuleList):
    """One two-layer network a question: [B, D] to [B, K].

    The `answers` are the K of every question, the final one last. With `fed` one more network takes the
    log-probabilities of the process answers to logits of the final question, which are added to those read
    from the state. What the process heads learn stays theirs: no gradient goes back to them.
    """

    def __init__(
        self, width: int, answers: Sequence[int], hidden: int, dropout: float = 0.0, *, fed: bool = False
    ) -> None:
        super().__init__(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, number),
            )
            for number in answers
        )
        self._fed = fed
        if fed:
            units = nn.Linear(sum(answers[:-1]), hidden)
            self.append(nn.Sequential(units, nn.GELU(), nn.Linear(hidden, answers[-1])))

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits [B, K] of each question, out of the state [B, D] that its head reads."""
        heads = list(self)
        logits = [head(state.float()) for head, state in zip(heads, states, strict=not self._fed)]
        if self._fed:
            said = torch.cat([one.detach().log_softmax(1) for one in logits[:-1]], 1)
            logits[-1] = logits[-1] + heads[-1](said)
        return tuple(logits)


class AnsweringModel(nn.Module):
    """``forward(inputs)`` gives the logits of every question, the final one last.

    The hidden states [B, L, D] are ``language(**inputs).last_hidden_state``; `hidden`, `dropout` and `fed`
    are those of the heads. With `keeps_features`, `features` is what the vision tower made of the pictures of
    the last batch.
    """

    keeps_features = False
    features: Features | None = None

    def __init__(
        self,
        language: nn.Module,
        *,
        width: int,
        answers: Sequence[int],
        variant: Variant,
        answer_id: int,
        hidden: int = 256,
        dropout: float = 0.0,
        fed: bool = False,
    ) -> None:
        super().__init__()
        self.language = language
        self.asking = ASKING[variant]
        self.answer_id = answer_id
        self.questions = len(answers) - 1 if self.asking.answered else 0
        self.heads = AnswerHeads(width, answers[-1 - self.questions :], hidden, dropout, fed=fed)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return logits [B, K] of the process questions, in their order, and of the final one; float32."""
        output: Any = self.language(**given_features(inputs), use_cache=False)
        self.features = taken_features(output) if self.keeps_features else None
        states: Tensor = output.last_hidden_state
        read = self.read(states, inputs["input_ids"], inputs["attention_mask"])
        with torch.autocast(states.device.type, enabled=False):
            logits: tuple[Tensor, ...] = self.heads(read)
        return logits

    def read(self, states: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the state [B, D] that each head reads, out of [B, L, D]."""
        rows = torch.arange(len(states), device=states.device)
        last = states[rows, last_positions(mask)]
        if not self.asking.in_place:
            return [last] * (self.questions + 1)
        positions = answer_positions(ids, mask, self.answer_id, self.questions)
        return [*(states[rows, positions[:, q]] for q in range(self.questions)), last]


def last_positions(mask: Tensor) -> Tensor:
    """Return the place [B] of the last one in [B, L] of ones and zeros, whatever side is padded."""
    return mask.size(1) - 1 - mask.flip(1).to(torch.int8).argmax(1)


def adapt(
    model: Mllm,
    answer_id: int,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    vision: bool = False,
    lean: bool = True,
) -> Any:  # noqa: ANN401 -- a PeftModel
    """Return `model.module` with adapters; frozen are all others but the answer token's row and new parts.

    With `vision` (ValueError: it has no linear layer) the tower is adapted too. `lean` leaves out what peft
    does beyond need: a copy of the whole table and a gradient of its size for the one row, and float32 copies
    of every adapter's input under autocast. The numbers are the same.
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
    if lean:
        row: Any = adapted.get_submodule(f"base_model.model.{embedding_name(model.module)}").token_adapter
        row.forward_adapters = partial(_embed, row)
        adapted.register_forward_pre_hook(_AdapterInputs())
    return adapted


def _embed(layer: Any, ids: Tensor, adapters: Sequence[str], *args: Any, **kinds: Any) -> Any:  # noqa: ANN401
    """Embed with a trained row: peft's `TrainableTokensLayer.forward_adapters` without a new table."""
    if layer.disable_adapters or layer.merged or not adapters:
        return type(layer).forward_adapters(layer, ids, adapters, *args, **kinds)
    found: Tensor = layer.base_layer(ids)
    scale = layer._get_embed_scale()  # Gemma's tables multiply what they give
    for name in adapters:
        asked = torch.isin(ids, torch.tensor(layer.token_indices[name], device=ids.device))
        row = layer.trainable_tokens_delta[name].to(found.dtype)
        # an embedding's backward adds up the tokens' gradients in their order: the same bytes as peft's
        rows = F.embedding(asked.long(), torch.cat([torch.zeros_like(row), row]), padding_idx=0)
        found = torch.where(asked[..., None], rows if scale is None else rows * scale.to(rows.dtype), found)
    return found


class _AdapterInputs:
    """A hook before the forward pass: adapters take their input as it is where autocast casts their weights.

    peft casts the input to the adapters' float32, which autocast undoes: two copies of every activation.
    What is set stays set, so that a checkpointed layer, computed again in the backward pass, finds it.
    """

    def __init__(self) -> None:
        self._casting = True

    def __call__(self, adapted: nn.Module, _inputs: Any) -> None:  # noqa: ANN401
        casting = not torch.is_autocast_enabled(next(adapted.parameters()).device.type)
        if casting != self._casting:
            for layer in adapted.modules():
                if hasattr(layer, "cast_input_dtype_enabled"):
                    setattr(layer, "cast_input_dtype_enabled", casting)  # noqa: B010 -- a module's are tensors
            self._casting = casting


def set_attention(module: nn.Module, attention: Attention) -> None:
    """Let language model and tower compute attention by one of transformers' ways; "auto": its own choice.

    Raises:
        WeightsError: The model has no such way, or its package is not installed.
    """
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            try:
                # transformers' choice for the part is what a freshly loaded one has
                part.set_attn_implementation(None if attention == "auto" else attention)  # type: ignore[arg-type]
            except (ImportError, ValueError) as error:
                raise WeightsError(
                    f"{type(part).__name__} cannot compute attention by {attention!r}: {error} Install what"
                    ' it wants, or leave the choice to transformers, "auto"'
                ) from error


def compile_blocks(module: nn.Module, **kinds: Any) -> None:  # noqa: ANN401 -- as `torch.compile` takes them
    """Compile what a model repeats, the blocks of its language model and of its tower; names stay.

    One program serves blocks of one kind and batches of every length; a whole model would be compiled for
    minutes, and anew at each of its Python branches.
    """
    for blocks in module.modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 1 and len({type(one) for one in blocks}) == 1:
            for block in blocks:
                block.compile(dynamic=True, **kinds)


def checkpoint_blocks(module: nn.Module) -> None:
    """Let the blocks keep no activations, and compute them again where their gradients are.

    A frozen tower has none: transformers has what is embedded ask for gradients, as another way of doing this
    needs it, and with it the whole tower would be computed again and gone through backwards.
    """
    from transformers import PreTrainedModel

    module.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.disable_input_require_grads()  # type: ignore[no-untyped-call]


def forget_compiled(module: nn.Module) -> None:
    """Undo `compile_blocks`."""
    for one in module.modules():
        one._compiled_call_impl = None


def trained_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what is trained, and so of what is saved."""
    return tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def merge(adapted: Any) -> nn.Module:  # noqa: ANN401 -- a PeftModel
    """Return the base module with the adapters multiplied into its weights and the row put into its table."""
    merged: nn.Module = adapted.merge_and_unload()
    return merged
