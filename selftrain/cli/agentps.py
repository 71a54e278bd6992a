"""``selftrain agentps``: fine-tune a multimodal language model on the grown data, use it, measure it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selftrain.agentps.folder import Loaded
    from selftrain.agentps.scoring import ScoredPost


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the group."""
    group = subparsers.add_parser(
        "agentps", help="fine-tune a multimodal language model on the grown data (AgentPS)"
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = group.add_parser("train", help="train a model; a training that was interrupted goes on")
    train.add_argument(
        "source", type=Path, nargs="?", metavar="RUN_OR_MANIFEST",
        help="a finished run, whose grown dataset is learned from, or a manifest with labels",
    )  # fmt: skip
    train.add_argument("--recipe", type=Path, metavar="FILE", help="TOML; without one, the defaults")
    train.add_argument("--task", type=Path, metavar="FILE", help="needed with a manifest")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model's folder")
    train.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="change one value of the recipe; may be given several times",
    )  # fmt: skip
    train.add_argument(
        "--merge", type=Path, metavar="DIR",
        help="also write a whole checkpoint there: adapters multiplied into the base model's weights",
    )  # fmt: skip
    train.set_defaults(handler=run_train)

    predict = group.add_parser("predict", help="score posts: the final answer and every question's")
    evaluate = group.add_parser("evaluate", help="figures of every question, and a page of them")
    for parser in (predict, evaluate):
        parser.add_argument("model", type=Path, metavar="MODEL", help="a model's folder")
        parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet")
        parser.add_argument("--batch", type=int, default=16, help="posts at once (default: %(default)s)")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    predict.add_argument("--out", required=True, metavar="FILE", help="JSON lines; - for standard output")
    predict.add_argument(
        "--server", metavar="ADDRESS",
        help="MODEL is a merged checkpoint, and vLLM serves it there for token_embed: words alone",
    )  # fmt: skip
    predict.set_defaults(handler=run_predict)
    evaluate.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="figures, answers, report.html"
    )
    evaluate.add_argument(
        "--split", choices=("train", "validation", "pool", "test", "all"),
        help="which posts, where the manifest says what each is for",
    )  # fmt: skip
    evaluate.set_defaults(handler=run_evaluate)


