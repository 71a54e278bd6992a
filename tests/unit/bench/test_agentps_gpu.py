"""What is measured on a GPU, tried on the CPU: the sizes, the count of operations, the whole way in small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agentps_helpers import accelerating
from mllm_families import llava_onevision, picture

from runs.bench import agentps_gpu
from runs.bench.__main__ import main
from selftrain.agentps.dataset import Example, question_set
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble
from selftrain.agentps.recipe import ModelSettings
from selftrain.data.importers import hateful_memes as memes


@pytest.fixture
def cpu():
    with accelerating(cpu=True) as found:
        yield found


def test_the_sizes_are_the_published_ones():
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(agentps_gpu.published_config(1, 2)).model

    def count(part):
        return sum(one.numel() for one in part.parameters())

    # Qwen2 0.5B has 494,032,768 weights with a table of 151,936 rows of 896
    assert count(model.language_model) == 494_032_768 + (152_000 - 151_936) * 896
    # a layer of SigLIP so400m: four projections and two of the perceptron, with biases, and two norms
    layer = 4 * (1152 * 1152 + 1152) + 1152 * 4304 * 2 + 4304 + 1152 + 4 * 1152
    around = 1152 * 3 * 14 * 14 + 1152 + 729 * 1152 + 2 * 1152
    assert count(model.vision_tower) == 26 * layer + around


@pytest.mark.parametrize("album", ["images", "video"])
def test_posts_a_second_and_their_cost_come_out_of_a_real_training(cpu, album, monkeypatch):
    monkeypatch.setattr(agentps_gpu, "ALBUM", 3)
    monkeypatch.setattr(agentps_gpu, "STEP", 4)
    base = llava_onevision().base(album=album)
    found = agentps_gpu.throughput(base, cpu, posts=6, side=28)
    assert set(found) == {
        "training, posts a second", "scoring, posts a second", "training, TFLOP a post",
    }  # fmt: skip
    assert all(value > 0 for value in found.values())


def test_operations_are_those_of_the_products(cpu, tmp_path):
    """A second post of the same length doubles them; a training step costs two to three times its forward."""
    picture("red").save(tmp_path / "one.png")
    made = ModelSettings(rank=4, alpha=8, hidden=16, frames=Frames(2, 28, 28))
    built = assemble(made, question_set(memes.TASK, made.variant), llava_onevision().base())
    answer = np.array([1, 0], dtype=np.float32)
    post = Example("a", "late again", (tmp_path / "one.png",), (answer,) * 4)
    alone = agentps_gpu.flops_a_post(built, [post], cpu)
    assert agentps_gpu.flops_a_post(built, [post] * 3, cpu) == pytest.approx(alone)
    with agentps_gpu.FlopCounterMode(display=False) as forward, torch.no_grad():
        built.model(built.collator.read([post]).inputs)
    assert 1.5 < alone / forward.get_total_flops() < 3
    assert not any(one.grad is not None for one in built.model.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_it_is_said_and_nothing_is_made_up(tmp_path, capsys):
    figures = tmp_path / "figures.jsonl"
    given = ["--data", str(tmp_path), "--work", str(tmp_path), "--parts", "gpu", "--json", str(figures)]
    assert main(["agentps", *given]) == 0
    assert "gpu: not measured, torch finds no CUDA device here" in capsys.readouterr().out
    assert not figures.exists()
