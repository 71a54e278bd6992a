"""What a human budget buys on TweetEval, and whether error estimates cover the truth (`runs.bench act`).

Annotator and criticizer are simulated, so that their accuracy and AUC are known; texts, features and the
model that is trained are real. The annotator's errors are spread evenly over the posts, or systematic: those
of a bag of words. Test is the published validation file, a tenth of the training file validates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runs.bench import act_coverage, act_loop, act_reviewers
from runs.bench.act_simulation import (
    LabelSet,
    annotated,
    annotated_like,
    criticized,
    labelled_set,
    trained_on,
)
from runs.bench.act_tables import gap_lines, mean_lines, order_lines
from runs.bench.annotation_quality import accuracy, chance_abs
from runs.bench.study import Figure, Figures, numbers
from selftrain._util.choices import Rule
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray
from selftrain.act.annotation_quality import abs_score, aqg_curve
from selftrain.act.budget import inclusion, systematic_sample
from selftrain.errors import DataError
from selftrain.models.head import HeadSettings
from selftrain.models.metrics import macro_f1

ACCURACIES = {"emotion": 0.82, "irony": 0.66}
"""Published accuracy of the annotator on each data set."""
AUCS = (0.75, 0.85)
BUFFER = 0.10
"""The published budget is the share of wrong labels and this much more."""
FLOOR = 0.2
VARIANTS: dict[str, tuple[Rule, float]] = {
    "normalised": ("normalised", 0.0),
    "exponential": ("exponential", 0.0),
    "threshold": ("threshold", 0.0),
    f"normalised floor={FLOOR:g}": ("normalised", FLOOR),
    f"exponential floor={FLOOR:g}": ("exponential", FLOOR),
}
"""Rule and floor; the first three are the published ones."""
HEADS = {"mlp": HeadSettings(), "linear": HeadSettings(kind="linear", epochs=60)}
"""The default head, and one without a draw in its training."""

MANNERS: dict[str, tuple[float, tuple[str, ...]]] = {
    "": (1.0, tuple(VARIANTS)),
    " timid": (0.25, ("normalised", "exponential", "threshold")),
}
"""How a criticizer speaks: as likely as it is, or with a quarter of the distance from the mean, as models do
that call every label about as doubtful; and the variants measured with it."""
ERRORS = {"spread": "", "systematic": " systematic"}
"""Kind of error -> what is added to a data set's name in the figures."""


class Tweets(NamedTuple):
    """One data set: feature rows [N, D] and labels [N] of both files.

    Attributes:
        texts, rows, labels: Of the training file.
        test_rows, test_labels: Of the validation file.
        classes: Names, in the order of the label numbers.
        layout: Of a row.
    """

    texts: tuple[str, ...]
    rows: Float32Array
    labels: IntArray
    test_rows: Float32Array
    test_labels: IntArray
    classes: tuple[str, ...]
    layout: Any


