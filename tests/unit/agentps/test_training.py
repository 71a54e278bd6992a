"""Training: its order, its losses, what it keeps, and that cut off it goes on as if it had not been."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from agentps_helpers import TASK, accelerating, built_model, drawn_posts, training_folder
from mllm_families import Family, llava_onevision, picture
from transformers import PreTrainedModel

from losses.process import process_loss
from selftrain.agentps import steps
from selftrain.agentps import train as training
from selftrain.agentps.checkpoint import MERGED, PROGRESS, QUARANTINE, WEIGHTS, load, load_weights, trained
from selftrain.agentps.checkpoint import TASK as TASK_FILE
from selftrain.agentps.dataset import example, question_set
from selftrain.agentps.evaluate import headline, score, score_share
from selftrain.agentps.frames import Frames
from selftrain.agentps.model import assemble, part_sizes, stack_targets
from selftrain.agentps.predict import predict
from selftrain.agentps.recipe import ModelSettings, TrainingSettings, load_agentps_recipe
from selftrain.agentps.steps import Order, share_of_step, train
from selftrain.agentps.train import make_accelerator, train_agentps
from selftrain.cli import main
from selftrain.data.manifest import read_manifest
from selftrain.errors import (
    DataError,
    ModelError,
    NonFiniteLossError,
    QuarantineError,
    RecipeError,
    TrainingError,
)
from selftrain.models.train_loop import best_epoch
from selftrain.store.run_dir import read_jsonl

FAST = TrainingSettings(
    epochs=2, batch_size=8, part=3, learning_rate=3e-3, head_learning_rate=3e-3, save_every=2, metric="auc"
)


def lines(folder):
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def go(built, posts, folder, cpu, *, validate=None, identity="same", signed=False, max_unread=0, **changes):
    return train(
        built, posts, settings=FAST.model_copy(update=changes), seed=0, folder=folder, identity=identity,
        validate=validate or (lambda _: {"auc": 0.5}), accelerator=cpu, signed=signed, max_unread=max_unread,
        bar=False,
    )  # fmt: skip


def attending(built):
    return [one for one in built.model.modules() if isinstance(one, PreTrainedModel)]


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
@pytest.mark.parametrize("tokens", [None, 11])
def test_processes_share_a_step(processes, size, tokens):
    [step, *_] = Order([5] * 16, 16, seed=0).epoch(0)
    kinds = {"lengths": np.full(16, 5), "tokens": tokens}
    parts = [share_of_step(step, rank, processes, size, **kinds) for rank in range(processes)]
    assert tokens is None or max(len(p) for rank in parts for p in rank) <= 2
    assert sorted(np.concatenate([p for rank in parts for p in rank])) == sorted(step)
    assert all(rank and max(map(len, rank)) <= size for rank in parts)


@pytest.mark.parametrize(("posts", "processes", "size", "tokens"), [
    (7, 2, 1, None), (2, 3, 4, None), (16, 3, 8, 90), (5, 4, 8, 30),
])  # fmt: skip
def test_processes_compute_as_many_parts(posts, processes, size, tokens):
    """A model in shards is put together by all of them: one that had computed less would be waited for."""
    lengths = np.sort(np.random.default_rng(posts).integers(5, 90, posts))
    kinds = {"lengths": lengths, "tokens": tokens}
    parts = [share_of_step(np.arange(posts), rank, processes, size, **kinds) for rank in range(processes)]
    assert len({len(rank) for rank in parts}) == 1
    assert sorted(np.concatenate([p for rank in parts for p in rank])) == list(range(posts))
    together = [lengths[p] for rank in parts for p in rank]
    assert all(len(one) <= size for one in together)
    assert all(len(one) < 2 or tokens is None or len(one) * one.max() <= tokens for one in together)


@pytest.mark.parametrize(("processes", "batch", "tokens"), [(2, 4, None), (3, 3, 120), (4, 30, None)])
def test_processes_score_as_many_batches(processes, batch, tokens, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(25), built)
    kinds = {"batch_size": batch, "tokens": tokens}
    alone = {one.example.id: one.answers for one in score(built.model, built.collator, posts, **kinds)}
    calls, found = [], {}
    for rank in range(processes):
        counted = []
        hook = built.model.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        for one in score_share(built.model, built.collator, posts, rank, processes, **kinds):
            found[one.example.id] = one.answers
        hook.remove()
        calls.append(len(counted))
    assert len(set(calls)) == 1
    assert found.keys() == alone.keys()
    for name, answers in alone.items():
        assert [one.tolist() for one in found[name]] == [one.tolist() for one in answers]


@pytest.mark.parametrize("posts", [1, 3, 16])
@pytest.mark.parametrize("tokens", [1, 40, 200, None])
def test_parts_hold_no_more_than_they_may_and_every_post_once(posts, tokens):
    lengths = np.sort(np.random.default_rng(0).integers(5, 90, 50))
    sizes = part_sizes(lengths.tolist(), posts, tokens)
    assert sum(sizes) == 50
    parts = np.split(lengths, np.cumsum(sizes)[:-1])
    assert all(1 <= len(one) <= posts for one in parts)
    assert all(len(one) == 1 or tokens is None or len(one) * one.max() <= tokens for one in parts)
    # no part is smaller than it has to be
    for one, after in pairwise(parts):
        assert len(one) == posts or (len(one) + 1) * max(one.max(), after[0]) > tokens


# ---- one step -------------------------------------------------------------------------------------------


def test_a_step_in_parts_is_a_step_in_one(tmp_path, cpu, as_examples):
    results = []
    for part, tokens in ((16, None), (3, None), (16, 200)):
        built = built_model()
        folder = tmp_path / f"{part} {tokens}"
        folder.mkdir()
        posts = as_examples(drawn_posts(32), built)
        go(built, posts, folder, cpu, part=part, part_tokens=tokens, batch_size=16)
        results.append(lines(folder))
    assert len(results[0]) == 4
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
            assert one["parts"] == pytest.approx(other["parts"], abs=2e-4)


def test_scores_do_not_hang_on_how_many_tokens_are_computed_at_once(as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(50), built)
    sizes = []
    read = built.collator.read
    built.collator.read = lambda batch: sizes.append(len(batch)) or read(batch)
    whole, limited = (list(score(built.model, built.collator, posts, tokens=one)) for one in (None, 200))
    assert [one.example.id for one in limited] == [one.id for one in posts]
    assert max(sizes[:4]) == 16 > max(sizes[4:]) > 1
    for one, other in zip(whole, limited, strict=True):
        np.testing.assert_allclose(one.answers[-1], other.answers[-1], atol=1e-5)


def test_a_post_whose_answers_are_no_numbers_is_left_out_with_a_reason(as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(12), built)

    def spoil(_module, _inputs, logits):
        return tuple(one.index_fill(0, torch.tensor([0]), float("nan")) for one in logits)

    built.model.register_forward_hook(spoil)
    scored = list(score(built.model, built.collator, posts, batch_size=4))
    assert ["is no number (NaN)" in one.reason for one in scored].count(True) == 3
    assert headline(built.questions, scored)["posts"] == 9
    with pytest.raises(DataError, match=r"3 of 3 validation posts have no answers, .*no number.* one class"):
        headline(built.questions, [one for one in scored if one.reason])


def test_the_first_loss_is_that_of_the_formula(tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(8), built)
    weights = {"insult": 0.5, "tone": 2.0}
    built.model.train()
    with torch.no_grad():
        logits = built.model(built.collator.read(posts).inputs)
    expected = process_loss(logits, stack_targets(posts), [0.5, 2.0, 1.0])
    go(built, posts, tmp_path, cpu, epochs=1, batch_size=8, weights=weights)
    [line] = lines(tmp_path)
    assert line["loss"] == pytest.approx(expected.loss.item(), abs=1e-4)
    assert line["parts"] == pytest.approx(expected.parts.tolist(), abs=1e-4)


def test_what_is_read_ahead_of_a_gpu_trains_and_scores_alike(tmp_path, cpu, as_examples):
    folders, scores = [], []
    for workers in (0, 2):
        built = built_model()
        posts = as_examples(drawn_posts(100), built)
        folders.append(tmp_path / str(workers))
        folders[-1].mkdir()
        go(built, posts[:32], folders[-1], cpu, workers=workers)
        scored = list(score(built.model, built.collator, posts, batch_size=3, workers=workers))
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
    whole, processor = llava_onevision()
    base = Family(whole.to(torch.bfloat16), processor).base("bfloat16")
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


@pytest.mark.parametrize(("metric", "kept"), [("auc", 1), ("last", 3)])
def test_the_best_epoch_is_kept_or_the_last(metric, kept, tmp_path, cpu, as_examples):
    built = built_model()
    posts = as_examples(drawn_posts(16), built)
    seen, scores = [], iter([0.6, 0.9, 0.9, 0.1])

    def validate(model):
        seen.append(weights(model))
        return {"auc": next(scores)}

    results = go(built, posts, tmp_path, cpu, epochs=4, metric=metric, validate=validate)
    assert [one.metrics["auc"] for one in results] == [0.6, 0.9, 0.9, 0.1]
    assert best_epoch(results, metric) is results[kept]
    load_weights(built.model, tmp_path / WEIGHTS)
    now = weights(built.model)
    same = [all(torch.equal(now[name], one[name]) for name in now) for one in seen]
    assert same == [place == kept for place in range(4)]


class CutOffError(Exception):
    """A training that is cut off."""


def fresh(dropout):
    built = built_model(dropout=dropout, adapter_dropout=dropout)
    return built, [example(post, built.questions) for post in drawn_posts(32)]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Dropout -> the folder of a training that was not cut off."""
    folders = {}
    for dropout in (0.0, 0.2):
        folders[dropout] = tmp_path_factory.mktemp("whole")
        with accelerating(cpu=True) as cpu:
            go(*fresh(dropout), folders[dropout], cpu)
    return folders


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(tmp_path, uncut, cpu, cut, dropout):
    """Four steps an epoch, saved every two: bytes of the weights and lines of the losses are the same."""
    whole, broken = uncut[dropout], tmp_path
    built, posts = fresh(dropout)
    calls = 0
    read = built.collator.read

    def failing(batch):
        nonlocal calls
        calls += 1
        if calls > cut * 3:  # three parts a step
            raise CutOffError
        return read(batch)

    built.collator.read = failing
    with pytest.raises(CutOffError):
        go(built, posts, broken, cpu)
    again, posts = fresh(dropout)
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


