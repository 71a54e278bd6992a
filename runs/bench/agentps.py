"""`python -m runs.bench agentps`: process supervision beside its ablations and controls.

memes    Hateful Memes, words alone, 4,000 posts to train on, 3,000 to test, no text in both
pairs    1,000 pairs of HSOL's tweets, "exactly one is offensive"
ordered  1,000 pairs, "the first is offensive and the second is not"
severity HarMeme, image and words, 2,000 posts; its process label is the severity
speed    prediction of agentps against vanilla; training against transformers' Trainer
padding  share of the tokens computed that pad, on any machine
served   scores with a vLLM server for the language model, against transformers (needs `make vllm`)
gpu      LLaVA-OneVision 0.5B, random weights, 16 pictures: posts a second, memory, share of the card's rate
reading  what reading such albums can feed, and their tokens, on any machine

memes, pairs and ordered are trained in every way of the table in docs/agentps.md: supervision, prompt and
place apart, questions as rounds, the final head fed, and process labels that are soft, wrong or missing.
Every figure is written as it comes, scores of the test posts are kept in the work folder, and what a way has
over vanilla and over agentps on the same posts is bootstrapped from them; a study that was stopped goes on
where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.paired import differences_table, over_posts, points_over
from runs.bench.study import Figure, Figures, numbers

if TYPE_CHECKING:
    from runs.bench.agentps_study import Drawn

STUDY = "agentps"
PARTS = ("pairs", "ordered", "memes", "severity", "speed", "padding", "served", "gpu", "reading")
ABLATION = ("vanilla", "vanilla, asked", "multitask", "multitask, asked", "agentps")
BESIDE = ("multitask, fed", "agentps, rounds", "agentps, fed")
LABELS = ("agentps, soft", "agentps, 20 % wrong", "agentps, 40 % wrong", "agentps, a quarter")
REPEATS = ("vanilla, again", "agentps, again")
DIVISORS = ("agentps, a quarter, by expected", "agentps, a quarter, by answers")
REFERENCES = ("vanilla", "agentps")
ENDS = ("", "_low", "_high")  # of an interval's figures
SHOWN = ("auc", "macro_f1", "f1_tuned", "recall_at_precision_60", "process_auc")


class Cells(NamedTuple):
    """What of one data set is measured: ways of `agentps_study.WAYS`, on n posts."""

    part: str
    dataset: str
    n: int
    ways: tuple[str, ...]


TRAINED = (
    Cells("pairs", "pairs, exactly one", 1000, (*ABLATION, *BESIDE, *LABELS, *DIVISORS)),
    Cells("ordered", "pairs, the first alone", 1000, (*ABLATION, *BESIDE)),
    Cells("memes", "hateful memes", 4000, (*ABLATION, *REPEATS, *BESIDE, *LABELS)),
    Cells("severity", "harmeme", 2000, ("vanilla", "multitask", "agentps")),
)
MEASURED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "speed": ("fhm_text", ("prediction", "training")),
    "padding": ("fhm_text", ("padding",)),
    "served": ("fhm_text", ("served",)),
    "gpu": ("drawn albums", ("llava-onevision 0.5B, random weights",)),
    "reading": ("drawn albums", ("reading, llava-onevision",)),
}
"""Part -> the data set that its figures are kept under, and what is measured once."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds fhm_text/, hsol/ and harmeme/"
    )
    parser.add_argument("--work", type=Path, required=True, help="where models in training are kept")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=numbers, default="0..4", help="as 0..4, or by commas (default: %(default)s)"
    )
    parser.add_argument("--ways", help="of the parts that train, by semicolons (default: all)")
    parser.add_argument("--n", type=int, help="posts to train on (default: those of the part)")
    parser.add_argument("--epochs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--base", default="smollm2_efficientnet",
        help="or qwen2.5-coder-0.5b, for words: its packages are named where they are missing",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what the file does not hold yet, and print the tables.

    Raises:
        DataError: A part or a way that does not exist.
    """
    from selftrain.errors import DataError

    wanted = args.parts.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        raise DataError(f"no parts {unknown}: expected some of {','.join(PARTS)}")
    for part in wanted:
        if part == "gpu" and (lacking := _no_gpu(args.device)):
            print(f"gpu: not measured, {lacking}", flush=True)
        elif part in MEASURED:
            dataset, methods = MEASURED[part]
            for method in methods:
                if not figures.has(STUDY, method, 0, 0, dataset=dataset):
                    values = _measure_once(part, method, args.data)
                    figures.add([Figure(STUDY, dataset, method, 0, 0, *item) for item in values.items()])
    trained = [cells for cells in chosen_cells(args) if cells.part in wanted]
    for cells in trained:
        for seed in args.seeds:
            _measure_seed(cells, seed, figures, args)
            _compare(cells, seed, figures, args)
            _choose_epochs(cells, seed, figures, args)
    print("\n".join(line for cells in trained for line in tables(figures, cells, args)))


def chosen_cells(args: argparse.Namespace) -> list[Cells]:
    """Return what is to be trained, after --n and --ways.

    Raises:
        DataError: A way that does not exist.
    """
    from selftrain.errors import DataError

    ways = [one.strip() for one in args.ways.split(";")] if args.ways else None
    known = {way for cells in TRAINED for way in cells.ways}
    if ways is not None and (unknown := sorted(set(ways) - known)):
        raise DataError(f"no ways {unknown}: expected some of {'; '.join(sorted(known))}")
    return [
        cells._replace(
            n=args.n or cells.n, ways=tuple(way for way in cells.ways if ways is None or way in ways)
        )
        for cells in TRAINED
    ]


def _named(way: str, args: argparse.Namespace) -> str:
    """Return the method under which figures are kept: with other epochs, base or precision it is another."""
    base = [] if args.base == "smollm2_efficientnet" else [Path(args.base).name]
    epochs = [] if args.epochs == 3 else [f"{args.epochs} epochs"]
    precision = [] if args.precision == "float32" else [args.precision]
    return ", ".join([way, *base, *epochs, *precision])


def _measure_seed(cells: Cells, seed: int, figures: Figures, args: argparse.Namespace) -> None:
    """Train every way of a data set on the posts of one seed, where it is not measured yet."""
    missing = [way for way in cells.ways if not _has(figures, _named(way, args), cells, seed)]
    if not missing:
        return
    from runs.bench.agentps_study import WAYS, Place, cell

    drawn = _draw(cells, seed, args.data)
    place = Place(args.work, args.epochs, cpu=args.device == "cpu", precision=args.precision)
    for way in missing:
        tested = cell(drawn, WAYS[way], args.base, seed, place)
        values, method = tested.figures, _named(way, args)
        kept = _scores_file(args.work, method, cells, seed)
        kept.parent.mkdir(exist_ok=True)
        np.savez(kept, **{name: part for name, part in tested._asdict().items() if name != "figures"})
        _keep(figures, method, cells, seed, values)
        told = ", ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
        print(f"{cells.dataset} n={cells.n} seed={seed} {method}: {told}", flush=True)


def _compare(cells: Cells, seed: int, figures: Figures, args: argparse.Namespace) -> None:
    """Measure each way against vanilla and agentps on the same test posts, where the scores are at hand.

    Of the epochs that were chosen, and of the last ones: what 300 posts choose is a draw of its own.
    """
    from runs.bench.agentps_epochs import LAST

    scores = {
        method: np.load(kept)
        for method in (_named(way, args) for way in cells.ways)
        if (kept := _scores_file(args.work, method, cells, seed)).exists()
    }
    vanilla, agentps = (_named(way, args) for way in REFERENCES)
    for method, reference, epoch in product(scores, (vanilla, agentps), ("", f", {LAST}")):
        over = f"{method} over {reference}{epoch}"
        if method in (vanilla, reference) or reference not in scores or _has(figures, over, cells, seed):
            continue
        truth = scores[method]["truth"]
        ours, theirs = (
            scores[one]["by_epoch"][-1] if epoch else scores[one]["scores"] for one in (method, reference)
        )
        values = {
            metric + end: value
            for metric, interval in over_posts(truth, ours, theirs).items()
            for end, value in zip(ENDS, interval, strict=True)
        }
        _keep(figures, over, cells, seed, values)


def _choose_epochs(cells: Cells, seed: int, figures: Figures, args: argparse.Namespace) -> None:
    """Measure what other rules for the epoch give, where the scores are at hand."""
    from runs.bench.agentps_epochs import LAST, choices

    for method in (_named(way, args) for way in cells.ways):
        kept = _scores_file(args.work, method, cells, seed)
        if kept.exists() and not _has(figures, f"{method}, {LAST}", cells, seed):
            arrays = np.load(kept)
            names = ("truth", "by_epoch", "validation_truth", "validation_by_epoch")
            for rule, values in choices(*(arrays[name] for name in names)):
                _keep(figures, f"{method}, {rule}", cells, seed, values)


def _scores_file(work: Path, method: str, cells: Cells, seed: int) -> Path:
    return work / "scores" / f"{cells.dataset}, {cells.n}, {seed}, {method}.npz"


def _has(figures: Figures, method: str, cells: Cells, seed: int) -> bool:
    return figures.has(STUDY, method, cells.n, seed, dataset=cells.dataset)


def _keep(figures: Figures, method: str, cells: Cells, seed: int, values: Mapping[str, float]) -> None:
    figures.add([Figure(STUDY, cells.dataset, method, cells.n, seed, *item) for item in values.items()])


def _draw(cells: Cells, seed: int, data: Path) -> Drawn:
    from runs.bench import agentps_study as study

    match cells.part:
        case "memes":
            return study.hateful_memes(cells.n, seed, data)
        case "severity":
            return study.harmeme(cells.n, seed, data)
        case _:
            task = study.EXACTLY_ONE if "exactly" in cells.dataset else study.FIRST_ALONE
            return study.pairs(task, cells.n, seed, data)


def _measure_once(part: str, method: str, data: Path) -> dict[str, float]:
    if part in ("gpu", "reading"):
        from runs.bench.agentps_gpu import on_cpu, on_gpu

        return on_gpu() if part == "gpu" else on_cpu()
    if part == "served":
        from runs.bench.agentps_served import served

        return served(data)
    from runs.bench import agentps_speed

    match method:
        case "prediction":
            return agentps_speed.prediction(data)
        case "padding":
            return agentps_speed.padding(data)
        case _:
            return agentps_speed.training()


def _no_gpu(device: str) -> str:
    """Return why nothing can be measured on a GPU; empty where it can."""
    import torch

    if device == "cpu":
        return "--device is cpu"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device here"


# ---- what is printed ------------------------------------------------------------------------------------


def tables(figures: Figures, cells: Cells, args: argparse.Namespace) -> Iterator[str]:
    """Yield a data set's table of means, and differences in points, paired by seed, with 95 % intervals."""
    methods = [_named(way, args) for way in cells.ways]
    measured = {
        method: {metric: _values(figures, cells, method, metric) for metric in SHOWN} for method in methods
    }
    measured = {method: metrics for method, metrics in measured.items() if metrics["auc"]}
    if not measured:
        return
    yield f"\n# {cells.dataset}, n = {cells.n}: mean ± sd over seeds"
    for method, metrics in measured.items():
        told = (f"{name} {_spread(values)}" for name, values in metrics.items() if values)
        yield f"{method:<{max(map(len, measured))}}  " + "  ".join(told)
    for metric in SHOWN[:4]:
        compared = {method: metrics[metric] for method, metrics in measured.items()}
        for reference in (_named(way, args) for way in REFERENCES):
            if reference in measured:
                yield f"\n# {cells.dataset}: points of {metric} over {reference}"
                yield from differences_table(compared, reference, [cells.dataset])
    yield from _epochs_table(figures, cells, methods)


def _epochs_table(figures: Figures, cells: Cells, methods: Sequence[str]) -> Iterator[str]:
    """Yield what each rule for the epoch loses against the best one in hindsight, over ways and seeds."""
    from runs.bench.agentps_epochs import BEST, METRICS, NAMES

    def values(rule: str, metric: str) -> dict[tuple[str, int], float]:
        found = {m: figures.values(f"{m}, {rule}", cells.n, metric, dataset=cells.dataset) for m in methods}
        return {(m, seed): value for m, by_seed in found.items() for seed, value in by_seed.items()}

    best = {metric: values(BEST, metric) for metric in METRICS}
    if not best["auc"]:
        return
    yield f"\n# {cells.dataset}: points below the best epoch, mean and worst of {len(best['auc'])} trainings"
    for rule in NAMES:
        lost = (points_over(best[metric], values(rule, metric)).values() for metric in METRICS)
        told = (
            f"{metric} {fmean(one):.2f} ({max(one):.2f})" for metric, one in zip(METRICS, lost, strict=True)
        )
        yield f"{rule:<{max(map(len, NAMES))}}  " + "  ".join(told)


def _spread(values: Mapping[tuple[str, int], float]) -> str:
    """Return the mean of what seeds gave, with its standard deviation where there are several."""
    drawn = list(values.values())
    spread = f" ± {stdev(drawn):.3f}" if len(drawn) > 1 else ""
    return f"{fmean(drawn):.3f}{spread} ({len(drawn)})"


def _values(figures: Figures, cells: Cells, method: str, metric: str) -> dict[tuple[str, int], float]:
    found = figures.values(method, cells.n, metric, dataset=cells.dataset)
    return {(cells.dataset, seed): value for seed, value in found.items()}
