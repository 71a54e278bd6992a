"""``selftrain agentps``: fine-tune a multimodal language model on the grown data, use it, measure it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from backbones.loading import place
from selftrain.agentps import evaluation, folder
from selftrain.agentps.examples import example
from selftrain.agentps.fitting import fit
from selftrain.agentps.folder import load
from selftrain.agentps.gathering import of_split, read_posts, stream_posts
from selftrain.agentps.merging import merge_into
from selftrain.agentps.predict import answers_row, to_prediction
from selftrain.agentps.predict import predict as predict_posts
from selftrain.agentps.recipe import DataSection, load_agentps_recipe
from selftrain.agentps.scoring import ScoredPost
from selftrain.agentps.served import ServedModel
from selftrain.cli.commands import noun
from selftrain.cli.options import Manifest, Overrides
from selftrain.cli.printing import console, keep_left_out, plain, write_records
from selftrain.data.task import dump_task
from selftrain.errors import SelftrainError
from selftrain.report.model_page import write_report
from selftrain.store import atomic

app = noun("Fine-tune a multimodal language model on the grown data (AgentPS).")


def _check_device(name: str) -> str:
    """Return where to compute.

    Raises:
        SelftrainError: A device that is not there.
    """
    try:
        return str(place(name).device)
    except (ValueError, RuntimeError) as error:
        raise SelftrainError(f"--device {name}: {error}") from error


Trained = Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder.")]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Posts at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on.")]
Split = Literal["train", "validation", "pool", "test", "all"]


@app.command(
    help="Train a model; a training that was interrupted goes on.\n\n"
    "Killed, the same command goes on from the last step saved, to the same weights.",
    epilog="Example: selftrain agentps train runs/mine --recipe runs/agentps_hateful_memes.toml"
    " --out models/mine",
)
def train(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN_OR_MANIFEST",
            help="A finished run, whose grown dataset is learned from, or a manifest with labels.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The model's folder.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML; without one, the defaults.")
    ] = None,
    task: Annotated[Path | None, typer.Option(metavar="FILE", help="Needed with a manifest.")] = None,
    overrides: Overrides,
    merge: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write a whole checkpoint there: adapters multiplied into the base model's weights.",
        ),
    ] = None,
) -> None:
    """Print each epoch, then what the best one is worth.

    Raises:
        SelftrainError, BackboneError, LossError: With what to do.
    """
    named = [] if task is None else [f"data.task={json.dumps(str(task))}"]
    loaded = fit(
        load_agentps_recipe(recipe, [*named, *overrides], source=source), out, progress=sys.stderr.isatty()
    )
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    write_report(out, out / "report.html")
    _print_figures(out / folder.METRICS)
    if merge is not None:
        merge_into(loaded, merge)
        print(f"whole checkpoint: {merge}")
    _print_next(out)


@app.command(
    help="Score posts: the final answer and every question's.",
    epilog="Example: selftrain agentps predict models/mine new.jsonl --out scored.jsonl",
)
def predict(
    model: Trained,
    manifest: Manifest,
    *,
    out: Annotated[str, typer.Option(metavar="FILE", help="JSON lines; - for standard output.")],
    batch: Batch = 16,
    device: Device = "auto",
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="MODEL is a merged checkpoint, and vLLM serves it there for token_embed: words alone.",
        ),
    ] = None,
) -> None:
    """Write one record a post; what was left out is said on standard error, and written beside.

    Raises:
        SelftrainError, BackboneError: `out` is as it was.
    """
    where = _check_device(device)
    quarantine: list[dict[str, Any]] = []
    posts = stream_posts(manifest, quarantine, DataSection())
    scored: Iterable[ScoredPost]
    if server is not None:
        served = ServedModel(model, server, batch=batch)
        asked = served.asked
        unlabelled = (replace(post, label=None, process={}) for post in posts)
        scored = served.score(example(post, asked) for post in unlabelled)
    else:
        loaded = load(model)
        asked = loaded.built.asked
        scored = predict_posts(loaded, posts, batch_size=batch, device=where)

    def rows() -> Iterator[dict[str, Any]]:
        for one in scored:
            if one.reason:
                quarantine.append({"kind": "image", "id": one.example.id, "reason": one.reason})
            else:
                yield {"id": one.example.id} | to_prediction(asked, one).to_json()

    write_records(out, rows(), quarantine, "scored")


@app.command(
    help="Measure every question, and draw a page.",
    epilog="Example: selftrain agentps evaluate models/mine test.jsonl --out figures",
)
def evaluate(
    model: Trained,
    manifest: Manifest,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For figures, answers and report.html.")],
    batch: Batch = 16,
    device: Device = "auto",
    split: Annotated[
        Split | None, typer.Option(help="Which posts, where the manifest says what each is for.")
    ] = None,
) -> None:
    """Write figures, answers and a page into the folder, and print the figures.

    Raises:
        SelftrainError, BackboneError: With what to do.
    """
    from tqdm import tqdm

    where = _check_device(device)
    loaded = load(model)
    found, quarantine = read_posts(manifest, loaded.task, DataSection())
    posts = of_split(found, split)
    stream = predict_posts(loaded, posts, batch_size=batch, device=where)
    scored = list(tqdm(stream, total=len(posts), desc="posts", disable=not sys.stderr.isatty()))
    asked = loaded.built.asked
    figures = evaluation.full(asked, scored)
    atomic.write_jsonl(out / folder.VALIDATION, (answers_row(asked, one) for one in scored))
    atomic.write_json(out / folder.METRICS, {"model": loaded.fingerprint, "questions": figures})
    dump_task(loaded.task, out / folder.TASK)
    keep_left_out(out / "quarantine.jsonl", quarantine)
    write_report(out, out / "report.html")
    _print_figures(out / folder.METRICS)
    _print_next(out)


def _print_next(out: Path) -> None:
    print(f"\nnext:\n  {out / 'report.html'}  curves and cases: open it in a browser")


def _print_figures(file: Path) -> None:
    """Print one row a question."""
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
            console().print(plain(f"{name}: {about['note']}"))


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f}\n{figure['low']:.3f}-{figure['high']:.3f}"
