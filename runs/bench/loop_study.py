"""The loop against its baselines and its own parts: `python -m runs.bench hsol`, `harmeme`, `words`."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.study import Figure, Figures, named, numbers
from selftrain.config import Recipe, load_recipe
from selftrain.errors import DataError

if TYPE_CHECKING:
    from agents.panel import Panel
    from selftrain.data.preparation import PreparedData
    from selftrain.rounds import RoundResult, SetCounts

ABLATION: Mapping[str, tuple[str, ...]] = {
    "ours": (),
    "classifier_only": ("agents.kind=none",),
    "pn_instead_of_pnu": ("loss.form=pn",),
    # the magnitude of P is the weight of the unlabelled risk here; its sign says PU or NU
    "p=-0.1": ("loss.balance=-0.1", "loss.lambda_u=0.1"),
    "p=0": ("loss.balance=0.0",),
    "p=0.1": ("loss.balance=0.1", "loss.lambda_u=0.1"),
    "p=0.2": ("loss.balance=0.2", "loss.lambda_u=0.2"),
    "theta=0.5": ("loss.theta=0.5",),
    "form=convex": ("loss.form=convex",),
    "soft=0.67": ("loss.soft_positive=0.67",),
    "k=500": ("selection.k=500",),
    "article": (
        "verification.rule=unanimous",
        "selection.k=500",
        "loss.form=convex",
        "loss.theta=0.5",
        "loss.soft_positive=0.67",
    ),
    "posterior": ("verification.rule=posterior",),
    "one_agent": ("agents.count=1",),
    "no_quotas": ("selection.shares=any",),
    "best_start": ("rounds.start=best",),
    # independent errors: a ceiling
    "simulated_agents_95": ("agents.kind=simulated", "agents.accuracy=0.95", "agents.shared=0.0"),
    "simulated_agents_90": ("agents.kind=simulated", "agents.accuracy=0.9", "agents.shared=0.0"),
}
"""Method -> what it changes in the recipe; of the article's choices each by itself, and all of them.

