"""Simulated annotators and criticizers are what they claim; the study measures and goes on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from backbones.base import FeatureLayout
from runs.bench.act import MANNERS, VARIANTS, Tweets, bag_of_words, measure, split_of
from runs.bench.act_coverage import coverage
from runs.bench.act_simulation import annotated, annotated_like, criticized, simulated_population
from runs.bench.act_tables import gap_lines, mean_lines, order_lines
from runs.bench.study import Figure, Figures
from selftrain.errors import BudgetError


@pytest.mark.parametrize("auc", [0.6, 0.75, 0.85])
def test_a_simulated_criticizer_has_its_auc_and_is_calibrated(auc):
    wrong, errors = simulated_population(40_000, rate=0.2, auc=auc, seed=0)
    assert roc_auc_score(wrong, errors) == pytest.approx(auc, abs=0.01)
    assert errors.mean() == pytest.approx(0.2, abs=0.01)
    suspicious = errors > 0.3
    assert wrong[suspicious].mean() == pytest.approx(errors[suspicious].mean(), abs=0.03)


def test_a_simulated_annotator_errs_as_often_as_it_claims_and_everywhere():
    labels = np.arange(9000) % 4
    machine = annotated(labels, 4, 0.82, np.random.default_rng(0))
    assert (machine == labels).mean() == pytest.approx(0.82, abs=1e-4)
    taken = (machine - labels)[machine != labels] % 4
    assert np.bincount(taken, minlength=4)[1:] / len(taken) == pytest.approx([1 / 3] * 3, abs=0.05)
    assert set(machine) == {0, 1, 2, 3}


def test_a_systematic_annotator_errs_where_the_weak_model_does_and_as_it_does():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9], [0.4, 0.6, 0.0]])
    labels = np.array([0, 0, 0, 2, 0])
    assert annotated_like(labels, scores, 0.8).tolist() == [0, 0, 1, 2, 0]  # 0.7 behind
    assert annotated_like(labels, scores, 0.4).tolist() == [0, 2, 1, 2, 1]
    assert annotated_like(labels, scores, 0.0).tolist() == [1, 2, 1, 1, 1]  # even where it is right


def test_a_bag_of_words_errs_on_words_that_mislead_it():
    texts = ("good fine day",) * 40 + ("bad awful day",) * 40 + ("good fine day",) * 4
    labels = np.array([0] * 40 + [1] * 44)
    machine = annotated_like(labels, bag_of_words(texts, labels, 0), 80 / 84)
    assert np.flatnonzero(machine != labels).tolist() == [80, 81, 82, 83]


@pytest.mark.parametrize("scores", [np.zeros((2, 3)), np.zeros(3), np.zeros((3, 2)), np.full((3, 3), np.nan)])
def test_scores_that_fit_no_labels_are_refused(scores):
    with pytest.raises(BudgetError, match="scores"):
        annotated_like(np.array([0, 1, 2]), scores, 0.5)


def test_what_cannot_be_simulated_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(BudgetError):
        annotated(np.zeros(3, dtype=np.int64), 1, 0.5, rng)
    with pytest.raises(BudgetError):
        annotated(np.zeros(3, dtype=np.int64), 2, 1.5, rng)
    with pytest.raises(BudgetError):
        criticized(np.array([True, False]), 1.0, rng)


def test_the_study_of_coverage_gives_its_figures():
    values = coverage(0.1, 0.75, "normalised", 40)
    assert values["reviews"] == 40
    assert 0.8 < values["coverage"] <= 1
    assert 0.03 < values["width"] < 0.3
    assert abs(values["bias"]) < 0.03


@pytest.fixture
def tweets():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    rows = np.concatenate(
        [np.eye(4)[labels] + 0.3 * rng.standard_normal((500, 4)), np.ones((500, 2))], axis=1
    )
    rows = rows.astype(np.float32)
    texts = tuple(f"{'abcd'[label]}bout this and that" for label in labels[:400])
    return Tweets(
        texts, rows[:400], labels[:400], rows[400:], labels[400:], tuple("abcd"), FeatureLayout(4, 0)
    )


@pytest.mark.parametrize("kind", ["spread", "systematic"])
def test_the_study_of_training_measures_every_way_once(tweets, tmp_path, kind):
    figures = Figures(tmp_path / "act.jsonl")
    for part in measure(figures, tweets, "emotion", 0, kind):
        figures.add(part)
    ways = {f.method for f in figures.figures}
    variants = [VARIANTS[name] for _, names in MANNERS.values() for name in names]
    mixed = sum(rule != "threshold" for rule, _ in variants)
    assert len(ways) == 2 * (2 + 2 * (len(variants) + mixed)) + 2
    assert {f.n for f in figures.figures} == {round((65 / 360 + 0.1) * 360)}  # 18 % of 360 wrong, and a tenth
    assert list(measure(Figures(tmp_path / "act.jsonl"), tweets, "emotion", 0, kind)) == []
    name = "emotion" if kind == "spread" else "emotion systematic"
    values = figures.values(f"{name} linear human", 101, "macro_f1")
    assert values[0] > 0.8
    assert values[0] > figures.values(f"{name} linear machine", 101, "macro_f1")[0] - 0.05
    assert list(gap_lines(figures)) == []  # one seed has no spread


def test_rules_are_compared_seed_by_seed_within_each_kind_of_annotator(tmp_path):
    figures = Figures(tmp_path / "act.jsonl")
    scores = {
        "emotion mlp human": (0.80, 0.90),
        "emotion mlp auc=0.75 normalised ACT": (0.70, 0.82),
        "emotion mlp auc=0.75 exponential ACT": (0.72, 0.86),
        "emotion mlp auc=0.75 timid exponential ACT": (0.10, 0.10),
        "emotion systematic mlp human": (0.80, 0.90),
        "emotion systematic mlp auc=0.75 exponential ACT": (0.79, 0.89),
    }
    for method, values in scores.items():
        dataset = "emotion systematic" if "systematic" in method else "emotion"
        for seed, value in enumerate(values):
            figures.add([Figure("act", dataset, method, 100, seed, "macro_f1", value)])
    lines = list(order_lines(figures))
    assert lines[:2] == [
        "errors spread, criticizer calibrated",
        "  exponential ACT over normalised ACT: +3.00 points, standard error 1.00, ahead in 1 of 1 cells",
    ]
    assert "  exponential ACT: under 2 points below human labels in 0 of 1 cells" in lines
    assert list(mean_lines(figures)) == [
        "emotion              exponential ACT    6.0 points below human labels, 2 trainings",
        "emotion              normalised ACT     9.0 points below human labels, 2 trainings",
        "emotion systematic   exponential ACT    1.0 points below human labels, 2 trainings",
    ]
    systematic = lines.index("errors systematic, criticizer calibrated")
    assert lines[systematic + 1] == "  exponential ACT: under 2 points below human labels in 1 of 1 cells"
    assert "emotion mlp auc=0.75 exponential ACT             +6.00 ± 2.83 points" in "\n".join(
        gap_lines(figures)
    )


def test_a_split_is_stratified_and_the_seeds():
    labels = np.array([0] * 80 + [1] * 20)
    split = split_of(labels, 1)
    assert len(split.train) == 90
    assert labels[split.validation].sum() == 2
    assert set(split.train) | set(split.validation) == set(range(100))
    assert split_of(labels, 1).validation.tolist() == split.validation.tolist()
