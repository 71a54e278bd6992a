"""`act train`: what people said in a labelling's or a run's reviews trains a classifier that predicts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from act_helpers import NAMES
from test_labelling import data, labelled, review, truth_of  # noqa: F401 -- `data` is a fixture

from selftrain.act.error_estimate import realised
from selftrain.cli import main
from selftrain.data.posts import Post
from selftrain.errors import TrainingError
from selftrain.models.act_model import ACTModel
from selftrain.review.act_training import TrustedPosts, reviewed_labels, train_on_reviews
from selftrain.review.estimates import BatchOutcome
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.sampling import request_audit
from selftrain.serving.load_predictor import load_predictor
from selftrain.store.run_dir import RunFolder

SAMPLED = {"rule": "exponential", "floor": 0.2}


def manifest_of(path, names, places):
    rows = [{"id": f"v{i}", "text": f"{i} is {names[i % 3]}", "label": names[i % 3]} for i in places]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_outcome(human, inclusion, *, ids=("a", "b", "c", "d")):
    pi, delta = np.array(inclusion), np.array([one is not None for one in human])
    return BatchOutcome(ids, ("x",) * 4, tuple(human), np.full(4, 0.5), pi, delta, ("",) * 4)


def test_every_batch_counts_for_its_own_population_and_labelled_posts_for_themselves():
    first = some_outcome(("y", None, None, None), (0.5, 0.5, 0.5, 0.5))
    second = some_outcome((None, "x", None, None), (0.25, 0.25, 0.25, 0.25))
    posts = {name: Post(name, name) for name in "abcd"}
    trusted = TrustedPosts([Post("l", "l", label="y")], [Post("v", "v", label="x")], [], posts)
    found = reviewed_labels([first, second], trusted, {"d": "it cannot be read"})
    assert [post.id for post in found.posts] == ["a", "b", "c", "a", "b", "c", "l"]
    assert found.human == ["y", None, None, None, "x", None, "y"]
    assert found.machine == ["x"] * 6 + ["y"]
    # one of two that were drawn has an answer: it counts as drawn with half of pi
    assert found.inclusion == pytest.approx([0.25] * 3 + [0.25] * 3 + [1.0])
    assert realised(first.inclusion, first.reviewed) == pytest.approx([0.25] * 4)
    measured = trusted._replace(validation=[posts["a"]])
    assert "a" not in [post.id for post in reviewed_labels([first], measured, {}).posts]
    mixed = some_outcome(("y", None, None, None), (1.0, 1.0, 0.0, 0.0))
    assert reviewed_labels([mixed], trusted, {}).inclusion.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_a_labelling_of_three_classes_trains_a_model_that_scores_posts(data, tmp_path):  # noqa: F811
    labelled(data, **SAMPLED)
    with pytest.raises(TrainingError, match="nobody has labelled a post"):
        train_on_reviews(data / "labels", tmp_path / "model")
    review(data)
    found = train_on_reviews(
        data / "labels", tmp_path / "model",
        validation=manifest_of(data / "validation.jsonl", NAMES, range(100, 130)),
        test=manifest_of(data / "test.jsonl", NAMES, range(200, 218)),
    )  # fmt: skip
    assert (found.posts, found.human, found.unbiased) == (40, 14, True)  # 36 of the pool, 4 that had labels
    assert found.quality["validation"].macro_f1 > 0.9
    assert found.quality["test"].posts == 18
    record = json.loads((tmp_path / "model" / "act.json").read_text())
    assert record["quality"]["test"]["macro_f1"] == pytest.approx(found.quality["test"].macro_f1)
    predictor = load_predictor(tmp_path / "model")
    assert isinstance(predictor, ACTModel)
    posts = [Post(f"n{i}", f"{i} is {NAMES[i % 3]}") for i in range(300, 330)]
    right = [
        one.label == NAMES[i % 3] for i, one in zip(range(300, 330), predictor.predict(posts), strict=True)
    ]
    assert sum(right) > 27
    assert predictor.validation().labels.sum() == 10  # of the positive class
    assert truth_of("p1") == NAMES[1]


def test_one_id_in_two_manifests_is_one_post(data, tmp_path):  # noqa: F811
    labelled(data, **SAMPLED)
    review(data)
    validation = manifest_of(data / "validation.jsonl", NAMES, range(100, 130))
    other = validation.read_text().replace('"text": "1', '"text": "2')
    (data / "test.jsonl").write_text(other)
    with pytest.raises(TrainingError, match=r"id 'v100' is one post in one .* '100 is \w+' and '200 is"):
        train_on_reviews(data / "labels", tmp_path / "model", validation=validation, test=data / "test.jsonl")
    same = train_on_reviews(data / "labels", tmp_path / "model", validation=validation, test=validation)
    assert same.quality["test"] == same.quality["validation"]


def test_the_command_trains_and_predict_opens_what_it_wrote(data, capsys):  # noqa: F811
    labelled(data, **SAMPLED)
    review(data)
    validation = manifest_of(data / "validation.jsonl", NAMES, range(100, 130))
    model, out = data / "model", data / "predicted.jsonl"
    command = ["act", "train", str(data / "labels"), "--out", str(model), "--validation", str(validation)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert f"{model}: learned from 40 labels, 14 of them people's" in told
    assert "validation: 30 posts, macro-F1" in told
    assert f"next: selftrain predict {model}" in told
    more = manifest_of(data / "more.jsonl", NAMES, range(400, 412))
    assert main(["predict", str(model), str(more), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"v{i}" for i in range(400, 412)]
    assert sum(row["label"] == NAMES[int(row["id"][1:]) % 3] for row in rows) > 10
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4) for row in rows)


def test_the_command_takes_the_classifier_of_a_recipe(data):  # noqa: F811
    labelled(data, **SAMPLED)
    review(data)
    recipe, model = data / "recipe.toml", data / "model"
    recipe.write_text('[data]\nmanifest = "pool.jsonl"\ntask = "task.toml"\n')
    validation = manifest_of(data / "validation.jsonl", NAMES, range(100, 130))
    command = ["act", "train", str(data / "labels"), "--out", str(model), "--validation", str(validation)]
    assert main([*command, "--recipe", str(recipe), "--set", "classifier.epochs=3"]) == 0
    assert json.loads((model / "act.json").read_text())["curve"][-1]["epoch"] == 3


def test_a_run_trains_on_the_audit_of_its_pseudo_labels(small_run, tmp_path):
    run = RunFolder(shutil.copytree(small_run, tmp_path / "run"))
    with pytest.raises(Exception, match=LEDGER):
        train_on_reviews(run.path, tmp_path / "model")
    request_audit(run, budget=4)
    ledger = ReviewLedger(run.path / LEDGER)
    while (post := ledger.next_post("ann")) is not None:
        ledger.decide("ann", post.item.post_id, post.item.machine_label)
    ledger.close()
    found = train_on_reviews(run.path, tmp_path / "model")
    assert found.human > 4  # and the labelled posts
    assert found.unbiased
    assert found.quality["validation"].macro_f1 > 0.6
    assert set(load_predictor(tmp_path / "model").classes) == set(run.class_names())