Simulated agents know the truth: a ceiling, not a result.
"""


WHOLE = "whole_run"


class LoopStudy(NamedTuple):
    """One data set.

    Attributes:
        name: Of the data set's importer.
        source: Path below --data that the importer reads.
        where: What to say when the data is not there.
        sizes: Default numbers of labels.
        recipe: File name in runs/.
        most: Posts of each class that are used, drawn once; None: all.
    """

    name: str
    source: str
    where: str
    sizes: tuple[int, ...] = (100, 50)
    recipe: str = "hsol.toml"
    most: int | None = None


HSOL = LoopStudy(
    "hsol",
    "hsol/labeled_data.csv",
    "get labeled_data.csv from github.com/t-davidson/hate-speech-and-offensive-language",
)
HARMEME = LoopStudy(
    "harmeme",
    "harmeme",
    "get the Harm-C images and annotations that github.com/di-dimitrov/mmf points to",
    sizes=(100,),
    recipe="harmeme.toml",
)
WORDS = (
    LoopStudy("sentiment140", "sentiment140", "get Sentiment140's positive.txt and negative.txt", most=1000),
    LoopStudy(
        "hateful-memes",
        "fhm_text",
        "get the JSON lines of github.com/facebookresearch/fine_grained_hateful_memes",
        most=1000,
    ),
    LoopStudy(
        "tweeteval-offensive",
        "tweeteval/offensive",
        "clone github.com/cardiffnlp/tweeteval, and give `datasets`",
        most=1000,
    ),
)
STUDIES = {"hsol": (HSOL,), "harmeme": (HARMEME,), "words": WORDS}
"""Name -> its data sets."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every loop study has."""
    sources = "; ".join(f"{name}: {', '.join(one.source for one in sets)}" for name, sets in STUDIES.items())
    parser.add_argument(
        "--data", type=Path, required=True, help=f"folder that holds what a study reads: {sources}"
    )
    parser.add_argument("--n", type=numbers, help="numbers of labels (default: those of the data set)")
    parser.add_argument("--seeds", type=numbers, default="0,1,2,3,4", help="as 0..4, or by commas")
    parser.add_argument("--most", type=int, help="posts of each class that are used, drawn once")
    parser.add_argument(
        "--methods", default="ours", help=f"'ours', 'all', or some of {', '.join(ABLATION)}, by commas"
    )
    parser.add_argument(
        "--peers", default="all", help="names of baselines by commas; 'all': those that take seconds"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, and print the tables.

    Raises:
        DataError: The data is not there; the message says where to get it.
    """
    from runs.bench.baselines import BASELINES, ON_REQUEST, load_setfit

    methods = [
        *(BASELINES if args.peers == "all" else _known(args.peers, {**BASELINES, **ON_REQUEST})),
        *(ABLATION if args.methods == "all" else _known(args.methods, ABLATION)),
    ]
    if "setfit" in methods:
        load_setfit()  # what is missing is said before anything is prepared
    for study in STUDIES[args.study]:
        chosen = study if args.most is None else study._replace(most=args.most)
        _one_set(chosen, figures, methods, args)


def _known(names: str, known: Mapping[str, object]) -> list[str]:
    chosen = names.split(",")
    if unknown := sorted(set(chosen) - set(known)):
        raise DataError(f"no method is called {unknown}: expected some of {', '.join(known)}")
    return chosen


def _one_set(study: LoopStudy, figures: Figures, methods: Sequence[str], args: argparse.Namespace) -> None:
    sizes, seeds = args.n or study.sizes, args.seeds
    # with fewer posts, or another recipe, the same method is another
    changes = [*([] if args.most is None else [f"most={args.most}"]), *args.set]
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        overrides = [*import_data(study, args.data, Path(folder)), *args.set]
        for n in sizes:
            for seed in seeds:
                chosen = [*overrides, f"seed={seed}", f"data.labelled={n}"]
                _one_seed(
                    study,
                    figures,
                    methods,
                    n=n,
                    seed=seed,
                    overrides=chosen,
                    changes=changes,
                    folder=Path(folder),
                )
        whole = named(WHOLE, changes)
        of_its_own = study.name in (HSOL.name, HARMEME.name) and args.most is None
        if of_its_own and not figures.has(study.name, whole, sizes[0], seeds[0]):
            chosen = [*overrides, f"seed={seeds[0]}", f"data.labelled={sizes[0]}"]
            values = _whole_run(study, chosen, Path(folder))
            figures.add(
                [Figure(study.name, study.name, whole, sizes[0], seeds[0], *v) for v in values.items()]
            )
    print("\n".join(figures.table(study.name)))
    print("\n".join(gains(figures, study.name, sizes, named("ours", changes))))


def import_data(study: LoopStudy, data: Path, folder: Path) -> list[str]:
    """Import a data set into `folder`, and return the settings of a recipe that name it.

    Raises:
        DataError: It is not there; the message says where to get it.
    """
    from selftrain.data.importers import import_named

    source = data / study.source
    if not source.exists():
        raise DataError(f"{source} is not there: {study.where}, and say with --data where it is")
    imported = import_named(study.name, source, folder / "data", allow_missing_images=True)
    settings = [f"data.manifest={imported.manifest}", f"data.task={imported.task}", "data.split=shares"]
    if study.most is not None:
        cut(imported.manifest, study.most)
        # most of the pool, as on HSOL: 16 of 20 posts are train, some of them labelled or copies of others
        settings.append(f"selection.k={12 * study.most // 10}")
    return settings


def cut(manifest: Path, most: int) -> None:
    """Keep so many posts of each class, always the same ones."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").split("\n") if line]
    labels = np.array([row["label"] for row in rows])
    order = np.random.RandomState(0).permutation(len(rows))
    kept = sorted(place for name in np.unique(labels) for place in order[labels[order] == name][:most])
    manifest.write_text("".join(json.dumps(rows[place]) + "\n" for place in kept), encoding="utf-8")


