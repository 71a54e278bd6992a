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


@pytest.fixture
def small(monkeypatch):
    """Albums of three, steps of four posts."""
    monkeypatch.setattr(agentps_gpu, "ALBUM", 3)
    monkeypatch.setattr(agentps_gpu, "STEP", 4)


@pytest.mark.parametrize("lean", [False, True])
def test_every_variant_is_measured_by_a_real_training(cpu, small, lean, tmp_path, capsys):
    posts = agentps_gpu.draw_albums(tmp_path, 8, 28)
    images = agentps_gpu.assembled(llava_onevision().base(), 28, lean=lean)
    video = agentps_gpu.assembled(llava_onevision().base(album="video"), 28, lean=lean)
    variants = [one for one in agentps_gpu.VARIANTS if one.lean == lean]
    found = agentps_gpu.measure(
        {"images": images, "video": video}, cpu, posts, variants, rate=1e12, compiler="eager"
    )
    kinds = {"posts a second", "tokens a post", "TFLOP a post", "share of the card's rate"}
    cells = [(album, one) for one in variants for album in one.albums]
    expected = {f"{album}: {one.name}: {kind}" for album, one in cells for kind in kinds}
    expected |= {f"{album}: {one.name}: scored a second" for album, one in cells if one.scored}
    assert set(found) == expected
    assert all(value > 0 for value in found.values())
    if lean:  # without the tower a post costs less
        kept, computed = (f"images: + {one}: TFLOP a post" for one in ("features kept", "parts by tokens"))
        assert found[kept] < found[computed]
    assert capsys.readouterr().out.count("posts a second") == len(cells)


def test_what_fails_or_comes_too_late_costs_no_other_figure(cpu, small, tmp_path, monkeypatch, capsys):
    posts = agentps_gpu.draw_albums(tmp_path, 4, 28)
    built = {"images": agentps_gpu.assembled(llava_onevision().base(), 28)}

    def lacking(*_args):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(agentps_gpu, "_timed", lacking)
    variants = agentps_gpu.VARIANTS[3:4]
    assert agentps_gpu.measure(built, cpu, posts, variants, rate=1e12) == {}
    assert "RuntimeError: no compiler here" in capsys.readouterr().out
    assert agentps_gpu.measure(built, cpu, posts, variants, rate=1e12, seconds=-1) == {}
    assert "no time left for + parts by tokens, images" in capsys.readouterr().out


def test_reading_alone_is_measured_by_threads_and_by_processes(small, tmp_path):
    posts = agentps_gpu.draw_albums(tmp_path, 4, 384)
    found = agentps_gpu.reading(agentps_gpu.llava_reader("video"), posts, side=384)
    assert "reading, four threads and a lock" in found
    assert "reading, 1 process" in found
    assert "reading, 2 processes" in found
    assert all(value > 0 for value in found.values())


def test_half_of_a_causal_attention_is_not_counted():
    """By the operators of a GPU, which need none where there is nothing to compute."""
    query = torch.empty(1, 2, 8, 16, device="meta")
    counts = {}
    for causal in (False, True):
        with agentps_gpu.FlopCounterMode(
            display=False, custom_mapping=agentps_gpu.attention_counters()
        ) as counter:
            torch.ops.aten._scaled_dot_product_flash_attention(query, query, query, 0.0, causal)
        flash = counter.get_total_flops()
        with counter:
            torch.ops.aten._scaled_dot_product_efficient_attention(
                query, query, query, None, True, 0.0, causal
            )
        assert counter.get_total_flops() == flash
        counts[causal] = flash
    # two products of 8 x 8 x 16 for two heads
    assert counts[False] == 2 * 2 * 8 * 8 * 16 * 2
    assert counts[True] == counts[False] / 2


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