def test_posts_longer_than_the_model_was_made_for_are_said(tmp_path, cpu, as_examples, caplog):
    built = built_model()
    assert built.base.positions > 500
    for positions, told in ((0, 0), (2000, 0), (20, 1)):
        short = built._replace(base=replace(built.base, positions=positions))
        go(short, as_examples(drawn_posts(4), built), tmp_path / str(positions), cpu, epochs=1)
        found = [one for one in caplog.records if "was made for 20: what lies beyond" in one.getMessage()]
        assert len(found) == told


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


# ---- pictures that cannot be read -----------------------------------------------------------------------


def with_pictures(posts, folder, broken=(), videos=()):
    """A picture each; that of `broken` ends too early, and in place of `videos` a video of rubbish."""
    found = []
    for number, post in enumerate(posts):
        path = folder / f"{post.id}.png"
        picture("red").save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:60])  # its header is good: only a step finds out
        if number in videos:
            path = path.with_suffix(".mp4")
            path.write_bytes(b"no film" * 100)
        found.append(post._replace(pictures=(path,)))
    return found


def test_a_picture_that_cannot_be_read_is_left_out_and_training_goes_on(tmp_path, cpu, as_examples):
    def fresh():
        built = built_model(frames=Frames(1, 28, 28))
        return built, with_pictures(as_examples(drawn_posts(32), built), tmp_path, (3,), (17,))

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    built, posts = fresh()
    with pytest.raises(QuarantineError, match=r"1 posts have pictures .* at most 0 are") as refused:
        go(built, posts, whole, cpu)
    assert "the same command goes on" in str(refused.value)
    (whole / QUARANTINE).unlink()
    built, posts = fresh()
    go(built, posts, whole, cpu, max_unread=2)
    rows = [json.loads(line) for line in (whole / QUARANTINE).read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["p17", "p3"]
    reasons = {row["id"]: row["reason"] for row in rows}
    assert "p3.png" in reasons["p3"]
    assert "cannot be decoded" in reasons["p3"]
    assert "p17.mp4: cannot be read as a video" in reasons["p17"]

    # left out, not learned from: a training that was cut off meets them again, and notes them once
    built, posts = fresh()
    with pytest.raises(QuarantineError):
        go(built, posts, broken, cpu, max_unread=1)
    built, posts = fresh()
    go(built, posts, broken, cpu, max_unread=2)
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert len((broken / QUARANTINE).read_text().splitlines()) == 2


def test_a_second_start_tolerates_no_more_and_what_was_mended_counts_no_longer(tmp_path, cpu, as_examples):
    """Two posts too many: neither what was noted nor what was saved lets a second start pass."""

    def begin(**kinds):
        built = built_model(frames=Frames(1, 28, 28))
        posts = with_pictures(as_examples(drawn_posts(16), built), tmp_path, **kinds)
        go(built, posts, tmp_path, cpu, epochs=1, max_unread=1, save_every=1)

    def noted():
        return sorted(json.loads(line)["id"] for line in (tmp_path / QUARANTINE).read_text().splitlines())

    (tmp_path / QUARANTINE).write_text('{"kind": "row", "id": "bad"}\n')
    for _ in range(2):
        with pytest.raises(QuarantineError, match=r"2 posts have pictures .* at most 1 are"):
            begin(broken=(3, 12))
        assert noted() == ["bad", "p12", "p3"]
    begin(broken=(12,))
    assert noted() == ["bad", "p12"]


def test_posts_that_several_processes_cannot_read_count_together_and_once(tmp_path, cpu, monkeypatch):
    others = [("p1", "broken"), ("p2", "broken")]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, *others])
    unread = steps.Unread(tmp_path / QUARANTINE, 1, cpu, posts=(), collator=built_model().collator)
    unread.add("p1", "broken")
    with pytest.raises(QuarantineError, match="2 posts have pictures"):
        unread.share()
    rows = [json.loads(line) for line in (tmp_path / QUARANTINE).read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p1", "p2"]


def test_validation_posts_of_which_none_of_a_class_can_be_read_are_found_before_the_first_step(tmp_path, cpu):
    place = training_folder(tmp_path, posts=20, frames=1)
    (place / "broken.png").write_bytes((place / "red.png").read_bytes()[:60])
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows = [row | ({"images": ["broken.png"]} if row["label"] == "rude" else {}) for row in rows]
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f'data.task="{place / "task.toml"}"', "data.max_bad_share=1.0"]
    with pytest.raises(DataError, match=r"validation posts are 'rude', and the pictures of none can be read"):
        train_agentps(
            place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
        )
    assert not (place / "model" / "losses.jsonl").exists()


