"""What a human budget buys on HSOL with the loop's own agents: they annotate, their disagreement criticizes.

Two ways to spend B posts, with reviewers simulated by the hidden labels:

    loop      the run itself: divergent posts are reviewed between its rounds and become labels
    act       after a run without people: all posts that it judged are annotated with what classifier and
              agents say together, B of them are reviewed, and a head for two classes learns with the ACT loss
              ("mixed": with cross-entropy on the mixed labels)

All labels, as both would have them: the act head on the true label of every post.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.act_simulation import LabelSet, labelled_set, trained_on
from runs.bench.annotation_quality import accuracy
from runs.bench.study import Figure, Figures
from selftrain._util.choices import Rule
from selftrain._util.types import FloatArray, IntArray
from selftrain.act.annotation_quality import abs_score
from selftrain.act.budget import inclusion, systematic_sample
from selftrain.models.metrics import macro_f1
from selftrain.store.run_dir import RunFolder

if TYPE_CHECKING:
    from selftrain.config import Recipe
    from selftrain.data.preparation import PreparedData

STUDY, DATASET = "act-loop", "hsol"
LABELLED = 100
BUDGETS = (0, 100, 250, 500, 1000, 2000, 4000)
LOOP_BUDGETS = (0, 100, 250, 500, 1000)
RULE: Rule = "exponential"
FLOOR = 0.1


class Judged(NamedTuple):
    """The posts that a run judged [M].

    Attributes:
        positions: In the corpus.
        machine, truth: Class indices, 1 positive.
        errors: e.
    """

    positions: IntArray
    machine: IntArray
    truth: IntArray
    errors: FloatArray


def measure(figures: Figures, data: Path, seeds: Sequence[int]) -> None:
    """All that `figures` lacks; what was measured is kept as it comes.

    Raises:
        DataError: HSOL is not below `data`.
    """
    from backbones import load_backbone
    from runs.bench.loop_study import HSOL, import_data, recipe_of
    from selftrain.config import load_recipe
    from selftrain.data.preparation import prepare

    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as temporary:
        home = Path(temporary)
        paths = import_data(HSOL, data, home)
        backbone = load_backbone("minilm_efficientnet")
        for seed in seeds:
            overrides = [*paths, f"seed={seed}", f"data.labelled={LABELLED}"]
            recipe = load_recipe(recipe_of(HSOL), overrides)
            prepared = prepare(recipe, backbone, progress=True)
            for method, budget, values in _seed(figures, recipe, prepared, home / f"seed{seed}", seed):
                figures.add([Figure(STUDY, DATASET, method, budget, seed, *one) for one in values.items()])
                told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
                print(f"{method} B={budget} seed={seed}: {told}", flush=True)


def _seed(
    figures: Figures, recipe: Recipe, prepared: PreparedData, home: Path, seed: int
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(method, budget, figures) of what is missing."""
    folder = home / "0"
    values = run_with_people(recipe, prepared, folder, 0)  # the other parts begin from this run
    if not figures.has(STUDY, "loop", 0, seed):
        yield "loop", 0, values
    for budget in LOOP_BUDGETS[1:]:
        if not figures.has(STUDY, "loop", budget, seed):
            yield "loop", budget, run_with_people(recipe, prepared, home / str(budget), budget)
    judged = judged_posts(RunFolder(folder), prepared)
    if not figures.has(STUDY, "criticizer", 0, seed):
        yield "criticizer", 0, _criticizer(judged)
    for budget in (*BUDGETS, len(judged.positions)):
        for method, labels in _label_sets(judged, budget, seed):
            # the last budget is everybody, and counted under one name whatever their number
            name, shown = ("all labels", 0) if budget == len(judged.positions) else (method, budget)
            if not figures.has(STUDY, name, shown, seed):
                yield name, shown, _trained(prepared, judged, labels, seed)
                if name == "all labels":
                    return


def run_with_people(recipe: Recipe, prepared: PreparedData, path: Path, budget: int) -> dict[str, float]:
    """The loop with reviewers who know the truth; figures of its best model on test."""
    from selftrain.build import build, build_settings, run_context
    from selftrain.loop import self_train
    from selftrain.review.ledger import ReviewLedger
    from selftrain.review.ledger_reader import LEDGER
    from selftrain.review.reviewers import HumanReview, LedgerReviewers, waiting_for

    corpus, folder = prepared.corpus, RunFolder(path)
    truth = {post.id: int(value) for post, value in zip(corpus.posts, corpus.truth, strict=True)}
    with folder.locked():
        classes = {"positive": corpus.positive, "all": list(corpus.shown)}
        environment = {"classes": classes, "identity": prepared.identity}
        folder.begin(recipe.model_dump(mode="json"), environment)
        asking = max(recipe.rounds.max - 1, 1)  # the rounds before which people are asked
        while True:
            parts, context = build(recipe), run_context(recipe, folder, prepared)
            per_round = max(math.ceil(budget / asking), 1)
            people = HumanReview(budget=budget, per_round=per_round, rule=RULE, floor=FLOOR)
            rounds = list(
                self_train(
                    corpus,
                    parts.in_run("classifier", context),
                    parts.in_run("panel", context),
                    selector=parts.selector,
                    loss=parts.loss,
                    folder=folder,
                    settings=build_settings(recipe),
                    rule=parts.rule,
                    reviewers=LedgerReviewers(folder, people, seed=recipe.seed),
                )
            )
            waiting = waiting_for(folder)
            if waiting is None or not waiting.open:
                break
            ledger = ReviewLedger(path / LEDGER)
            while (post := ledger.next_post("simulated")) is not None:
                label = corpus.classes[truth[post.item.post_id]]
                ledger.decide("simulated", post.item.post_id, label)
            ledger.close()
    best = [one for one in rounds if one.kept][-1]
    assert best.test is not None
    return {
        "macro_f1": best.test.macro_f1,
        "reviewed": float(0 if waiting is None else waiting.posts),
        "pseudo_label_precision": float(rounds[-1].pseudo_labels.precision or 0.0),
        "rounds": float(len(rounds) - 1),
    }


