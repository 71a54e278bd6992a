"""`python -m runs.bench probabilities`: does the posterior gain from how sure agents are, beside their words?

Agents that give probabilities, on real posts: a sentiment lexicon (VADER) and a profanity classifier, both
made on other data and both far from calibrated as judges of these classes; the offline agents; and a large
model's words beside the profanity classifier. The classifier is logistic regression on the features. What is
measured is the posterior itself on the whole pool: mean log-likelihood of the true label, AUC, accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agents.judgment import Judgment, State
from agents.offline.offline_agent import offline_agents
from runs.bench.judges import JudgedSet, Trial, find_sets, open_trial
from runs.bench.study import Figure, Figures, numbers
from selftrain.data.answer_files import read_answers
from selftrain.errors import DataError

if TYPE_CHECKING:
    from selftrain._util.types import FloatArray
    from selftrain.data.corpus import Corpus
    from selftrain.data.posts import Post
    from selftrain.verification.posterior import Beliefs

STUDY = "probabilities"
JSON = Path(__file__).parents[2] / "docs" / "benchmarks" / "probabilities.jsonl"
PANELS = ("vader+profanity", "profanity", "offline", "model+profanity")
METRICS = ("log_likelihood", "auc", "accuracy", "used")


class Answers(NamedTuple):
    """What one agent said of the labelled posts and of the pool."""

    labelled: list[Judgment]
    pool: list[Judgment]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the study of judges' sets")
    parser.add_argument("--sets", default="all", help="by commas (default: all)")
    parser.add_argument(
        "--n", type=numbers, default="50,100", help="numbers of labels, by commas (default: 50,100)"
    )
    parser.add_argument("--seeds", type=numbers, default="0..4", help="as 0..9, or by commas (default: 0..4)")
    parser.set_defaults(json=JSON)


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, and print the table."""
    from backbones import load_backbone

    backbone = load_backbone("minilm_efficientnet")
    for judged in find_sets(args.data, args.sets):
        probs = outside_probs(judged)
        for n in args.n:
            for seed in args.seeds:
                if figures.has(STUDY, f"{PANELS[-1]}: heard", n, seed, dataset=judged.name):
                    continue
                with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
                    trial = open_trial(judged, backbone, Path(folder), n=n, seed=seed, validation=0.0)
                figures.add([  # all at once: a seed that was cut off is measured again as a whole
                    Figure(STUDY, judged.name, name, n, seed, *one)
                    for name, values in measure(trial, probs)
                    for one in values.items()
                ])  # fmt: skip
    print("\n".join(table(figures, args.n)))


def outside_probs(judged: JudgedSet) -> dict[str, dict[str, float]]:
    """Return agent -> post id -> probability of the positive class, from two packages.

    Raises:
        DataError: A package is not installed.
    """
    try:
        from profanity_check import predict_prob
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise DataError(f"{error}: pip install --no-deps alt-profanity-check vaderSentiment") from error
    lexicon, texts = SentimentIntensityAnalyzer(), [post.text for post in judged.posts]
    values = {
        "vader": [(1 - lexicon.polarity_scores(text)["compound"]) / 2 for text in texts],
        "profanity": predict_prob(texts).tolist(),
    }
    ids = [post.id for post in judged.posts]
    return {name: dict(zip(ids, map(float, given), strict=True)) for name, given in values.items()}


def measure(trial: Trial, probs: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield panel and how it is heard, and its figures on the pool."""
    from selftrain.verification.posterior import beliefs_of, fit_posterior

    corpus = trial.corpus
    own, other = plain_classifier(corpus, trial.seed)
    labels, truth = corpus.labels[corpus.labelled].astype(np.int64), corpus.truth[corpus.pool]
    for panel, agents in panels(trial, probs):
        rows = [list(zip(*(part[k] for part in agents), strict=True)) for k in (0, 1)]
        whole = [beliefs_of(corpus.classes, *pair) for pair in ((own, rows[0]), (other, rows[1]))]
        for heard in ("words", "heard"):
            labelled, pool = (_heard(one, heard) for one in whole)
            found = fit_posterior(labelled, labels, pool, tuple(map(str, range(len(agents)))), 2)
            yield f"{panel}: {heard}", _figures(found.probs, truth, found.weights.grades)


def _heard(beliefs: Beliefs, heard: str) -> Beliefs:
    return beliefs._replace(stated=None) if heard == "words" else beliefs


def _figures(probs: FloatArray, truth: Any, grades: FloatArray) -> dict[str, float]:  # noqa: ANN401
    from sklearn.metrics import roc_auc_score

    right = probs[np.arange(len(truth)), truth]
    return {
        "log_likelihood": float(np.log(right).mean()),
        "auc": 100 * float(roc_auc_score(truth, probs[:, 1])),
        "accuracy": 100 * float((probs.argmax(1) == truth).mean()),
        "used": float((grades != 0).mean()),
    }


def plain_classifier(corpus: Corpus, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return log-probabilities of the labelled posts, out of fold, and of the pool."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, labels = corpus.rows(corpus.labelled), corpus.labels[corpus.labelled]
    model = LogisticRegression(C=10, max_iter=500)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    own = cross_val_predict(model, features, labels, cv=folds, method="predict_log_proba")
    return own, model.fit(features, labels).predict_log_proba(corpus.rows(corpus.pool))


def panels(trial: Trial, probs: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, Sequence[Answers]]]:
    """Yield name and agents."""
    corpus, task = trial.corpus, trial.judged.task
    labelled, pool = ([corpus.posts[i] for i in part] for part in (corpus.labelled, corpus.pool))

    def given(ask: Callable[[Post], Judgment]) -> Answers:
        return Answers([ask(post) for post in labelled], [ask(post) for post in pool])

    def outside(name: str) -> Answers:
        return given(lambda post: _judged(name, probs[name][post.id], corpus.classes))

    words = read_answers(trial.judged.agents[0], task.names)
    nothing = Judgment("model", 0, State.FAILED, None, None, "", "none")
    pair = offline_agents(task.names, seed=trial.seed)
    for agent in pair:
        agent.fit(labelled, pool=pool)
    profanity = outside("profanity")
    yield "vader+profanity", [outside("vader"), profanity]
    yield "profanity", [profanity]
    yield "offline", [Answers(one.predict_out_of_fold(labelled), one.judge(pool)) for one in pair]
    yield "model+profanity", [given(lambda post: words.get(post.id, nothing)), profanity]


def _judged(name: str, positive: float, classes: Sequence[str]) -> Judgment:
    label, sure = (classes[1], positive) if positive > 0.5 else (classes[0], 1 - positive)
    return Judgment(name, 0, State.LABEL, label, sure, "", name)


def table(figures: Figures, sizes: Sequence[int]) -> Iterator[str]:
    """Yield a line a panel: its figures by words alone, and what probabilities add, ± standard error."""
    for n in sizes:
        for panel in PANELS:
            yield f"n={n:<4} {panel:<16} " + "   ".join(
                f"{metric} {_compared(figures, panel, n, metric)}" for metric in METRICS
            )


def _compared(figures: Figures, panel: str, n: int, metric: str) -> str:
    words, heard = (
        {(f.dataset, f.seed): f.value for f in figures.figures
         if (f.method, f.n, f.metric) == (f"{panel}: {how}", n, metric)}
        for how in ("words", "heard")
    )  # fmt: skip
    added = [heard[key] - words[key] for key in words]
    if len(added) < 2:
        return "-"
    return f"{fmean(words.values()):.3f} {fmean(added):+.4f} ± {stdev(added) / len(added) ** 0.5:.4f}"