def test_a_validation_post_that_cannot_be_read_is_noted_with_the_others_and_told(tmp_path, cpu, capsys):
    place = training_folder(tmp_path, posts=20, frames=1)
    (place / "broken.png").write_bytes((place / "red.png").read_bytes()[:60])
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows = [row | {"split": "validation" if n < 10 else "train"} for n, row in enumerate(rows)]
    rows[3]["images"] = ["broken.png"]
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = place / "model"
    command = ["agentps", "train", str(place / "posts.jsonl"), "--task", str(place / "task.toml")]
    command += ["--recipe", str(place / "recipe.toml"), "--set", "training.epochs=1", "--out", str(out)]
    assert main(command) == 0
    noted = map(json.loads, (out / QUARANTINE).read_text().splitlines())
    assert [row["id"] for row in noted if row["kind"] == "picture"] == ["p3"]
    told = capsys.readouterr().err
    assert f"1 posts left out, listed in {out / QUARANTINE}" in told
    assert "id 'p3'" in told


def test_a_post_that_cannot_be_read_gives_no_gradient(tmp_path, cpu, as_examples):
    """Its label may be anything."""
    found = []
    for label in ("rude", "kind"):
        built = built_model(frames=Frames(1, 28, 28))
        drawn = drawn_posts(8)
        drawn[3] = replace(drawn[3], label=label)
        (tmp_path / label).mkdir()
        go(built, with_pictures(as_examples(drawn, built), tmp_path, broken=(3,)), tmp_path / label, cpu,
           epochs=1, max_unread=1)  # fmt: skip
        found.append(weights(built.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---- what reviewed posts' loss is bounded by ------------------------------------------------------------


def test_the_loss_of_reviewed_posts_is_bounded_and_the_same_in_parts(tmp_path, cpu, as_examples, caplog):
    """Every third post was reviewed with pi = 1/4 and turned out otherwise: its target is (-3, 4)."""

    def losses(name, **changes):
        built = built_model()
        posts = as_examples(drawn_posts(24), built)
        turned = (np.array([-3, 4], np.float32), np.array([4, -3], np.float32))
        posts = [
            one._replace(targets=(*one.targets[:-1], turned[int(one.targets[-1][1])])) if i % 3 == 0 else one
            for i, one in enumerate(posts)
        ]
        (tmp_path / name).mkdir()
        kinds = {"weights": {"insult": 0.0, "tone": 0.0}, "epochs": 4, "batch_size": 6, "signed": True}
        go(built, posts, tmp_path / name, cpu, **kinds | changes)
        return [line["loss"] for line in lines(tmp_path / name)]

    whole, parts = losses("whole", part=6), losses("parts", part=2)
    assert min(whole) >= 0
    assert parts == pytest.approx(whole, abs=1e-3)
    assert not caplog.records
    assert min(losses("off", non_negative=False, epochs=8)) < 0
    assert "no lower bound" in caplog.text


@pytest.mark.parametrize(("divisor", "expected"), [("posts", 1), ("expected", 2), ("answers", 4)])
def test_what_a_loss_is_divided_by(tmp_path, cpu, as_examples, divisor, expected):
    """Half of all posts answer, and two of the eight of a step."""
    built = built_model("multitask")
    posts = as_examples([replace(post, process={}) for post in drawn_posts(16)], built)
    answer = np.array([1, 0], np.float32)
    posts = [one._replace(targets=(answer, *one.targets[1:])) for one in posts[:8]] + posts[8:]
    stepper = steps._Stepper(
        built, posts, Order([5] * 16, 8, 0), settings=FAST.model_copy(update={"divisor": divisor}), seed=0,
        signed=False, folder=tmp_path, max_unread=0, validate=dict, accelerator=cpu,
    )  # fmt: skip
    assert stepper._divisors(8, [2.0, 0.0, 8.0])[0] == 8 / expected
    assert stepper._divisors(8, [2.0, 0.0, 8.0])[2] == 8


# ---- weights of answers, validation within an epoch, the end before the last ----------------------------


def test_balanced_answers_weigh_alike_and_numbers_as_they_are_written():
    counts = {"insult": {"yes": 2, "no": 6}, "tone": {"angry": 3, "calm": 0, "merry": 1}, "final": {"a": 5}}
    changed = FAST.model_copy(update={"class_weights": {"insult": "balanced", "tone": {"angry": 2.0}}})
    assert changed.answer_weights(counts) == [[2.0, 4 / 6], [2.0, 1.0, 1.0], [1.0]]
    even = FAST.model_copy(update={"class_weights": {"tone": "balanced"}}).answer_weights(counts)[1]
    assert even == [pytest.approx(2 / 3), 1.0, 2.0]
    assert FAST.answer_weights(counts) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tune": "balanced"}, r"names \['tune'\]; expected some of \['tone', 'final'\]"),
        (
            {"tone": {"loud": 2.0}},
            r"class_weights.tone names \['loud'\]; expected some of \['angry', 'calm'\]",
        ),
        ({"tone": {"angry": 0.0, "calm": 0.0}}, "is 0 for every answer"),
    ],
)
def test_weights_of_what_is_not_asked_are_refused(given, words):
    counts = {"tone": {"angry": 1, "calm": 2}, "final": {"rude": 1, "kind": 1}}
    with pytest.raises(RecipeError, match=words):
        TrainingSettings(class_weights=given).answer_weights(counts)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('"ballanced"', "final: Input should be 'balanced', or a table of numbers (found 'ballanced')"),
        ('{rude = "x"}', "final.rude: Input should be a valid number"),
        ("3", "final: Input should be 'balanced', or a table of numbers (found 3)"),
    ],
)
def test_a_fault_of_an_answers_weights_is_told_once(given, told):
    with pytest.raises(RecipeError, match=r"has 1 fault\(s\)") as caught:
        load_agentps_recipe(None, [f"training.class_weights.final={given}"])
    assert told in str(caught.value)


