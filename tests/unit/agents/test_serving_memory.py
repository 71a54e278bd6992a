"""Which model starts on which card, and when a server that starts is given up."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil
import pytest

from agents.vllm import memory
from agents.vllm.launch import _MOVED, Progress
from agents.vllm.memory import CARDS, MODELS, Card, pictures_that_fit, prompt_tokens, table, tokens_that_fit

DOCS = Path(__file__).parents[3] / "docs" / "agents.md"
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
def test_heads_and_blocks_are_shared_out_evenly_or_not_at_all(monkeypatch, heads, expert, cards, cell):
    model = BY_NAME["Qwen3-VL-4B"]._replace(heads=heads, expert=expert)
    monkeypatch.setattr(memory, "MODELS", (model,))
    monkeypatch.setattr(memory, "CARDS", (Card("80 GB each", 79.2, cards),))
    assert list(table())[-1].endswith(f" | {cell} |")


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