def judged_posts(folder: RunFolder, prepared: PreparedData) -> Judged:
    """Every post that the run judged, with its machine label and estimated error."""
    from selftrain.review.sampling import error_estimates
    from selftrain.rounds import replay

    corpus, (state, _) = prepared.corpus, replay(folder)
    accepted, disputed = state.last_verdicts_on(state.accepted), state.last_verdicts_on(state.disputed)
    labels = {post_id: last.verdict.classifier_label for post_id, last in accepted.items()}
    verdicts = [last.verdict for last in (accepted | disputed).values()]
    found = error_estimates(verdicts, corpus.shown, labels=labels)
    position_of = {corpus.posts[int(p)].id: int(p) for p in corpus.pool}
    positions = np.array([position_of[one.post_id] for one in found], dtype=np.int64)
    machine = np.array([one.label == corpus.positive for one in found], dtype=np.int64)
    truth = corpus.truth[positions].astype(np.int64)
    return Judged(positions, machine, truth, np.array([one.error for one in found]))


def _criticizer(judged: Judged) -> dict[str, float]:
    """How well disagreement finds the machine labels that are wrong."""
    from sklearn.metrics import roc_auc_score

    wrong = judged.machine != judged.truth
    return {
        "auc": float(roc_auc_score(wrong, judged.errors)),
        "abs": abs_score(wrong, judged.errors) or 0.0,
        "machine_accuracy": float(1.0 - wrong.mean()),
        "judged": float(len(wrong)),
    }


def _label_sets(judged: Judged, budget: int, seed: int) -> Iterator[tuple[str, LabelSet]]:
    pi = inclusion(judged.errors, budget, rule=RULE, floor=FLOOR, seed=seed)
    reviewed = np.zeros(len(pi), dtype=bool)
    reviewed[systematic_sample(pi, seed)] = True
    mixed = np.where(reviewed, judged.truth, judged.machine)
    yield "act mixed", labelled_set(mixed)
    if 0 < budget < len(pi):
        yield "act", LabelSet(judged.machine, judged.truth, reviewed, pi)


def _trained(prepared: PreparedData, judged: Judged, labels: LabelSet, seed: int) -> dict[str, float]:
    """Test figures of a head on the run's labels and the judged posts."""
    from selftrain.models.head import HeadSettings

    corpus = prepared.corpus
    assert corpus.table is not None
    given = corpus.labels[corpus.labelled].astype(np.int64)
    pairs = zip(labelled_set(given), labels, strict=True)
    whole = LabelSet(*(np.concatenate(pair) for pair in pairs))
    rows = corpus.rows(np.concatenate([corpus.labelled, judged.positions]))
    model = trained_on(
        whole, rows, corpus.rows(corpus.validation), corpus.labels[corpus.validation].astype(np.int64),
        classes=corpus.classes, layout=corpus.table.layout, settings=HeadSettings(), seed=seed,
    )  # fmt: skip
    truth = corpus.labels[corpus.test].astype(np.int64)
    predicted = model.predict(corpus.rows(corpus.test))
    return {"macro_f1": macro_f1(truth, predicted), "accuracy": accuracy(truth, predicted)}


def reaching_lines(figures: Figures) -> Iterator[str]:
    """The least measured budget whose mean quality is that of all labels, for each way."""
    from statistics import fmean

    everything = figures.values("all labels", 0, "macro_f1")
    if not everything:
        return
    goal = fmean(everything.values())
    yield f"{STUDY}: all labels {goal:.4f} macro-F1, mean of {len(everything)} seeds"
    for method in ("loop", "act", "act mixed"):
        found = sorted({f.n for f in figures.figures if f.study == STUDY and f.method == method})
        means = {n: fmean(figures.values(method, n, "macro_f1").values()) for n in found}
        reached = next((f"{n:,} posts" for n, mean in means.items() if mean >= goal), "no measured budget")
        told = ", ".join(f"{n}: {mean:.4f}" for n, mean in means.items())
        yield f"{STUDY}: {method} reaches it with {reached} ({told})"