def test_a_question_without_answers_is_no_division_by_nothing():
    counts = {"tone": {"angry": 0, "calm": 0}, "final": {"rude": 1, "kind": 3}}
    assert TrainingSettings(class_weights={"tone": "balanced"}).answer_weights(counts)[0] == [1.0, 1.0]


@pytest.mark.parametrize("weight", ["-1.0", "nan", "inf"])
def test_weights_of_questions_are_numbers_from_0_on(weight):
    with pytest.raises(RecipeError, match="weights"):
        load_agentps_recipe(None, [f"training.weights={{final={weight}}}"])
    with pytest.raises(RecipeError, match="0 for every question"):
        TrainingSettings(weights={"tone": 0.0, "final": 0.0}).question_weights(["tone", "final"])


def test_what_another_training_says_of_itself_stays_where_it_is_refused(tmp_path, cpu, monkeypatch):
    place = training_folder(tmp_path, posts=40)
    words = [f'data.task="{place / "task.toml"}"', "data.validation_share=0.4", "training.epochs=1"]

    def begin(*more):
        manifest, recipe = place / "posts.jsonl", place / "recipe.toml"
        train_agentps(manifest, place / "model", recipe=recipe, overrides=[*words, *more], bar=False)

    def stop(*_args, **_kinds):
        raise CutOffError

    monkeypatch.setattr(training._Work, "write", stop)
    with pytest.raises(CutOffError):
        begin()
    before = (place / "model" / "training.toml").read_bytes()
    with pytest.raises(ModelError, match="other posts or settings"):
        begin("seed=5")
    assert (place / "model" / "training.toml").read_bytes() == before


