"""A trained model behind the contract of serving, and predictions of any number of posts."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from agentps_helpers import training_folder
from PIL import Image
from ray_helpers import across_processes

from selftrain.agentps.checkpoint import load
from selftrain.agentps.predict import predict
from selftrain.agentps.train import train_agentps
from selftrain.cli import main
from selftrain.data.posts import Post
from selftrain.engine.on_ray import OnRay
from selftrain.errors import ModelError, RunStateError
from selftrain.serving.load_predictor import load_predictor


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = training_folder(tmp_path_factory.mktemp("predictor"), frames=2)
    changes = [f'data.task="{place / "task.toml"}"', "training.epochs=1"]
    train_agentps(
        place / "posts.jsonl", place / "model", recipe=place / "recipe.toml", overrides=changes, bar=False
    )
    return place


@pytest.mark.parametrize("field", ["rank", "hidden"])
def test_settings_that_ask_for_more_than_the_weights_are_said(place, field, tmp_path):
    folder = shutil.copytree(place / "model", tmp_path / "model")
    (folder / "checksums.json").unlink()
    about = json.loads((folder / "agentps.json").read_text())
    about["architecture"][field] = 1 << 30
    (folder / "agentps.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"model\.safetensors holds adapters of rank \[4\]"):
        load(folder)


def test_a_model_is_a_scorer(place):
    predictor = load_predictor(place / "model")
    assert (predictor.kind, predictor.name, predictor.classes, predictor.positive) == (
        "agentps",
        "model",
        ("rude", "kind"),
        "rude",
    )
    posts = [
        Post("same", "awful day"),
        Post("same", "lovely day", (place / "red.png",)),
        Post("x", "", (place / "gone.png",)),
    ]
    found = predictor.predict(posts)
    assert [bool(one.reason) for one in found] == [False, False, True]
    assert "gone.png" in found[2].reason
    for one in found[:2]:
        assert one.probs[one.label] == max(one.probs.values())
        assert set(one.process) == {"insult", "tone"}
    by_command = place / "predicted.jsonl"
    assert (
        main(
            ["agentps", "predict", str(place / "model"), str(place / "posts.jsonl"), "--out", str(by_command)]
        )
        == 0
    )
    rows = {row["id"]: row for row in map(json.loads, by_command.read_text().splitlines())}
    manifest = map(json.loads, (place / "posts.jsonl").read_text().splitlines())
    given = [Post(r["id"], r["text"], tuple(place / one for one in r.get("images", []))) for r in manifest]
    for post, one in zip(given, predictor.predict(given), strict=True):
        assert one.probs == pytest.approx(rows[post.id]["probabilities"], abs=1e-4)


def test_the_common_command_predicts_with_it_too(place, tmp_path):
    model, manifest = str(place / "model"), str(place / "posts.jsonl")
    for command in (["predict"], ["agentps", "predict"]):
        assert main([*command, model, manifest, "--out", str(tmp_path / "-".join(command))]) == 0
    found, expected = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("predict", "agentps-predict")
    )
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
        assert set(one["process"]) == {"insult", "tone"}


def test_workers_get_the_same_model_and_give_the_same_bytes(place, tmp_path, monkeypatch):
    monkeypatch.setattr(OnRay, "map", across_processes)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # this process is none of theirs
    model, manifest = str(place / "model"), str(place / "posts.jsonl")
    found = set()
    for name, more in {"here": [], "there": ["--ray", "local"], "common": ["--ray", "local"]}.items():
        command = ["predict"] if name == "common" else ["agentps", "predict"]
        assert main([*command, model, manifest, "--out", str(tmp_path / name), *more]) == 0
        found.add((tmp_path / name).read_bytes())
    assert len(found) == 1
    assert found.pop().count(b"\n") == len((place / "posts.jsonl").read_text().splitlines())


def test_the_base_is_found_from_wherever_a_model_is_opened(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    words = ['data.task="task.toml"', 'model.base="base"', "training.epochs=1"]
    train_agentps("posts.jsonl", tmp_path / "model", recipe="recipe.toml", overrides=words, bar=False)
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path / "model").settings.base == str(place / "base")


def test_validation_scores_are_those_of_the_kept_epoch(place):
    validation = load_predictor(place / "model").validation()
    rows = [json.loads(line) for line in (place / "model" / "validation.jsonl").read_text().splitlines()]
    assert validation.labels.tolist() == [int(row["truth"]["final"] == "rude") for row in rows]
    assert validation.probs.tolist() == [row["probabilities"]["rude"] for row in rows]


def test_it_predicts_in_the_precision_that_its_thresholds_were_set_in(place, tmp_path):
    loaded = load(place / "model")
    assert loaded.about["precision"] == "float32"
    posts = [Post("a", "awful day"), Post("b", "lovely day", (place / "red.png",))]
    exact = [one.answers[-1] for one in predict(loaded, posts)]
    halved = loaded._replace(about=loaded.about | {"precision": "bfloat16"})
    rounded = [one.answers[-1] for one in predict(halved, posts)]
    assert not np.array_equal(exact, rounded)
    assert np.allclose(exact, rounded, atol=0.05)


def test_its_fingerprint_follows_its_weights(place, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(place / "model", copy)
    assert load(copy).fingerprint == load(place / "model").fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunStateError, match=r"model\.safetensors is damaged"):
        load(copy)
    (copy / "checksums.json").unlink()
    assert load(copy).fingerprint != load(place / "model").fingerprint


def test_an_album_of_no_and_of_forty_pictures(place, tmp_path):
    loaded = load(place / "model")
    pictures = []
    for i in range(40):
        pictures.append(tmp_path / f"{i}.png")
        Image.new("RGB", (30, 30), (6 * i, 0, 0)).save(pictures[-1])
    found = list(predict(loaded, [Post("none", "words"), Post("forty", "words", tuple(pictures))]))
    assert [one.reason for one in found] == ["", ""]
    assert not np.allclose(found[0].answers[-1], found[1].answers[-1])


def test_an_answer_is_the_same_to_the_bit_whatever_is_asked_beside_it(place):
    predictor = load_predictor(place / "model")
    texts = ["awful day", "lovely", "day " * 30, "awful " + "word " * 60, "", "Ünï 😀", "a lovely day " * 3]
    posts = [Post(f"t{n}", text) for n, text in enumerate(texts)]
    posts += [Post("p", "", (place / "red.png",)), Post("b", "awful", (place / "red.png",) * 3)]
    posts += [Post("x", "", (place / "gone.png",))]
    expected = {one.id: one for one in predictor.predict(posts)}
    for order in range(10):
        draw = random.Random(order)
        mixed = draw.sample(posts, draw.randint(1, len(posts)))
        cut = draw.randint(0, len(mixed))
        for part in (mixed[:cut], mixed[cut:]):
            assert [expected[post.id] for post in part] == predictor.predict(part)


def test_no_more_posts_are_read_ahead_than_a_few_batches(place):
    loaded, read, ahead = load(place / "model"), 0, []

    def source():
        nonlocal read
        for read in range(1, 401):
            yield Post(f"p{read}", f"day {read}")

    for given, one in enumerate(predict(loaded, source(), batch_size=4)):
        ahead.append(read - given)
        assert one.example.id == f"p{given + 1}"
    assert len(ahead) == 400
    assert max(ahead) <= 4 * 16


def test_labels_of_another_task_are_carried_not_judged(place):
    loaded = load(place / "model")
    [one] = predict(loaded, [Post("a", "awful", label="spam", process={"tone": "loud", "colour": "red"})])
    assert not one.reason
    assert not any(target.any() for target in one.example.targets)
