"""`python -m runs.bench agentps`: process supervision beside its ablations, on smollm2_efficientnet.

text     Hateful Memes, words alone, 1,000 posts a seed: vanilla, multitask, agentps
sizes    the same on 250 posts, and on 4,000 (one seed)
noise    agentps with 20 % and 40 % of its process labels flipped
composed pairs of HSOL's tweets, "exactly one is offensive": --pairs of them, vanilla, multitask, agentps
divisor  agentps on such pairs, a quarter of which have process answers, by what their loss is divided by
images   HarMeme: image and words against words alone
speed    prediction of agentps against vanilla; training against transformers' Trainer
served   scores with a vLLM server for the language model, against transformers (needs `make vllm`)
gpu      LLaVA-OneVision 0.5B, random weights, 16 pictures: posts a second, memory, share of the card's rate

Every figure is written as it comes; a study that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from runs.bench.study import Figure, Figures
from selftrain.agentps.recipe import Divisor

STUDY = "agentps"
PARTS = ("text", "sizes", "noise", "composed", "divisor", "images", "speed", "served", "gpu")
SIZES, FLIPPED = (250, 1000, 4000), (20, 40)
SHOWN = ("f1", "f1_tuned", "auc", "recall_at_precision_60")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the study's options."""
    parser = subparsers.add_parser(
        "agentps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds fhm_text/, hsol/ and harmeme/"
    )
    parser.add_argument("--work", type=Path, required=True, help="where models in training are kept")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=1000, help="of composed (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--json", type=Path, help="append the figures to this file, and go on from it")


def run(args: argparse.Namespace) -> int:
    """Measures what the file does not hold yet, and prints the table.

    Raises:
        SelftrainError: No data, or a part that does not exist.
    """
    from selftrain.errors import SelftrainError

    wanted = args.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise SelftrainError(f"no parts {unknown}: expected some of {','.join(PARTS)}")
    figures = Figures(args.json)
    for part in wanted:
        if part == "gpu" and (lacking := _no_gpu(args.device)):
            print(f"gpu: not measured, {lacking}", flush=True)
            continue
        for dataset, method, n, seed in _cells(part, args.seeds, args.pairs):
            if not figures.has(STUDY, method, n, seed):
                print(f"measuring {method}, n={n}, seed {seed}", flush=True)
                values = _measure(part, method, n, seed, args)
                figures.add([Figure(STUDY, dataset, method, n, seed, k, v) for k, v in values.items()])
    print("\n".join(figures.table()))
    flipped = [f"agentps, {share} % flipped" for share in FLIPPED]
    ablations = (paired(figures, n, "vanilla", ("multitask", "agentps")) for n in SIZES)
    pairs = paired(figures, args.pairs, "composed, vanilla", ("composed, multitask", "composed, agentps"))
    print("\n".join(chain(*ablations, pairs, paired(figures, 1000, "agentps", flipped))))
    return 0


def _no_gpu(device: str) -> str:
    """Why nothing can be measured on a GPU; empty where it can."""
    import torch

    if device == "cpu":
        return "--device is cpu"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device here"


def paired(figures: Figures, n: int, base: str, others: Sequence[str]) -> Iterator[str]:
    """What other methods have beyond `base`, seed by seed, where both are measured on n posts."""
    for metric in SHOWN:
        before = figures.values(base, n, metric)
        for method in others:
            after = figures.values(method, n, metric)
            differences = [after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())]
            if differences:
                spread = f" ± {stdev(differences):.4f}" if len(differences) > 1 else ""
                seeds = f"n={n} ({len(differences)} seed{'s' * (len(differences) > 1)})"
                yield f"{method} - {base}  {metric:<24} {fmean(differences):+.4f}{spread}  {seeds}"


def _cells(part: str, seeds: int, pairs: int = 1000) -> Iterator[tuple[str, str, int, int]]:
    """(data set, method, posts, seed) of a part, seed by seed: a stopped study compares whole seeds."""
    variants = ("vanilla", "agentps", "multitask")
    match part:
        case "text":
            yield from (("fhm_text", variant, 1000, seed) for seed in range(seeds) for variant in variants)
        case "sizes":
            few, _, many = SIZES
            yield from (("fhm_text", variant, few, seed) for seed in range(seeds) for variant in variants)
            yield from (("fhm_text", variant, many, 0) for variant in variants)
        case "noise":
            yield from (
                ("fhm_text", f"agentps, {share} % flipped", 1000, seed)
                for seed in range(seeds)
                for share in FLIPPED
            )
        case "composed":
            yield from (
                ("hsol", f"composed, {variant}", pairs, seed) for seed in range(seeds) for variant in variants
            )
        case "divisor":
            yield from (
                ("hsol", f"composed, agentps, a quarter answered, by {divisor}", pairs, seed)
                for seed in range(seeds)
                for divisor in get_args(Divisor)
            )
        case "images":
            yield from (
                ("harmeme", f"harmeme {kind}", 1000, seed)
                for seed in range(seeds)
                for kind in ("text", "image and text")
            )
        case "served":
            yield "fhm_text", "served", 0, 0
        case "gpu":
            yield "drawn albums", "llava-onevision 0.5B, random weights", 0, 0
        case _:
            yield from (("fhm_text", method, 0, 0) for method in ("prediction", "training"))


def _measure(part: str, method: str, n: int, seed: int, args: argparse.Namespace) -> dict[str, float]:
    if part == "speed":
        from runs.bench import agentps_speed

        return agentps_speed.prediction(args.data) if method == "prediction" else agentps_speed.training()
    if part == "gpu":
        from runs.bench.agentps_gpu import on_gpu

        return on_gpu()
    if part == "served":
        from runs.bench.agentps_served import served

        return served(args.data)
    from runs.bench import agentps_study

    where = {"data": args.data, "work": args.work, "epochs": args.epochs, "cpu": args.device == "cpu"}
    if part == "images":
        return agentps_study.harmeme(n, seed, images="image" in method, **where)
    if part in ("composed", "divisor"):
        variant, _, divisor = method.removeprefix("composed, ").partition(", a quarter answered, by ")
        kinds: Any = {"divisor": divisor, "answered": 0.25} if divisor else {}
        return agentps_study.composed(variant, n, seed, **kinds, **where)
    variant, _, flipped = method.partition(", ")
    share = float(flipped.split(" ")[0]) / 100 if flipped else 0.0
    return agentps_study.hateful_memes(variant, n, seed, flipped=share, **where)