def test_a_merge_that_was_killed_is_done_again_and_one_that_was_done_keeps_its_weights(tmp_path, cpu, capsys):
    place, merged = training_folder(tmp_path, posts=20), tmp_path / "merged"
    words = ["agentps", "train", str(place / "posts.jsonl"), "--recipe", str(place / "recipe.toml")]
    words += ["--task", str(place / "task.toml"), "--set", "training.epochs=1", "--merge", str(merged)]
    merged.mkdir()
    (tmp_path / "merged.part").mkdir()
    (tmp_path / "merged.part" / "half.safetensors").touch()
    assert main([*words, "--out", str(tmp_path / "model")]) == 0
    assert not (tmp_path / "merged.part").exists()
    written = {path: path.stat().st_mtime_ns for path in merged.rglob("*")}
    assert written.keys() >= {merged / MERGED, merged / TASK_FILE}
    assert merged / "half.safetensors" not in written
    assert main([*words, "--out", str(tmp_path / "model")]) == 0
    assert {path: path.stat().st_mtime_ns for path in merged.rglob("*")} == written
    # other rules are no other weights
    weights = [path for path in written if path.suffix == ".safetensors"]
    assert main([*words, "--out", str(tmp_path / "model"), "--set", "decisions.final=f1"]) == 0
    assert json.loads((merged / MERGED).read_bytes())["decisions"]["final"]["goal"] == "f1"
    assert len(weights) == 2
    assert [path.stat().st_mtime_ns for path in weights] == [written[path] for path in weights]
    # other weights are another model's
    assert main([*words, "--out", str(tmp_path / "other"), "--set", "seed=5"]) == 2
    assert "is not empty: give --merge a folder of its own" in capsys.readouterr().err


