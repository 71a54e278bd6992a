"""Scores written and read back, the curves that follow from them, and bootstrap intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from class_helpers import both
from sklearn.metrics import confusion_matrix, f1_score

from selftrain.errors import RunStateError
from selftrain.models.metrics import counts_of, difference, estimates, precision_recall, reliability
from selftrain.rounds import SplitMetrics
from selftrain.store.scores import Scored, read_scores, write_scores

NAMES = ("ham", "spam")


def scored(labels, logits):
    ids = [f"p{i}" for i in range(len(labels))]
    return Scored(ids, np.array(labels, dtype=np.int8), both(logits))


def drawn(posts, seed, sharpness=1.5):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, posts)
    return scored(labels, (2 * labels - 1) * sharpness + random.normal(0, 2, posts))


def test_scores_come_back_as_they_were_written_validation_first(tmp_path):
    splits = {"test": drawn(5, 1), "validation": drawn(7, 2)}
    write_scores(tmp_path, splits, NAMES)
    back = read_scores(tmp_path, NAMES)
    assert list(back) == ["validation", "test"]
    for split, one in splits.items():
        assert back[split].ids == one.ids
        assert back[split].labels.tolist() == one.labels.tolist()
        assert back[split].logits == pytest.approx(one.logits, abs=1e-6)
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert set(first) == {"id", "split", "label", "predicted", "logits"}
    assert first["label"] in ("spam", "ham")


def test_a_round_without_scores_has_none_and_a_damaged_line_is_named(tmp_path):
    assert read_scores(tmp_path, NAMES) is None
    (tmp_path / "scores.jsonl").write_text(
        '{"id": "a", "split": "test", "label": "eggs", "logits": [0, 1]}\n'
    )
    with pytest.raises(RunStateError, match="eggs"):
        read_scores(tmp_path, NAMES)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="train"):
        write_scores(tmp_path, {"train": drawn(3, 0)}, NAMES)
    short = drawn(3, 0)._replace(ids=["p0"])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        write_scores(tmp_path, {"test": short}, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_a_perfect_order_has_average_precision_one_and_a_curve_that_rises_in_recall():
    curve = precision_recall(scored([0, 0, 1, 1], [-2, -1, 1, 2]))
    assert curve.average == 1.0
    assert list(curve.recall) == sorted(curve.recall)
    assert (curve.recall[0], curve.recall[-1]) == (0.0, 1.0)
    assert precision_recall(scored([1, 1], [0.1, 0.2])) is None


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = precision_recall(drawn(5000, 3))
    assert len(curve.recall) == len(curve.precision) <= 250
    assert (curve.recall[0], curve.recall[-1]) == (0.0, 1.0)


def test_reliability_counts_every_post_once_and_weighs_the_gap_by_posts():
    # three posts at .9 of which two are positive, one at .1 that is negative
    logit = float(np.log(9))
    found = reliability(scored([1, 1, 0, 0], [logit, logit, logit, -logit]))
    assert [one.posts for one in found.bins] == [1, 3]
    assert found.bins[1].confidence == pytest.approx(0.9, abs=1e-6)
    assert found.bins[1].accuracy == pytest.approx(2 / 3)
    assert found.ece == pytest.approx((1 * 0.1 + 3 * (0.9 - 2 / 3)) / 4, abs=1e-6)
    certain = reliability(scored([1, 0], [50, -50]))
    assert certain.bins[-1].high == 1.0
    assert certain.ece == pytest.approx(0, abs=1e-6)


def said(one):
    return (one.logits[:, 1] > 0).astype(int)


def confusion(one):
    counts = confusion_matrix(one.labels, said(one), labels=[0, 1])
    return SplitMetrics(len(one.labels), 0.0, 0.0, 0.0, 0.0, 0.0, counts.tolist())


def test_the_interval_is_that_of_a_bootstrap_over_posts():
    one = drawn(200, 4)
    found = estimates(counts_of(confusion(one)))["macro_f1"]
    random = np.random.default_rng(0)
    naive = []
    for _ in range(2000):
        chosen = random.integers(0, 200, 200)
        naive.append(f1_score(one.labels[chosen], said(one)[chosen], average="macro"))
    assert found.value == pytest.approx(f1_score(one.labels, said(one), average="macro"))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.012)


def test_draws_without_a_rare_class_say_nothing_of_it():
    found = estimates(np.diag([12, 9, 2]).ravel())
    assert {name: (one.low, one.high) for name, one in found.items()} == dict.fromkeys(found, (1.0, 1.0))


def test_more_posts_give_a_narrower_interval_and_none_is_refused():
    few, many = (estimates(counts_of(confusion(drawn(n, 5))))["accuracy"] for n in (60, 6000))
    assert many.high - many.low < (few.high - few.low) / 3
    with pytest.raises(ValueError, match="no post"):
        estimates(np.zeros(4, dtype=np.int64))


def test_a_paired_difference_is_narrower_than_two_intervals_suggest():
    first = drawn(400, 6)
    right = np.where(np.arange(400) < 20, (2 * first.labels - 1) * 5.0, first.logits[:, 1])
    better = first._replace(logits=both(right))
    gain = difference(first, better)
    alone = estimates(counts_of(confusion(first)))["macro_f1"]
    assert gain.value > 0
    assert gain.low >= 0  # no post became worse
    assert gain.high - gain.low < alone.high - alone.low
    assert difference(first, first) == (0.0, 0.0, 0.0)


def test_a_difference_follows_the_ids_and_needs_the_same_posts():
    first, second = drawn(50, 7), drawn(50, 7, sharpness=3)
    turned = Scored(second.ids[::-1], second.labels[::-1], second.logits[::-1])
    assert difference(first, turned) == difference(first, second)
    assert difference(first, drawn(49, 7)) is None
    assert difference(first, second._replace(ids=[f"q{i}" for i in range(50)])) is None
    assert difference(first, second._replace(labels=1 - second.labels)) is None