def _one_seed(
    study: LoopStudy,
    figures: Figures,
    methods: Sequence[str],
    *,
    n: int,
    seed: int,
    overrides: Sequence[str],
    changes: Sequence[str],
    folder: Path,
) -> None:
    """All that is missing for one number of labels and one seed; `changes` are those that were asked for."""
    from runs.bench.baselines import BASELINES, ON_REQUEST

    wanted = [m for m in methods if not figures.has(study.name, named(m, changes), n, seed)]
    if not wanted:
        return
    from backbones import load_backbone
    from selftrain.data.preparation import prepare

    recipe = load_recipe(recipe_of(study), overrides)
    backbone = load_backbone("minilm_efficientnet")
    prepared = prepare(recipe, backbone, progress=True)

    def add(method: str, values: Mapping[str, float]) -> None:
        shown = named(method, changes)
        figures.add([Figure(study.name, study.name, shown, n, seed, *item) for item in values.items()])
        told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"n={n} seed={seed} {shown}: {told}", flush=True)

    peers = {**BASELINES, **ON_REQUEST}
    for method in wanted:
        if method in peers:
            add(method, peers[method](prepared.corpus, seed))
        else:
            changed = load_recipe(recipe_of(study), [*overrides, *ABLATION[method]])
            began = time.perf_counter()
            values = summarise(loop_rounds(changed, prepared, folder / "run"))
            add(method, values | {"seconds": time.perf_counter() - began})


def recipe_of(study: LoopStudy) -> Path:
    """The recipe beside the studies."""
    return Path(__file__).parents[1] / study.recipe


def loop_rounds(
    recipe: Recipe, prepared: PreparedData, folder: Path, agents: Panel | None = None
) -> list[RoundResult]:
    """Return all rounds of one run on extracted features, in a folder that is emptied first.

    `agents` judge in place of the recipe's.
    """
    from agents.ask.metering import Metered
    from selftrain.build import build, build_settings, run_context
    from selftrain.loop import self_train
    from selftrain.store.run_dir import RunFolder

    shutil.rmtree(folder, ignore_errors=True)
    parts = build(recipe)
    with RunFolder(folder).locked() as opened:
        context = run_context(recipe, opened, prepared)
        panel = parts.in_run("panel", context) if agents is None else agents
        try:
            return list(
                self_train(
                    prepared.corpus,
                    parts.in_run("classifier", context),
                    panel,
                    selector=parts.selector,
                    loss=parts.loss,
                    folder=opened,
                    settings=build_settings(recipe),
                    rule=parts.rule,
                )
            )
        finally:
            if agents is None and isinstance(panel, Metered):
                panel.close()


def summarise(rounds: Sequence[RoundResult]) -> dict[str, float]:
    """Return the figures of a run: its best round on test, its candidates, and the calls that they took."""
    best = [one for one in rounds if one.kept][-1]
    assert best.test is not None, "the studies have a test split"
    assert rounds[0].test is not None
    return {
        "macro_f1": best.test.macro_f1,
        "auc": 0.5 if best.test.auc is None else best.test.auc,
        "macro_f1_round_0": rounds[0].test.macro_f1,
        "precision_candidates": _pooled([one.sets.candidates for one in rounds]),
        "precision_consistent": _pooled([one.sets.consistent for one in rounds]),
        "grown": float(best.grown),
        "rounds": float(len(rounds) - 1),
        "rounds_kept": float(sum(one.kept for one in rounds) - 1),
        "asked": float(sum(one.sets.candidates.posts for one in rounds)),
        "calls": float(sum(one.cost.calls for one in rounds if one.cost is not None)),
    }


def _pooled(sets: Sequence[SetCounts]) -> float:
    """Precision over the rounds' sets together, each weighted by its size; 0 without any post."""
    right = sum(one.posts * (one.precision or 0.0) for one in sets)
    return right / max(sum(one.posts for one in sets), 1)


def gains(figures: Figures, name: str, sizes: Sequence[int], reference: str = "ours") -> Iterator[str]:
    """Paired differences in points on a data set, over the seeds that both have: mean ± sd."""
    from statistics import fmean, stdev

    methods = dict.fromkeys(f.method for f in figures.figures if f.metric == "macro_f1")
    for n in sizes:
        ours = figures.values(reference, n, "macro_f1", dataset=name)
        for other in (m for m in methods if m != reference):
            theirs = figures.values(other, n, "macro_f1", dataset=name)
            pairs = [100 * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
            if len(pairs) > 1:
                yield f"n={n:<6} {reference} - {other:<28} {fmean(pairs):+.2f} ± {stdev(pairs):.2f} points"


def _whole_run(study: LoopStudy, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds and peak resident megabytes of one `selftrain run` in a process of its own, features cached."""
    settings = [part for override in overrides for part in ("--set", override)]
    recipe, out = str(recipe_of(study)), str(folder / "whole")
    command = [sys.executable, "-m", "selftrain", "run", recipe, "--out", out]
    began = time.perf_counter()
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return {
        "seconds": time.perf_counter() - began,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