def test_a_folder_to_merge_into_is_looked_at_before_training(tmp_path, capsys):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").touch()
    (tmp_path / "posts.jsonl").touch()
    words = ["agentps", "train", str(tmp_path / "posts.jsonl"), "--out", str(tmp_path / "model")]
    assert main([*words, "--merge", str(tmp_path / "merged")]) == 2
    assert "is not empty: give --merge a folder of its own" in capsys.readouterr().err
    for of_the_model in ("home/model", "home"):  # neither is there yet
        command = [*words[:-1], str(tmp_path / "home" / "model")]
        assert main([*command, "--merge", str(tmp_path / of_the_model)]) == 2
        assert f"{of_the_model} is where the model itself lies" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "home").exists()


def test_with_weights_a_rare_class_is_found_more_often(tmp_path, cpu, as_examples):
    """One post in nine is rude, and in half of the posts no word tells: only the weights change."""
    drawn = [one for one in drawn_posts(200) if one.label == "kind"][:80]
    drawn += [one for one in drawn_posts(200) if one.label == "rude"][:10]
    drawn = [replace(one, text="day") if i % 2 else one for i, one in enumerate(drawn)]
    found = {}
    for name, weights in (
        ("none", {}),
        ("balanced", {"final": "balanced"}),
        ("more", {"final": {"rude": 40.0}}),
    ):
        built = built_model("vanilla")
        posts = as_examples([replace(one, process={}) for one in drawn], built)
        (tmp_path / name).mkdir()
        go(built, posts, tmp_path / name, cpu, epochs=4, part=8, class_weights=weights)
        scored = score(built.model, built.collator, posts, batch_size=16)
        found[name] = np.mean([one.answers[-1][0] for one in scored])
    assert found["none"] < found["balanced"] < found["more"]


