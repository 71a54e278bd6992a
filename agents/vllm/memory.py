"""Which model starts on which card, with how long a context: the arithmetic of the table in docs/agents.md.

vLLM refuses to start where one request of the full context would not fit beside the weights, and the contexts
of today's models are long. Without --max-model-len, `agents serve` asks for "auto": as much as fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

UTILIZATION = 0.92
"""Share of a card that vLLM 0.32 takes where nothing else is said."""
ACTIVATIONS_GIB = 4.0
"""Beside weights and cache, on each card: activations and the encoder's share of the profiling run."""
BLOCK = 128
"""Numbers whose scale is one in FP8 checkpoints: vLLM refuses to cut a layer within a block."""
_GIB = 2**30


class ModelShape(NamedTuple):
    """What of a model takes memory, from its config.json and the size of its weight files."""

    name: str
    weights_gb: float  # 10^9 bytes
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int  # tokens that it was made for
    picture: int  # tokens of a square picture of 768 pixels
    expert: int = 0  # width of an expert whose weights are quantized in blocks of `BLOCK`; 0: there is none

    @property
    def bytes_a_token(self) -> int:
        """Keys and values of one token in all layers, two bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


class Card(NamedTuple):
    """A GPU, or several among which each layer is shared out."""

    name: str
    gib: float  # of each
    number: int = 1


MODELS = (
    ModelShape("llava-onevision-qwen2-7b", 16.1, 28, 28, 4, 128, 32_768, 730),
    ModelShape("Qwen2.5-VL-7B", 16.6, 28, 28, 4, 128, 128_000, 752),
    ModelShape("Qwen2.5-VL-32B", 66.9, 64, 40, 8, 128, 128_000, 752),
    ModelShape("Qwen2.5-VL-72B-AWQ", 42.9, 80, 64, 8, 128, 128_000, 752),
    ModelShape("Qwen3-VL-4B", 8.9, 36, 32, 8, 128, 262_144, 576),
    ModelShape("Qwen3-VL-8B", 17.5, 36, 32, 8, 128, 262_144, 576),
    ModelShape("Qwen3-VL-32B", 66.7, 64, 64, 8, 128, 262_144, 576),
    ModelShape("Qwen3-VL-235B-A22B-FP8", 237.0, 94, 64, 4, 128, 262_144, 576, expert=1536),
)
CARDS = (
    Card("24 GB", 23.5), Card("48 GB", 44.5), Card("80 GB", 79.2), Card("141 GB", 139.8),
    Card("4 x 80 GB", 79.2, 4), Card("8 x 80 GB", 79.2, 8),
)  # fmt: skip


def tokens_that_fit(model: ModelShape, card: Card) -> int:
    """Return the tokens whose keys and values fit beside the weights; 0 or less: the model does not start."""
    weights = model.weights_gb * 1e9 / card.number
    left = (UTILIZATION * card.gib - ACTIVATIONS_GIB) * _GIB - weights
    # every card keeps at least one head of keys and values, shared or copied
    shared_by = min(card.number, model.kv_heads)
    return int(left / (model.bytes_a_token / shared_by))


def prompt_tokens(
    pictures: int, *, picture: int = 752, text_chars: int = 4000, policy_chars: int = 6000, answer: int = 600
) -> int:
    """Return what a prompt of ours may take with its answer, at two characters a token for the post.

    Args:
        pictures: Of one post, as many as are sent.
        picture: Tokens of each.
        text_chars: Of the post (`vlm.text_chars`).
        policy_chars: Of policy, classes and roles, at three a token.
        answer: Tokens of two earlier judgments and the answer.
    """
    return pictures * picture + text_chars // 2 + policy_chars // 3 + answer


def pictures_that_fit(context: int) -> int:
    """Return how many pictures a prompt of ours may hold in a context."""
    return max(0, (context - prompt_tokens(0)) // 752)


def table() -> Iterator[str]:
    """Yield the lines of the table in docs/agents.md: tokens that fit, or why it does not start."""
    yield "| | weights | a token | its context | " + " | ".join(card.name for card in CARDS) + " |"
    yield "|---|---|---|---|" + "---|" * len(CARDS)
    for model in MODELS:
        cells = [_cell(model, card) for card in CARDS]
        sizes = f"{model.weights_gb:g} GB | {model.bytes_a_token // 1024} KiB | {model.context:,}"
        yield f"| {model.name} | {sizes} | " + " | ".join(cells) + " |"


def _cell(model: ModelShape, card: Card) -> str:
    if model.heads % card.number:
        # vLLM gives every card as many heads
        fewer = max(n for n in range(1, card.number) if not model.heads % n and not card.number % n)
        return f"{card.number // fewer} x {_cell(model, card._replace(number=fewer))}"
    tokens = tokens_that_fit(model, card)
    if tokens < prompt_tokens(1, picture=model.picture):
        return "no"
    whole = model.expert % (card.number * BLOCK) == 0
    return ("whole" if tokens >= model.context else f"{tokens // 1000:,}k") + ("" if whole else ", experts")
