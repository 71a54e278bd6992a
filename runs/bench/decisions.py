"""`python -m runs.bench decisions`: what AgentPS's thresholds, calibration and weights of answers are worth.

HSOL's tweets with a process question out of its votes: did anybody call it hate speech? A model is trained,
its thresholds set and its heads calibrated on validation posts, and measured on posts that nothing was chosen
by. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runs.bench.study import Figures, numbers
from selftrain.agentps.dataset import FINAL
from selftrain.agentps.decisions import Decisions, full_report, with_answers
from selftrain.agentps.predict import predict, redecide
from selftrain.agentps.train import train_agentps
from selftrain.data.importers import hsol
from selftrain.data.importers.base import Record
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, dump_task

QUESTION = Question("hate", "Would anybody call this hate speech?", ("yes", "no"))
TASK: Task = replace(hsol.TASK, questions=(QUESTION,))
RULES: Sequence[Mapping[str, str]] = (
    {},
    *(dict.fromkeys((FINAL, QUESTION.name), rule) for rule in ("precision 0.8", "recall 0.8")),
    *(dict.fromkeys((FINAL, QUESTION.name), rule) for rule in ("f1", "macro_f1")),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hsol/")
    parser.add_argument("--work", type=Path, required=True, help="where posts and models are kept")
    parser.add_argument(
        "--posts", type=numbers, default="200,150,400", help="to train, validate, test (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=numbers, default="0", help="by commas (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--weights", default="none,balanced", help="of the classes (default: %(default)s)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Train what is not trained yet, and print the tables."""
    for seed in args.seeds:
        train, validation, test = _drawn(args.data / "hsol", args.posts, seed)
        for weights in args.weights.split(","):
            out = args.work / f"{weights}-{seed}"
            _measure(out, [*train, *validation], test, weights=weights, seed=seed, epochs=args.epochs)


def _drawn(source: Path, sizes: Sequence[int], seed: int) -> list[list[Post]]:
    """Draw posts of each part; the first two parts say in `split` which they are."""
    records = [one for one in hsol.read(source).records if isinstance(one, Record)]
    order = np.random.default_rng(seed).permutation(len(records))[: sum(sizes)]
    ends = np.cumsum(sizes)[:-1]
    parts = zip(("train", "validation", "test"), np.split(order, ends), strict=True)
    return [[_post(records[place], name) for place in places] for name, places in parts]


def _post(record: Record, split: str) -> Post:
    hate = "yes" if int(record.extra["hate_speech"]) else "no"
    return Post(record.id, record.text, (), record.label, {QUESTION.name: hate}, {"split": split})


def _measure(
    out: Path, posts: Sequence[Post], test: Sequence[Post], *, weights: str, seed: int, epochs: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    dump_task(TASK, out / "task.toml")
    write_manifest(posts, out / "posts.jsonl")
    changes = [
        f'data.task="{out / "task.toml"}"', f"seed={seed}", "model.variant=multitask", "model.rank=16",
        "model.alpha=32", "frames.count=0", f"training.epochs={epochs}", "training.learning_rate=3e-4",
        "training.save_every=5", "training.metric=auc",
    ]  # fmt: skip
    if weights != "none":
        changes += [f"training.class_weights.{name}={weights}" for name in (FINAL, QUESTION.name)]
    loaded = train_agentps(out / "posts.jsonl", out / "model", overrides=changes)
    plain = redecide(loaded, {})
    asked, scored = plain.built.questions, list(predict(plain, test))
    print(f"\nclass_weights {weights}, seed {seed}: {len(test)} posts to test")
    for rules in RULES:
        made = redecide(plain, rules).decisions
        again = [with_answers(made, one) for one in scored]
        _print(rules, made, full_report(asked, again, made), first=not rules)


def _print(rules: Mapping[str, str], decisions: Decisions, report: Mapping[str, Any], *, first: bool) -> None:
    for (name, found), made in zip(report.items(), decisions, strict=True):
        if first:
            base = found["answers"][found["looked_for"]] / found["posts"]
            calibration = found["calibration"]
            print(
                f"{name}: AUC {found['metrics']['auc']['value']:.3f}, base rate {base:.3f}; calibration error"
                f" {calibration['raw']['ece']:.3f} -> {calibration['calibrated']['ece']:.3f}, temperature"
                f" {1 / made.slope:.2f}"
            )
        figures = found["decision"]["figures"]
        shown = ", ".join(
            f"{key} {figures[key]['value']:.3f} ({figures[key]['low']:.3f} to {figures[key]['high']:.3f})"
            for key in ("precision", "recall", "macro_f1")
        )
        note = f" [{made.note}]" if made.note else ""
        print(f"  {name}, {rules.get(name, 'likeliest')}: {shown}{note}")