class Split(NamedTuple):
    """Positions in the training file: to train on [M], to validate on [V]."""

    train: IntArray
    validation: IntArray


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, help="folder that holds tweeteval/ and hsol/; not for coverage")
    parser.add_argument("--part", choices=("training", "coverage", "loop", "reviewers", "all"), default="all")
    parser.add_argument("--datasets", default=",".join(ACCURACIES), help="data sets, by commas")
    parser.add_argument("--errors", choices=ERRORS, nargs="*", default=list(ERRORS), help="the annotator's")
    parser.add_argument("--seeds", type=numbers, default="0,1,2,3,4", help="as 0..4, or by commas")
    parser.add_argument(
        "--reviews", type=int, default=act_coverage.REVIEWS, help="simulated reviews (default: %(default)s)"
    )
    parser.add_argument("--cache", type=Path, help="feature cache (default: the user's)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, and print the tables.

    Raises:
        DataError: The data is not there; the message says where to get it.
    """
    if args.part in ("training", "all"):
        for name in args.datasets.split(","):
            _training(figures, name, args)
    if args.part in ("coverage", "all"):
        act_coverage.measure(figures, AUCS, args.reviews)
    if args.part in ("loop", "all"):
        act_loop.measure(figures, args.data or Path(), args.seeds)
    if args.part in ("reviewers", "all"):
        act_reviewers.measure(figures)
    print("\n".join(figures.table()))
    print(
        "\n".join(
            [
                *gap_lines(figures),
                *mean_lines(figures),
                *order_lines(figures),
                *act_loop.reaching_lines(figures),
            ]
        )
    )


# ---- training on what a budget buys -----------------------------------------------------------------


def _training(figures: Figures, name: str, args: argparse.Namespace) -> None:
    if name not in ACCURACIES:
        raise DataError(f"no data set is called {name!r}: expected some of {', '.join(ACCURACIES)}")
    tweets = read_tweets(args.data, name, args.cache)
    for seed in args.seeds:
        for errors in args.errors:
            for part in measure(figures, tweets, name, seed, errors):
                figures.add(part)
            print(f"{name} seed {seed}, {errors} errors: done", flush=True)


def measure(
    figures: Figures, tweets: Tweets, dataset: str, seed: int, kind: str = "spread"
) -> Iterator[list[Figure]]:
    """What is missing of one data set and seed: every way to use the labels, and the criticizers' own."""
    split = split_of(tweets.labels, seed)
    truth = tweets.labels[split.train]
    rng = np.random.default_rng([seed, len(truth)])
    if kind == "systematic":
        texts = [tweets.texts[place] for place in split.train]
        machine = annotated_like(truth, bag_of_words(texts, truth, seed), ACCURACIES[dataset])
    else:
        machine = annotated(truth, len(tweets.classes), ACCURACIES[dataset], rng)
    name = dataset + ERRORS[kind]
    wrong = machine != truth
    budget = round((float(wrong.mean()) + BUFFER) * len(truth))

    def scored(method: str, labels: LabelSet) -> Iterator[list[Figure]]:
        for head, settings in HEADS.items():
            full = f"{name} {head} {method}"
            if not figures.has("act", full, budget, seed):
                values = _trained(tweets, split, labels, settings, seed)
                yield [Figure("act", name, full, budget, seed, *item) for item in values.items()]

    yield from scored("machine", labelled_set(machine))
    yield from scored("human", labelled_set(truth))
    for auc in AUCS:
        errors = criticized(wrong, auc, rng)
        method = f"{name} auc={auc:g} criticizer"
        if not figures.has("act", method, budget, seed):
            values = _criticizer(wrong, errors, budget)
            yield [Figure("act", name, method, budget, seed, *item) for item in values.items()]
        for manner, (width, variants) in MANNERS.items():
            stated = errors.mean() + width * (errors - errors.mean())
            for label in variants:
                rule, floor = VARIANTS[label]
                pi = inclusion(stated, budget, rule=rule, floor=floor, seed=seed)
                reviewed = np.zeros(len(truth), dtype=bool)
                reviewed[systematic_sample(pi, seed)] = True
                method = f"auc={auc:g}{manner} {label}"
                yield from scored(f"{method} ACT", LabelSet(machine, truth, reviewed, pi))
                # under the threshold rule the ACT loss is this already
                if rule != "threshold":
                    yield from scored(f"{method} mixed", labelled_set(np.where(reviewed, truth, machine)))


def _criticizer(wrong: BoolArray, errors: FloatArray, budget: int) -> dict[str, float]:
    return {
        "aqg": float(aqg_curve(wrong, errors)[budget]),
        "abs": abs_score(wrong, errors) or 0.0,
        "abs_of_chance": chance_abs(wrong) or 0.0,
        "machine_accuracy": float(1.0 - wrong.mean()),
    }


def _trained(
    tweets: Tweets, split: Split, labels: LabelSet, settings: HeadSettings, seed: int
) -> dict[str, float]:
    """Test figures of a head trained on `labels`."""
    model = trained_on(
        labels, tweets.rows[split.train], tweets.rows[split.validation], tweets.labels[split.validation],
        classes=tweets.classes, layout=tweets.layout, settings=settings, seed=seed,
    )  # fmt: skip
    predicted = model.predict(tweets.test_rows)
    return {
        "macro_f1": macro_f1(tweets.test_labels, predicted),
        "accuracy": accuracy(tweets.test_labels, predicted),
    }


def bag_of_words(texts: Sequence[str], labels: IntArray, seed: int) -> FloatArray:
    """Log-probabilities [N, K] of a naive Bayes model of words, each post scored by one that never saw it."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = make_pipeline(CountVectorizer(min_df=2), MultinomialNB())
    return np.asarray(
        cross_val_predict(model, list(texts), labels, cv=folds, method="predict_log_proba"), dtype=np.float64
    )


def split_of(labels: IntArray, seed: int) -> Split:
    """Nine tenths to train on, one to validate on, stratified."""
    from sklearn.model_selection import train_test_split

    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.1, random_state=seed, stratify=labels
    )
    return Split(np.sort(train), np.sort(validation))


def read_tweets(data: Path | None, name: str, cache: Path | None) -> Tweets:
    """A TweetEval data set with the features of the default backbone.

    Raises:
        DataError: The files are not there, or texts and labels differ in number.
    """
    from backbones import load_backbone
    from selftrain.config import BackboneSection
    from selftrain.data.features import extract_features
    from selftrain.data.posts import Post
    from selftrain.data.preparation import cache_folder

    folder = (data or Path()) / "tweeteval" / name
    if data is None or not (folder / "mapping.txt").exists():
        raise DataError(
            f"{folder} is not there: get it from github.com/cardiffnlp/tweeteval, and say with --data where"
            " tweeteval/ is"
        )
    texts, labels = zip(*(_file(folder, part) for part in ("train", "val")), strict=True)
    posts = [Post(f"{part}-{i}", text) for part, some in enumerate(texts) for i, text in enumerate(some)]
    table = extract_features(
        posts, load_backbone("minilm_efficientnet"), cache_folder(BackboneSection(cache=cache)), progress=True
    )
    rows = table.rows(np.arange(len(posts)))
    lines = (folder / "mapping.txt").read_text(encoding="utf-8").splitlines()
    classes = tuple(line.split("\t")[1] for line in lines if line.strip())
    n = len(texts[0])
    return Tweets(tuple(texts[0]), rows[:n], labels[0], rows[n:], labels[1], classes, table.layout)


def _file(folder: Path, part: str) -> tuple[list[str], IntArray]:
    texts = (folder / f"{part}_text.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    labels = np.array((folder / f"{part}_labels.txt").read_text().split(), dtype=np.int64)
    if len(texts) != len(labels):
        raise DataError(f"{folder}: {len(texts)} texts and {len(labels)} labels in {part}; expected as many")
    return texts, labels