def test_one_that_is_cut_off_validates_and_ends_as_one_that_was_not(tmp_path, cpu, as_examples):
    """Validated every three steps of four an epoch; the best is at step 6, the end two validations later."""
    scores = {3: 0.5, 4: 0.6, 6: 0.9, 8: 0.8, 9: 0.9}

    def begin(folder, cut=None):
        built = built_model()
        posts, steps = as_examples(drawn_posts(32), built), []
        folder.mkdir(exist_ok=True)

        def validate(model):
            done = len(lines(folder))
            steps.append(done)
            if done == cut:
                raise CutOffError
            return {"auc": scores[done]}

        return lambda: go(
            built, posts, folder, cpu, validate=validate, epochs=5, validate_every=3, patience=2, save_every=1
        ), steps

    whole, _ = begin(tmp_path / "whole")
    results = whole()
    assert [one.step for one in results] == [3, 4, 6, 8, 9]
    for cut in scores:
        folder = tmp_path / str(cut)
        first, _ = begin(folder, cut)
        with pytest.raises(CutOffError):
            first()
        second, steps = begin(folder)
        assert [one[2:] for one in second()] == [one[2:] for one in results]
        assert steps == [one for one in scores if one >= cut]
        assert (folder / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
        assert lines(folder) == lines(tmp_path / "whole")


def test_training_leaves_cudnns_attention_alone():
    torch.backends.cuda.enable_cudnn_sdp(True)
    with accelerating(cpu=True):
        make_accelerator(TrainingSettings(device="cpu"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_attention_is_the_recipes_in_training_and_transformers_own_after_it(tmp_path, cpu, monkeypatch):
    place, seen, kept = training_folder(tmp_path, posts=20, frames=1), [], []
    original = training._Work.scored

    def scored(work, posts):
        kept.append(work.built.collator.cache is not None)
        seen.append({part.config._attn_implementation for part in attending(work.built)})
        return original(work, posts)

    monkeypatch.setattr(training._Work, "scored", scored)
    changes = [f'data.task="{place / "task.toml"}"', 'training.attention="eager"', "training.epochs=1"]
    changes.append(f'training.vision_cache="{tmp_path / "cache"}"')
    made = train_agentps(
        place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
    )
    *during, measured = seen
    assert during
    assert all(ways == {"eager"} for ways in during)
    assert measured == {"sdpa"}
    assert kept == [True] * len(during) + [False]  # what is kept of pictures was computed in the other way
    assert {part.config._attn_implementation for part in attending(made.built)} == {"sdpa"}


def test_what_bfloat16_was_validated_in_is_what_it_predicts_in(tmp_path):
    """One post at a time, as a CPU predicts: the same to the last digit that is written."""
    place = training_folder(tmp_path, posts=20)
    changes = [
        f'data.task="{place / "task.toml"}"', "training.epochs=1", 'training.precision="bfloat16"',
        'training.attention="eager"', "training.evaluation_batch=1",
    ]  # fmt: skip
    with accelerating(cpu=True, mixed_precision="bf16"):
        train_agentps(
            place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
        )
    loaded = load(place / "model")
    assert loaded.about["precision"] == "bfloat16"
    posts = {post.id: post for post in read_manifest(place / "posts.jsonl", loaded.task).posts}
    validated = list(read_jsonl(place / "model" / "validation.jsonl"))
    predicted = predict(loaded, [posts[row["id"]] for row in validated])
    for row, one in zip(validated, predicted, strict=True):
        assert one.answers[-1][0] == pytest.approx(row["probabilities"]["rude"], abs=1e-6)


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


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda row: row | {"process": {}}, DataError, "no post answers the question 'insult'"),
        (lambda row: row | {"label": "kind"}, DataError, "expected at least 1 of each class"),
    ],
)
def test_data_that_cannot_do_is_refused_before_a_base_model_is_looked_for(tmp_path, spoil, error, words):
    place = training_folder(tmp_path, posts=20)
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    (place / "posts.jsonl").write_text("".join(json.dumps(spoil(row)) + "\n" for row in rows))
    changes = [f'data.task="{place / "task.toml"}"', 'model.base="nowhere/to-be-found"']
    with pytest.raises(error, match=words):
        train_agentps(place / "posts.jsonl", place / "model", overrides=changes, bar=False)


