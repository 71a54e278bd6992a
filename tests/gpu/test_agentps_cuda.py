"""AgentPS on a CUDA device in bfloat16: it learns, what it kept gives the same on a CPU, and is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agentps_helpers import accelerating, built_model, drawn_posts
from mllm_families import llava_onevision

from selftrain.agentps.checkpoint import WEIGHTS, load_weights
from selftrain.agentps.dataset import example
from selftrain.agentps.evaluate import headline, score
from selftrain.agentps.recipe import TrainingSettings
from selftrain.agentps.train import train

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
        built.base.module.activation_checkpointing_enable({"use_reentrant": False})
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


@pytest.mark.parametrize("album", ["images", "video"])
def test_the_measure_runs_on_a_small_model(card, album):
    from runs.bench import agentps_gpu

    base = llava_onevision().base(album=album)
    found = agentps_gpu.throughput(base, card, posts=32, side=28)
    assert all(value > 0 for value in found.values())
    assert agentps_gpu.matmul_rate() > 1e12
    assert torch.cuda.max_memory_allocated() > 0
