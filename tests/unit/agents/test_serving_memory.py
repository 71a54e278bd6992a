"""Which model starts on which card, and when a server that starts is given up."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from agents.vllm.launch import _MOVED, Progress
from agents.vllm.memory import pictures_that_fit, prompt_tokens

DOCS = Path(__file__).parents[3] / "docs" / "agents.md"

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


def table(models: Sequence[ModelShape] = MODELS, cards: Sequence[Card] = CARDS) -> Iterator[str]:
    """Yield the lines of the table in docs/agents.md: tokens that fit, or why it does not start."""
    yield "| | weights | a token | its context | " + " | ".join(card.name for card in cards) + " |"
    yield "|---|---|---|---|" + "---|" * len(cards)
    for model in models:
        cells = [_cell(model, card) for card in cards]
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


BY_NAME = {model.name: model for model in MODELS}


def test_the_table_in_the_docs_is_this_arithmetic():
    assert "\n".join(table()) in DOCS.read_text(encoding="utf-8")


def test_keys_and_values_of_a_token():
    # two tensors, 80 layers, 8 heads of 128 numbers of two bytes
    assert BY_NAME["Qwen2.5-VL-72B-AWQ"].bytes_a_token == 2 * 80 * 8 * 128 * 2


def test_what_is_left_of_a_card_is_shared_by_tokens():
    model = BY_NAME["Qwen3-VL-8B"]._replace(weights_gb=2**30 * 10 / 1e9, layers=1, kv_heads=1, head_dim=256)
    assert model.bytes_a_token == 1024
    assert tokens_that_fit(model, Card("", 50.0)) == 32 * 2**20  # .92 of 50 GiB, less 4 and 10, a KiB each
    # two cards hold half of the weights each; one head is copied, not shared
    assert tokens_that_fit(model, Card("", 50.0, 2)) == 37 * 2**20


@pytest.mark.parametrize(
    ("name", "card"),
    [("Qwen2.5-VL-72B-AWQ", "80 GB"), ("Qwen3-VL-8B", "48 GB"), ("Qwen3-VL-32B", "80 GB")],
)
def test_models_that_start_with_a_shorter_context_alone(name, card):
    model = BY_NAME[name]
    fits = tokens_that_fit(model, next(one for one in CARDS if one.name == card))
    assert prompt_tokens(1) < fits < model.context


@pytest.mark.parametrize(
    ("heads", "expert", "cards", "cell"),
    [
        (28, 0, 4, "whole"),
        (28, 0, 8, "2 x whole"),
        (12, 0, 8, "2 x whole"),
        (25, 0, 8, "8 x whole"),
        (64, 1536, 4, "whole"),
        (64, 1536, 8, "whole, experts"),
        (64, 2048, 8, "whole"),
    ],
)
def test_heads_and_blocks_are_shared_out_evenly_or_not_at_all(heads, expert, cards, cell):
    model = BY_NAME["Qwen3-VL-4B"]._replace(heads=heads, expert=expert)
    lines = table((model,), (Card("80 GB each", 79.2, cards),))
    assert list(lines)[-1].endswith(f" | {cell} |")


def test_an_album_is_counted():
    assert prompt_tokens(16) - prompt_tokens(0) == 16 * 752
    assert pictures_that_fit(prompt_tokens(5)) == 5
    assert pictures_that_fit(100) == 0


def test_a_log_that_repeats_itself_is_no_progress(tmp_path):
    log = tmp_path / "log"
    log.write_text("of an earlier server\n")
    progress = Progress(2**30, log, log.stat().st_size)  # a process that there is not
    assert not progress.made()
    with log.open("a") as file:
        file.write("loading shard 1 of 9\n")
    assert progress.made()
    with log.open("a") as file:
        file.write("loading shard 1 of 9\n" * 3 + "loading shard 2 of 9\n")
    assert not progress.made()


def test_a_bar_that_goes_on_is_progress(tmp_path):
    log = tmp_path / "log"
    bar = "Loading safetensors checkpoint shards: {:3.0f}% Completed | {}/25 [0{}:00<50:00, 120.5s/it]\n"
    log.write_text(bar.format(4, 1, 2))
    progress = Progress(2**30, log, 0)
    assert progress.made()
    log.write_text(bar.format(4, 1, 2) + bar.format(4, 1, 9))  # the same shard, later
    assert not progress.made()
    log.write_text(bar.format(4, 1, 2) + bar.format(8, 2, 9))
    assert progress.made()


def test_weights_that_are_mapped_into_memory_are_progress(tmp_path):
    weights, log = tmp_path / "weights", tmp_path / "log"
    log.write_text("")
    with weights.open("wb") as file:
        file.write(os.urandom(2 * _MOVED))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    process = psutil.Process()
    progress, before = Progress(process.pid, log, 0), process.io_counters()
    progress.made()
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
    after = process.io_counters()
    assert after.read_chars - before.read_chars < _MOVED
    if after.read_bytes - before.read_bytes < _MOVED:
        pytest.skip("this file system does not let go of what it has cached")
    assert progress.made()


def test_bytes_that_are_read_or_written_are_progress(tmp_path, monkeypatch):
    (tmp_path / "log").write_text("")
    progress = Progress(2**30, tmp_path / "log", 0)
    counted = iter([20 << 20, 21 << 20, 40 << 20])
    monkeypatch.setattr(progress, "_bytes", lambda: next(counted))
    assert [progress.made() for _ in range(3)] == [True, False, True]