def run_train(args: argparse.Namespace) -> int:
    """Prints each epoch, then what the best one is worth.

    Raises:
        SelftrainError, BackboneError, LossError: With what to do.
    """
    from selftrain.agentps.fitting import fit
    from selftrain.agentps.recipe import load_agentps_recipe
    from selftrain.report.model_page import write_report

    task = [] if args.task is None else [f"data.task={json.dumps(str(args.task))}"]
    recipe = load_agentps_recipe(args.recipe, [*task, *args.overrides], source=args.source)
    loaded = fit(recipe, args.out, progress=sys.stderr.isatty())
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return 0
    write_report(args.out, args.out / "report.html")
    _print_figures(args.out / "metrics.json")
    if args.merge is not None:
        from selftrain.agentps.merging import merge_into

        merge_into(loaded, args.merge)
        print(f"whole checkpoint: {args.merge}")
    print(f"\nnext:\n  {args.out / 'report.html'}  curves and cases: open it in a browser")
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """Writes one record a post; what was left out is said on standard error, and written beside.

    Raises:
        SelftrainError, BackboneError: `--out` is as it was.
    """
    from selftrain.cli.printing import write_records

    quarantine: list[dict[str, Any]] = []
    write_records(args.out, _rows(args, quarantine), quarantine, "scored")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Writes figures, answers and a page into the folder, and prints the figures.

    Raises:
        SelftrainError, BackboneError: With what to do.
    """
    from tqdm import tqdm

    from selftrain.agentps import evaluation, folder
    from selftrain.agentps.gathering import of_split, read_posts
    from selftrain.agentps.prediction import answers_row, predict
    from selftrain.agentps.recipe import DataSection
    from selftrain.cli.printing import keep_left_out
    from selftrain.data.task import dump_task
    from selftrain.report.model_page import write_report
    from selftrain.store import atomic

    loaded = _opened(args)
    found, quarantine = read_posts(args.manifest, loaded.task, DataSection())
    posts = of_split(found, args.split)
    stream = predict(loaded, posts, batch_size=args.batch, device=_device(args.device))
    scored = list(tqdm(stream, total=len(posts), desc="posts", disable=not sys.stderr.isatty()))
    asked = loaded.built.asked
    figures = evaluation.full(asked, scored)
    atomic.write_jsonl(args.out / folder.VALIDATION, (answers_row(asked, one) for one in scored))
    atomic.write_json(args.out / folder.METRICS, {"model": loaded.fingerprint, "questions": figures})
    dump_task(loaded.task, args.out / folder.TASK)
    keep_left_out(args.out / "quarantine.jsonl", quarantine)
    write_report(args.out, args.out / "report.html")
    _print_figures(args.out / folder.METRICS)
    print(f"\nnext:\n  {args.out / 'report.html'}  curves and cases: open it in a browser")
    return 0


def _opened(args: argparse.Namespace) -> Loaded:
    from selftrain.agentps.folder import load

    _check(args)
    return load(args.model)


def _check(args: argparse.Namespace) -> None:
    from selftrain.errors import SelftrainError

    if args.batch < 1:
        raise SelftrainError(f"--batch {args.batch}: expected at least 1")
    _device(args.device)


def _rows(args: argparse.Namespace, quarantine: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record a post, as they come; the posts that cannot be scored go to `quarantine`."""
    from selftrain.agentps.gathering import stream_posts
    from selftrain.agentps.prediction import predict, prediction_row
    from selftrain.agentps.recipe import DataSection

    _check(args)
    posts = stream_posts(args.manifest, quarantine, DataSection())
    scored: Iterable[ScoredPost]
    if args.server is not None:
        from selftrain.agentps.examples import example
        from selftrain.agentps.served import ServedModel

        served = ServedModel(args.model, args.server, batch=args.batch)
        asked = served.asked
        unlabelled = (replace(post, label=None, process={}) for post in posts)
        scored = served.score(example(post, asked) for post in unlabelled)
    else:
        loaded = _opened(args)
        asked = loaded.built.asked
        scored = predict(loaded, posts, batch_size=args.batch, device=_device(args.device))
    for one in scored:
        if one.reason:
            quarantine.append({"kind": "image", "id": one.example.id, "reason": one.reason})
        else:
            yield prediction_row(asked, one)


def _device(name: str) -> str:
    """Where to compute.

    Raises:
        SelftrainError: A device that is not there.
    """
    from backbones.devices import place
    from selftrain.errors import SelftrainError

    try:
        return str(place(name).device)
    except (ValueError, RuntimeError) as error:
        raise SelftrainError(f"--device {name}: {error}") from error


def _print_figures(file: Path) -> None:
    """One row a question."""
    from rich.table import Table

    from selftrain.cli.printing import console

    questions = json.loads(file.read_text(encoding="utf-8"))["questions"]
    table = Table(title="figures with 95 % intervals")
    table.add_column("question")
    columns = ("f1", "macro_f1", "auc", "recall_at_precision_60", "precision_at_recall_50")
    for name in ("posts", "F1", "macro-F1", "AUC", "recall at precision .60", "precision at recall .50"):
        table.add_column(name, justify="right")
    for name, about in questions.items():
        known = about.get("figures")
        cells = ["-"] * len(columns) if known is None else [_interval(known[key]) for key in columns]
        table.add_row(name, str(about["posts"]), *cells)
    console().print(table)
    for name, about in questions.items():
        if "figures" not in about:
            console().print(f"{name}: {about['note']}", markup=False, highlight=False)


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f}\n{figure['low']:.3f}-{figure['high']:.3f}"
