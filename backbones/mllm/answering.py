"""Vision encoder -> projector -> language model -> answer heads, in one module.

AgentPS (arXiv 2412.15251): the answer to question i is read by a small network of its own from the hidden
state at the i-th answer token, the final answer from the last token of the prompt.

=========  ======================  ======================
variant    process heads read      the final head reads
=========  ======================  ======================
vanilla    (there are none)        the last token
multitask  the last token          the last token
agentps    their answer tokens     the last token
=========  ======================  ======================

Shape legend: ``B`` posts, ``L`` tokens, ``Q`` process questions, ``K`` answers of a question, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from backbones.errors import PromptFitError

Variant = Literal["vanilla", "multitask", "agentps"]
VARIANTS: tuple[str, ...] = get_args(Variant)


class AnswerHeads(nn.ModuleList):
    """One two-layer network a question: [B, D] to [B, K].

    Args:
        width: D.
        answers: K of every question, the final one last.
        hidden: Units between the layers.
        dropout: On those units, in [0, 1).
    """

    def __init__(self, width: int, answers: Sequence[int], hidden: int, dropout: float = 0.0) -> None:
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


class AnsweringModel(nn.Module):
    """``forward(inputs)`` gives the logits of every question, the final one last.

    Args:
        language: ``language(**inputs).last_hidden_state`` is [B, L, D].
        width: D.
        answers: K of each process question, then that of the final one.
        variant: Where the heads read; "vanilla" has the final head alone.
        answer_id: Of the answer token.
        hidden, dropout: Of the heads.
    """

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
    ) -> None:
        super().__init__()
        self.language = language
        self.variant = variant
        self.answer_id = answer_id
        self.questions = 0 if variant == "vanilla" else len(answers) - 1
        self.heads = AnswerHeads(width, answers[-1 - self.questions :], hidden, dropout)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Logits [B, K] of the process questions, in their order, and of the final one; float32.

        Raises:
            PromptFitError: A prompt with another number of answer tokens than questions.
        """
        output: Any = self.language(**inputs, use_cache=False)
        states: Tensor = output.last_hidden_state
        read = self.read(states, inputs["input_ids"], inputs["attention_mask"])
        with torch.autocast(states.device.type, enabled=False):
            return tuple(head(state.float()) for head, state in zip(self.heads, read, strict=True))

    def read(self, states: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The state [B, D] that each head reads, out of [B, L, D]."""
        rows = torch.arange(len(states), device=states.device)
        last = states[rows, last_positions(mask)]
        if self.variant != "agentps":
            return [last] * (self.questions + 1)
        positions = answer_positions(ids, mask, self.answer_id, self.questions)
        return [*(states[rows, positions[:, q]] for q in range(self.questions)), last]


def last_positions(mask: Tensor) -> Tensor:
    """[B, L] of ones and zeros to the place [B] of the last one, whatever side is padded."""
    return mask.size(1) - 1 - mask.flip(1).to(torch.int8).argmax(1)


def answer_positions(ids: Tensor, mask: Tensor, answer_id: int, questions: int) -> Tensor:
    """Places [B, Q] of the answer tokens, in order.

    They are looked for in the ids that the model sees, after images took their places: a place counted in
    the text would be off by the tokens of every image before it.

    Raises:
        PromptFitError: A row with another number of them.
    """
    found = (ids == answer_id) & mask.bool()
    counts = found.sum(1)
    if bool((counts != questions).any()):
        row = int((counts != questions).nonzero()[0])
        raise PromptFitError(
            f"prompt {row} of the batch holds {int(counts[row])} answer tokens for {questions} questions:"
            " the prompt was cut, or a text was taken for an answer token"
        )
    return found.nonzero()[:, 1].view(-1, questions)
