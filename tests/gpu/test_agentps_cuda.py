"""AgentPS on a CUDA device in bfloat16: it learns, what it kept gives the same on a CPU, and is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from agentps_helpers import accelerating, built_model, drawn_posts
from mllm_families import llava_onevision

from backbones.mllm.answering import checkpoint_blocks
from selftrain.agentps.checkpoint import WEIGHTS, load_weights
from selftrain.agentps.dataset import example
from selftrain.agentps.evaluate import headline, score
from selftrain.agentps.recipe import TrainingSettings
from selftrain.agentps.steps import train
from selftrain.agentps.train import make_accelerator

pytestmark = pytest.mark.gpu


@pytest.fixture
def card():
    with accelerating(mixed_precision="bf16") as found:
        yield found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_and_a_cpu_reads_what_it_kept(tmp_path, card, checkpointing):
    built = built_model()
    posts = [example(post, built.questions) for post in drawn_posts(120)]
    test = [example(post, built.questions) for post in drawn_posts(60, seed=9)]
    if checkpointing:
        checkpoint_blocks(built.base.module)
    found = lambda device, precise: list(  # noqa: E731
        score(built.model, built.collator, test, batch_size=16, device=device, precise=precise)
    )
    settings = TrainingSettings(
        epochs=4, batch_size=8, part=8, learning_rate=3e-3, head_learning_rate=3e-3, metric="auc"
    )
    train(
        built, posts, settings=settings, seed=0, folder=tmp_path, identity="cuda",
        accelerator=card, bar=False,
        validate=lambda _: headline(built.questions, found("cuda", precise=False)),
    )  # fmt: skip
    load_weights(built.model, tmp_path / WEIGHTS)
    assert headline(built.questions, found("cuda", precise=False))["auc"] > 0.95
    # what accelerate laid around the model computes in bfloat16, whatever is asked for
    card.unwrap_model(built.model, keep_fp32_wrapper=False)
    there = found("cuda", precise=True)
    built.model.to("cpu")
    here = found("cpu", precise=True)
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one.answers[-1], other.answers[-1], atol=1e-3)


@pytest.mark.parametrize("lean", [False, True])
def test_the_measure_runs_on_a_small_model(card, lean, tmp_path):
    """Every variant, the compiled ones too: what is measured on a large model goes through."""
    from runs.bench import agentps_gpu

    posts = agentps_gpu.draw_albums(tmp_path, 32, 28)
    images = agentps_gpu.assembled(llava_onevision().base(), 28, lean=lean)
    video = agentps_gpu.assembled(llava_onevision().base(album="video"), 28, lean=lean)
    variants = [one for one in agentps_gpu.VARIANTS if one.lean == lean]
    found = agentps_gpu.measure({"images": images, "video": video}, card, posts, variants, rate=1e12)
    assert sum("posts a second" in name for name in found) == sum(len(one.albums) for one in variants)
    assert all(value > 0 for value in found.values())
    assert agentps_gpu.matmul_rate() > 1e12


def test_losses_with_kept_features_processes_and_compiled_blocks_are_those_without(card, tmp_path):
    """Within the noise of bfloat16."""
    from runs.bench import agentps_gpu
    from runs.bench.agentps_speed import plain_training
    from selftrain.agentps.vision_cache import VisionCache

    posts, losses = agentps_gpu.draw_albums(tmp_path, 32, 28), []
    for fast in (False, True):
        built = agentps_gpu.assembled(llava_onevision().base(), 28, lean=fast)
        if fast:
            cache = VisionCache(
                tmp_path / "cache",
                built.base,
                built.collator.frames,
                album="images",
                precision="bf16",
                limit=1e9,
            )
            built.use_cache(cache)
        for epoch in range(2):
            folder = tmp_path / f"{fast} {epoch}"
            settings = TrainingSettings(
                batch_size=8, part=4, part_tokens=200 if fast else None, workers=2 if fast else 0,
                compile=fast, learning_rate=1e-6, head_learning_rate=1e-6,
            )  # fmt: skip
            plain_training(built, posts, folder, card, settings)
        rows = (folder / "losses.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
        card.unwrap_model(built.model, keep_fp32_wrapper=False)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_attention_has_gradients_at_every_length(card):
    """cuDNN's had none at 64, 192, ... with a mask, where all logits of a row are far below zero."""
    make_accelerator(TrainingSettings())
    for length in (64, 192):
        query, key, value = (
            torch.randn(1, 2, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
        )
        query[..., 0], key[..., 0] = 8.0, -160.0  # scores of about -160
        for one in (query, key, value):
            one.requires_grad_()
        mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
        assert all(one.grad.isfinite().all() for one in (query, key, value))