def test_an_evaluation_batch_too_large_is_known_before_the_first_step(tmp_path, cpu, monkeypatch):
    place = training_folder(tmp_path, posts=20)
    sizes = []

    def full(model, collator, posts, *_, batch_size, **__):
        sizes.append(min(batch_size, len(posts)))
        raise TrainingError("no memory left: training.evaluation_batch")

    monkeypatch.setattr(training, "score_share", full)
    changes = [f'data.task="{place / "task.toml"}"', "training.evaluation_batch=2"]
    with pytest.raises(TrainingError, match="evaluation_batch"):
        train_agentps(
            place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
        )
    assert sizes == [2]
    assert not (place / "model" / "losses.jsonl").exists()


def test_no_posts(tmp_path, cpu):
    with pytest.raises(TrainingError, match="no post has a label"):
        go(built_model(), [], tmp_path, cpu)


# ---- several processes ----------------------------------------------------------------------------------


def test_the_documented_lines_are_lines_of_accelerate():
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env
    from typer.main import get_command

    from selftrain.cli.agentps import app

    text = (Path(__file__).parents[3] / "docs" / "agentps.md").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("accelerate launch ")]
    sharded = []
    for words in lines:
        given, *_ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
        assert (given.module, given.training_script) == (True, "selftrain")
        part, command, *rest = given.training_script_args
        assert part == "agentps"
        told = get_command(app).commands[command].make_context(command, rest).params
        assert (told["source"], told["out"]) == (Path("runs/memes"), Path("models/memes"))
        told = prepare_multi_gpu_env(given)
        sharded.append((told.get("ACCELERATE_USE_FSDP"), told.get("FSDP_VERSION")))
    assert sharded == [(None, None), ("true", "2"), ("true", "2")]
