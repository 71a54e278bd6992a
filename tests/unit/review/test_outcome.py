"""From a ledger to arrays and estimates; from verdicts to error estimates."""

from __future__ import annotations

import pytest

from agents.judgment import Judgment, State, Verdict
from selftrain.act.error_estimate import label_error
from selftrain.errors import BudgetError, EstimateError
from selftrain.review.estimates import label_errors, outcome
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import UNSURE, ReviewItem
from selftrain.review.sampling import error_estimates

CLASSES = ("rude", "kind")


@pytest.fixture
def ledger(tmp_path):
    ledger = ReviewLedger.create(tmp_path / "review.sqlite", classes=CLASSES, budget=8)
    posts = [
        ReviewItem(f"p{i}", CLASSES[i % 2], None if i == 9 else i / 10, 0.4, f"round {i // 5}")
        for i in range(10)
    ]
    ledger.add("a", posts, ["p3", "p0", "p8", "p5"])
    ledger.add("b", [ReviewItem("p1", "kind", 0.2, 0.5), ReviewItem("q", "rude", 0.2, 0.5)], ["p1"])
    return ledger


def review(ledger, *labels):
    for label in labels:
        ledger.decide("ann", ledger.next_post("ann").item.post_id, label)


def test_a_batch_becomes_arrays(ledger):
    review(ledger, "rude", "rude", UNSURE, "kind", "rude")  # p3, p0, p8, p5, and p1 of the other batch
    found = outcome(ledger, "a")
    assert found.post_ids == tuple(f"p{i}" for i in range(10))
    assert [(i, h) for i, h in enumerate(found.human) if h] == [(0, "rude"), (3, "rude"), (5, "kind")]
    assert found.reviewed.nonzero()[0].tolist() == [0, 3, 5]  # p1's label belongs to another sample
    assert found.wrong.nonzero()[0].tolist() == [3]
    assert found.labels[3:6] == ("rude", "rude", "kind")
    assert found.errors[9] == pytest.approx(sum(range(9)) / 90)
    assert outcome(ledger, "b").human == ("rude", None)


def test_estimates_by_class_and_part(ledger):
    review(ledger, "rude", "rude", "rude", "kind")
    found = outcome(ledger, "a")
    errors = label_errors(found)
    assert errors.all == label_error(found.errors, found.inclusion, found.reviewed, found.wrong)
    assert list(errors.by_class) == ["rude", "kind"]
    assert list(errors.by_part) == ["round 0", "round 1"]
    assert [errors.by_part[name].reviewed for name in errors.by_part] == [2, 2]
    assert errors.by_class["kind"].wrong == 1  # p3
    assert errors.to_json()["after_correction"]["wrong"] == 0
    review(ledger, "rude")
    assert label_errors(outcome(ledger, "b")).by_part == {}


def test_nothing_is_estimated_from_nothing(ledger):
    with pytest.raises(EstimateError, match="none of 10"):
        label_errors(outcome(ledger, "a"))


# ---------------------------------------------------------------- disagreement


def judgment(agent, label, probability=None, *, step=0, details=None):
    state = State.ABSTAIN if label is None else State.LABEL
    return Judgment(agent, step, state, label, probability, "seen", "fake", details or {})


def verdict(label, probability, *judgments, post_id="p"):
    return Verdict(post_id, label, probability, judgments)


def test_the_label_is_the_voices_and_the_error_what_they_leave():
    record = verdict("rude", 0.6, judgment("reviewer", "kind", 0.9), judgment("user", "kind", 0.8))
    (found,) = error_estimates([record], CLASSES)
    assert found.label == "kind"
    assert found.error == pytest.approx(1 - (0.4 + 0.9 + 0.8) / 3)


def test_the_last_judgment_counts_and_who_says_nothing_says_nothing():
    record = verdict(
        "rude", 0.9, judgment("user", "kind", 0.9), judgment("user", "rude", 0.7, step=1),
        judgment("reviewer", None),
    )  # fmt: skip
    (found,) = error_estimates([record], CLASSES)
    assert (found.label, found.error) == ("rude", pytest.approx(1 - (0.9 + 0.7 + 0.5) / 3))


def test_stated_probabilities_of_more_classes_are_used_and_others_shared_out():
    classes = ("a", "b", "c")
    stated = {"probabilities": {"a": 0.1, "b": 0.8, "c": 0.1}}
    record = verdict("a", 0.6, judgment("x", "b", 0.8, details=stated), judgment("y", "b"))
    (found,) = error_estimates([record], classes)
    assert (found.label, found.error) == ("b", pytest.approx(1 - (0.2 + 0.8 + 1.0) / 3))
    (asked,) = error_estimates([record], classes, labels={"p": "a"})
    assert (asked.label, asked.error) == ("a", pytest.approx(1 - (0.6 + 0.1 + 0.0) / 3))


def test_agreement_is_less_suspicious_than_disagreement():
    agreed = verdict(
        "rude", 0.9, judgment("reviewer", "rude", 0.9), judgment("user", "rude", 0.9), post_id="a"
    )
    split = verdict(
        "rude", 0.9, judgment("reviewer", "kind", 0.9), judgment("user", "rude", 0.9), post_id="b"
    )
    first, second = error_estimates([agreed, split], CLASSES)
    assert first.error < 0.15
    assert second.error > 0.3


@pytest.mark.parametrize("record", [verdict("loud", 0.9), verdict("rude", 0.9, judgment("user", "loud"))])
def test_a_class_that_the_task_does_not_have_is_refused(record):
    with pytest.raises(BudgetError, match="loud"):
        error_estimates([record], CLASSES)


def test_a_label_asked_for_must_be_a_class():
    with pytest.raises(BudgetError, match="loud"):
        error_estimates([verdict("rude", 0.9)], CLASSES, labels={"p": "loud"})


def test_the_likeliest_errors_alone_are_no_sample(tmp_path):
    ledger = ReviewLedger.create(tmp_path / "review.sqlite", classes=CLASSES, budget=3)
    posts = [ReviewItem(f"p{i}", "rude", 1 - i / 10, 0.5) for i in range(6)]
    ledger.add("a", posts, ["p0", "p2", "p3"], likeliest_first=True)
    review(ledger, "kind", UNSURE)
    with pytest.raises(EstimateError, match=r"1 have a human label, the likeliest errors.*Finish"):
        label_errors(outcome(ReviewLedger(ledger.path), "a"))
    review(ledger, "rude")  # now the sample is the one that was drawn, in whatever order
    assert label_errors(outcome(ledger, "a")).all.reviewed == 2
