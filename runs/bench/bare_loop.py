"""The loop beside scikit-learn's SelfTrainingClassifier: what `runs.bench bare` measures of it.

That is what a reader would otherwise take: a logistic regression on the same cached rows labels as many posts
in as many rounds, and believes itself. It asks nobody, leaves nobody out and writes nothing, so it is a floor
and no peer; how good either is stands in the tables of HSOL and others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from runs.bench import pools
from runs.bench.loop_study import loop_rounds
from selftrain.config import load_recipe
from selftrain.data.corpus import Corpus
from selftrain.data.preparation import PreparedData, prepare
from selftrain.models.pretrained import build_backbone
from selftrain.rounds import RoundResult

LABELLED, ROUNDS = 100, 3
TRAIN = 0.8
RECIPE = f"""
[data]
manifest = "posts.jsonl"
task = "task.toml"
train_share = {TRAIN}
validation_share = 0.1
test_share = 0.1
labelled = {LABELLED}
[backbone]
kind = "runs.bench.pools:WordCounts"
cache = "cache"
[rounds]
max = {ROUNDS}
patience = {ROUNDS}
"""


class _Looped(NamedTuple):
    """Seconds of the processor that a loop took, and the share of its time between questions and verdicts."""

    seconds: float
    verifying: float


def looped(folder: Path, pool: int, seed: int) -> dict[str, float]:
    """Return seconds of the processor that a loop over so many pool posts takes, and over scikit-learn's.

    Half of the pool is learned from in the end; features are there before. Twice: with agents drawn from
    the truth, who answer at once and are weighed by a posterior as language models are; and with the offline
    ones, who are trained in every round, and are told apart. scikit-learn's is the median of three, in turns.
    """
    place = folder / f"pool-{pool}"
    if not place.exists():
        place.mkdir()
        pools.write_posts(place, 0, labelled=round((pool + LABELLED) / TRAIN))
        (place / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    chosen = pool // (2 * ROUNDS)
    settings = [f"seed={seed}", f"selection.k={chosen}"]
    recipe = load_recipe(place / "recipe.toml", settings)
    prepared = prepare(recipe, build_backbone(recipe))
    bare, found = [_bare(prepared.corpus, chosen)], []
    for kind in ("simulated", "offline"):
        found.append(_ours(place, prepared, [*settings, f"agents.kind={kind}"]))
        bare.append(_bare(prepared.corpus, chosen))
    (at_once, offline), floor = found, median(bare)
    return {
        "cpu_seconds": at_once.seconds,
        "cpu_seconds, bare": floor,
        "time ratio": at_once.seconds / floor,
        "time ratio, offline agents": offline.seconds / floor,
        "time ratio, offline agents left out": offline.seconds * (1 - offline.verifying) / floor,
    }


def _ours(place: Path, prepared: PreparedData, settings: Sequence[str]) -> _Looped:
    recipe = load_recipe(place / "recipe.toml", settings)
    began, used = time.perf_counter(), time.process_time()
    rounds: list[RoundResult] = loop_rounds(recipe, prepared, place / "run")
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    if len(rounds) != ROUNDS + 1:
        raise AssertionError(f"{len(rounds) - 1} rounds, expected {ROUNDS} as the other has")
    stages = [stage for one in rounds for stage in one.stages]
    verifying = sum(stage.seconds for stage in stages if stage.stage == "verify")
    return _Looped(cpu_seconds, verifying / seconds)


def _bare(corpus: Corpus, chosen: int) -> float:
    """Return seconds of the processor of scikit-learn's: rows read, labels guessed, all others scored."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    base = LogisticRegression(C=10, max_iter=1000)
    model = SelfTrainingClassifier(base, criterion="k_best", k_best=chosen, max_iter=ROUNDS)
    text = pools.WordCounts.layout.text
    learned = np.concatenate([corpus.labelled, corpus.pool])
    scored = np.concatenate([corpus.validation, corpus.test])
    began = time.process_time()
    model.fit(corpus.rows(learned)[:, text], corpus.labels[learned])
    model.predict_proba(corpus.rows(scored)[:, text])
    seconds = time.process_time() - began
    if model.n_iter_ != ROUNDS:
        raise AssertionError(f"{model.n_iter_} rounds of scikit-learn's, expected {ROUNDS}")
    return seconds
