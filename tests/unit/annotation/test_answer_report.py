"""Figures against scikit-learn's, and against counting by hand."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from selftrain.annotation.answer_report import NO_ANSWER, answer_metrics, mean_metrics

ANSWERS = ("a", "b", "c")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from([*ANSWERS, None])), min_size=1, max_size=60)
)
def test_figures_are_those_of_scikit_learn(drawn):
    found = answer_metrics(drawn, ANSWERS)
    kept = [(known, answer) for known, answer in drawn if answer is not None]
    if not kept:
        assert found is None
        return
    truth, said = zip(*kept, strict=True)
    assert (found.posts, found.answered) == (len(drawn), len(kept))
    assert found.missing == pytest.approx(1 - len(kept) / len(drawn))
    assert found.accuracy.value == pytest.approx(accuracy_score(truth, said))
    # to the last digit: of nothing right the lower end may be 3e-17
    assert found.accuracy.low - 1e-9 <= found.accuracy.value <= found.accuracy.high + 1e-9
    assert found.macro_f1 == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # answers that only the model gave
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, said))
    assert found.majority == pytest.approx(max(truth.count(a) for a in ANSWERS) / len(truth))
    matrix = confusion_matrix(truth, said, labels=ANSWERS)
    for i, known in enumerate(ANSWERS):
        assert [found.confusion[known][a] for a in ANSWERS] == matrix[i].tolist()
        assert found.confusion[known][NO_ANSWER] == drawn.count((known, None))


def test_a_known_case():
    # the interval by Wilson's formula: (8/10 + z2/20 +- z sqrt(.16/10 + z2/400)) / (1 + z2/10), z 1.96
    found = answer_metrics([("a", "a")] * 8 + [("b", "a")] * 2, ("a", "b"))
    assert found.accuracy == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert found.macro_f1 == pytest.approx((16 / 18 + 0) / 2)
    assert found.balanced_accuracy == 0.5


def test_nothing_known_is_no_figure():
    assert answer_metrics([], ANSWERS) is None
    assert mean_metrics([]) is None


def test_questions_count_the_same_in_the_mean():
    right = answer_metrics([("a", "a")] * 99, ANSWERS)
    wrong = answer_metrics([("a", "b"), ("a", None)], ANSWERS)
    averaged = mean_metrics([right, wrong])
    assert (averaged.accuracy, averaged.missing) == (0.5, 0.25)
