"""Training: its order, its losses, what it keeps, and that cut off it goes on as if it had not been."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from agentps_helpers import TASK, accelerating, built_model, drawn_posts, llava_onevision

from backbones.mllm.hub import from_parts
from losses.process import process_loss
from selftrain.agentps import evaluate
from selftrain.agentps import train as training
from selftrain.agentps.checkpoint import PROGRESS, WEIGHTS, load_weights, trained
from selftrain.agentps.dataset import question_set
from selftrain.agentps.evaluate import headline, score
from selftrain.agentps.model import assemble, stack_targets
from selftrain.agentps.recipe import ModelSettings, TrainingSettings
from selftrain.agentps.train import Order, make_accelerator, share_of_step, train
from selftrain.errors import ModelError, NonFiniteLossError, TrainingError

FAST = TrainingSettings(
    epochs=2, batch_size=8, part=3, learning_rate=3e-3, head_learning_rate=3e-3, save_every=2, metric="auc"
)


def lines(folder):
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def go(built, posts, folder, cpu, *, validate=None, identity="same", **changes):
    return train(
        built, posts, settings=FAST.model_copy(update=changes), seed=0, folder=folder, identity=identity,
        validate=validate or (lambda _: {"auc": 0.5}), accelerator=cpu, bar=False,
    )  # fmt: skip


def weights(model):
    return {name: one.detach().clone() for name, one in trained(model).items()}


# ---- the order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("posts", "batch"), [(1, 4), (7, 3), (50, 8), (101, 16)])
def test_an_epoch_holds_every_post_once_in_batches_of_even_size(posts, batch):
    lengths = list(np.random.default_rng(0).integers(5, 90, posts))
    order = Order(lengths, batch, seed=1)
    for epoch in range(3):
        steps = order.epoch(epoch)
        assert len(steps) == order.steps_per_epoch
        assert sorted(np.concatenate(steps)) == list(range(posts))
        sizes = [len(one) for one in steps]
        assert max(sizes) - min(sizes) <= 1
    assert [one.tolist() for one in order.epoch(1)] == [one.tolist() for one in order.epoch(1)]


def test_epochs_differ_and_so_do_seeds():
    order, other = Order([9] * 40, 4, seed=1), Order([9] * 40, 4, seed=2)
    first = [one.tolist() for one in order.epoch(0)]
    assert first != [one.tolist() for one in order.epoch(1)]
    assert first != [one.tolist() for one in other.epoch(0)]


def test_batches_waste_less_than_half_of_what_unsorted_ones_do():
    lengths = np.random.default_rng(0).integers(5, 200, 640)
    order = Order(list(lengths), 16, seed=0)

    def waste(batches):
        return sum(lengths[b].max() * len(b) - lengths[b].sum() for b in batches)

    shuffled = np.random.default_rng(0).permutation(640)
    assert waste(order.epoch(0)) < 0.5 * waste(np.array_split(shuffled, 40))


@pytest.mark.parametrize(("processes", "size"), [(1, 100), (1, 3), (2, 3), (3, 2), (8, 4)])
def test_processes_share_a_step(processes, size):
    [step, *_] = Order([5] * 16, 16, seed=0).epoch(0)
    parts = [share_of_step(step, rank, processes, size) for rank in range(processes)]
    assert sorted(np.concatenate([p for rank in parts for p in rank])) == sorted(step)
    assert all(rank and max(map(len, rank)) <= size for rank in parts)


# ---- one step -------------------------------------------------------------------------------------------


def test_a_step_in_parts_is_a_step_in_one(tmp_path, cpu, as_examples):
    results = []
    for part in (16, 3):
        built = built_model()
        (tmp_path / str(part)).mkdir()
        go(built, as_examples(drawn_posts(32), built), tmp_path / str(part), cpu, part=part, batch_size=16)
        results.append(lines(tmp_path / str(part)))
    assert len(results[0]) == 4
    for one, other in zip(*results, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
        assert one["parts"] == pytest.approx(other["parts"], abs=2e-4)


def test_the_first_loss_is_that_of_the_formula(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(8), built)
    weights = {"insult": 0.5, "tone": 2.0}
    built.model.train()
    with torch.no_grad():
        logits = built.model(built.collator.inputs(posts))
    expected = process_loss(logits, stack_targets(posts), [0.5, 2.0, 1.0])
    go(built, posts, tmp_path, cpu, epochs=1, batch_size=8, weights=weights)
    [line] = lines(tmp_path)
    assert line["loss"] == pytest.approx(expected.loss.item(), abs=1e-4)
    assert line["parts"] == pytest.approx(expected.parts.tolist(), abs=1e-4)


def test_what_is_read_ahead_of_a_gpu_trains_and_scores_alike(tmp_path, cpu, as_examples, monkeypatch):
    folders, scores = [], []
    for threads in (0, 3):
        monkeypatch.setattr(training, "threads_for", lambda _, threads=threads: threads)
        monkeypatch.setattr(evaluate, "threads_for", lambda _, threads=threads: threads)
        built = built_model()
        posts = as_examples(drawn_posts(100), built)
        folders.append(tmp_path / str(threads))
        folders[-1].mkdir()
        go(built, posts[:32], folders[-1], cpu)
        scored = list(score(built.model, built.collator, posts, batch_size=3))
        assert [one.example.id for one in scored] == [one.id for one in posts]
        scores.append(np.array([one.answers[-1] for one in scored]))
    assert lines(folders[0]) == lines(folders[1])
    assert (folders[0] / WEIGHTS).read_bytes() == (folders[1] / WEIGHTS).read_bytes()
    assert np.array_equal(*scores)


def test_it_learns(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(120), built)
    test = as_examples(drawn_posts(60, seed=9), built)

    def figures(_=None):
        return headline(built.questions, list(score(built.model, built.collator, test, batch_size=16)))

    go(built, posts, tmp_path, cpu, validate=figures, epochs=4, part=8)
    found = figures()
    assert found["auc"] > 0.95
    assert found["insult/macro_f1"] > 0.9


def test_a_base_in_bfloat16_learns_with_everything_trained_in_float32(tmp_path, as_examples):
    """As hubs give it: a step of 1e-4 would be lost in the rounding of bfloat16 weights."""
    _, whole, processor = llava_onevision()
    base = from_parts("bfloat16", whole.to(torch.bfloat16), processor)
    made = ModelSettings(rank=4, alpha=8, hidden=16, max_tokens=96)
    built = assemble(made, question_set(TASK, made.variant), base)
    assert {one.dtype for one in trained(built.model).values()} == {torch.float32}
    posts = as_examples(drawn_posts(60), built)

    def figures(_=None):
        return headline(built.questions, list(score(built.model, built.collator, posts, precise=False)))

    with accelerating(cpu=True, mixed_precision="bf16") as halved:
        go(built, posts, tmp_path, halved, validate=figures, epochs=3, part=8)
    assert figures()["auc"] > 0.8


# ---- what is kept ---------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept_not_the_last(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)
    seen, scores = [], iter([0.6, 0.9, 0.9, 0.1])

    def validate(model):
        seen.append(weights(model))
        return {"auc": next(scores)}

    results = go(built, posts, tmp_path, cpu, epochs=4, validate=validate)
    assert [one.metrics["auc"] for one in results] == [0.6, 0.9, 0.9, 0.1]
    load_weights(built.model, tmp_path / WEIGHTS)
    now = weights(built.model)
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert any(not torch.equal(now[name], seen[3][name]) for name in now)


class CutOffError(Exception):
    """A training that is cut off."""


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(tmp_path, cpu, as_examples, cut, dropout):
    """Four steps an epoch, saved every two: bytes of the weights and lines of the losses are the same."""
    kinds = {"dropout": dropout, "adapter_dropout": dropout}

    def fresh():
        built = built_model(**kinds)
        return built, as_examples(drawn_posts(32), built)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    built, posts = fresh()
    go(built, posts, whole, cpu)

    built, posts = fresh()
    calls = 0
    inputs = built.collator.inputs

    def failing(batch):
        nonlocal calls
        calls += 1
        if calls > cut * 3:  # three parts a step
            raise CutOffError
        return inputs(batch)

    built.collator.inputs = failing
    with pytest.raises(CutOffError):
        go(built, posts, broken, cpu)
    again, posts = fresh()
    go(again, posts, broken, cpu)
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert lines(broken) == lines(whole)
    assert [line["step"] for line in lines(whole)] == list(range(8))


def test_another_training_is_not_gone_on_with(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)
    go(built, posts, tmp_path, cpu)
    with pytest.raises(ModelError, match="other posts or settings"):
        go(built, posts, tmp_path, cpu, identity="another")


def test_damaged_progress_is_said(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)
    (tmp_path / PROGRESS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        go(built, posts, tmp_path, cpu)


def test_weights_of_another_architecture_are_refused(tmp_path, cpu, as_examples):
    built = built_model()
    go(built, as_examples(drawn_posts(16), built), tmp_path, cpu, epochs=1)
    other = built_model("vanilla")
    with pytest.raises(ModelError, match="another architecture"):
        load_weights(other.model, tmp_path / WEIGHTS)


# ---- what cannot go on ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_step_and_posts(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)
    before = weights(built.model)
    with torch.no_grad():
        built.model.heads[0][1].weight.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: .*begin with p\d+"):
        go(built, posts, tmp_path, cpu)
    assert not (tmp_path / PROGRESS).exists()
    after = weights(built.model)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed == ["heads.0.1.weight"]


def test_out_of_memory_says_what_to_lower(tmp_path, cpu, as_examples, monkeypatch):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)

    def full(*_args, **_kinds):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(built.model, "forward", full)
    with pytest.raises(TrainingError, match=r"Lower training.part \(now 3\)"):
        go(built, posts, tmp_path, cpu)


def test_another_precision_in_the_same_process_says_what_to_do(cpu):
    with pytest.raises(TrainingError, match=r"bfloat16 on cpu.*in a process of its own"):
        make_accelerator(TrainingSettings(device="cpu", precision="bfloat16"))


def test_no_posts(tmp_path, cpu):
    with pytest.raises(TrainingError, match="no post has a label"):
        go(built_model(), [], tmp_path, cpu)
