"""A multimodal language model as AgentPS needs it: prompts in, hidden states out.

Shape legend: ``B`` prompts, ``L`` tokens after images were expanded, ``M`` images, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image
from torch import Tensor, nn

Padding = Literal["left", "right"]
Inputs = dict[str, Tensor]


class Wording(NamedTuple):
    """The words around every post of a task. An empty part leaves no line.

    Attributes:
        opening: Before the post: what it is, and what is asked for.
        questions: After the post, each closed by the answer token; none for a prompt without them.
        closing: The final question, whose answer is read at the last token of the prompt.
    """

    opening: str
    questions: tuple[str, ...]
    closing: str


class Prompt(NamedTuple):
    """One post: its words, whatever they hold, and its pictures in order, upright RGB."""

    text: str
    images: Sequence[Image.Image] = ()


class Reader(Protocol):
    """Prompts to tensors. All of a batch are padded to one length."""

    @property
    def answer_id(self) -> int:
        """The id of the answer token."""
        ...

    @property
    def text_budget(self) -> int:
        """How many tokens of a post's text fit beside the words around it; the rest is cut."""
        ...

    def read(self, prompts: Sequence[Prompt]) -> Inputs:
        """`input_ids` and `attention_mask` [B, L], and what the model takes for images.

        Raises:
            PromptFitError: A prompt whose answer tokens are not those of its questions.
        """
        ...

    def length(self, text: str, images: int) -> int:
        """Tokens of one prompt, to sort by: exact for the embedded model, an estimate for others."""
        ...

    def save(self, folder: Path) -> None:
        """Write tokenizer and processor, the answer token among their tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Mllm:
    """A pretrained model whose hidden states are read.

    Attributes:
        name: As a recipe writes it.
        module: ``module(**inputs).last_hidden_state`` is [B, L, D], after the last norm.
        width: D.
        tokenizer: Of transformers; it knows the answer token after `add_answer_token`.
        reader: Makes the reader of a task's wording, of a padding side and of a budget of text tokens.
        language_layers: Names, within `module`, of the linear layers of the language model.
        vision_layers: Likewise of the vision tower.
        new_parts: Names of submodules without pretrained weights: they are always trained, in full.
        fingerprint: Hex SHA-256 of the pretrained weights' origin: another one is another base model.
        write: Saves `module`, adapters merged into it, as a checkpoint of its own.
    """

    name: str
    module: nn.Module
    width: int
    tokenizer: Any
    reader: Callable[[Wording, Padding, int], Reader]
    language_layers: tuple[str, ...]
    vision_layers: tuple[str, ...]
    new_parts: tuple[str, ...]
    fingerprint: str
    write: Callable[[nn.Module, Path], None]


def linear_layers(module: nn.Module, under: str) -> tuple[str, ...]:
    """Names of the linear layers below the submodule `under`."""
    prefix = f"{under}."
    return tuple(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(prefix)
    )


def to_device(inputs: Mapping[str, Tensor], device: Any) -> Inputs:  # noqa: ANN401 -- as torch takes it
    """The tensors on `device`."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}
