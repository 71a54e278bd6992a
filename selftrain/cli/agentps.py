"""``selftrain agentps``: fine-tune a multimodal language model on the grown data, use it, measure it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from selftrain._util.deferred import deferred
from selftrain.cli import options
from selftrain.cli.commands import noun
from selftrain.cli.options import argument, option, read_pairs, several
from selftrain.cli.printing import (
    check_target,
    console,
    echo,
    list_left_out,
    plain,
    table,
    write_predictions,
)
from selftrain.data.posts import Post
from selftrain.errors import DataError, SelftrainError
from selftrain.store import atomic

with deferred():
    from backbones import loading
    from selftrain.agentps import checkpoint, dataset, decisions, served
    from selftrain.agentps import predict as predicting
    from selftrain.agentps import recipe as recipes
    from selftrain.agentps import train as training
    from selftrain.annotation import annotate as annotation
    from selftrain.annotation import answers
    from selftrain.data import manifest as manifests
    from selftrain.data import manifest_writing as writing
    from selftrain.data import task as tasks
    from selftrain.report import left_out as quarantined
    from selftrain.report import model_page, model_records
    from selftrain.serving import row_source, row_stream, streams
    from selftrain.store import run_dir

if TYPE_CHECKING:
    from selftrain._util.types import Json
    from selftrain.models.predictor import Predictor

app = noun("Fine-tune a multimodal language model on the grown data (AgentPS).")

METRICS = ("f1", "macro_f1", "auc", "recall_at_precision_60", "precision_at_recall_50")
HEADINGS = ("posts", "F1", "macro-F1", "AUC", "recall at precision .60", "precision at recall .50")

Trained = Annotated[Path, argument("MODEL", "A model's folder.")]
Batch = Annotated[int, option("Posts at once, on a GPU.", min=1, metavar="N")]
Device = Annotated[str, option("auto, cpu, cuda, cuda:1 and so on.")]
Split = Literal["train", "validation", "pool", "test", "all"]


def _check_device(name: str) -> str:
    """Return where to compute."""
    try:
        return str(loading.place(name).device)
    except ValueError as error:
        raise SelftrainError(f"--device: {error}") from error


@app.command(
    epilog="Example: selftrain agentps train runs/mine --recipe runs/agentps_hateful_memes.toml"
    " --out models/mine"
)
def train(
    source: Annotated[
        Path | None,
        argument(
            "RUN_OR_MANIFEST",
            "A finished run, whose grown dataset is learned from, or a manifest with labels.",
            **options.TABLE,
        ),
    ] = None,
    *,
    out: Annotated[Path, option("The model's folder.", metavar="DIR")],
    recipe: Annotated[Path | None, option("TOML; without one, the defaults.", metavar="FILE")] = None,
    task: Annotated[Path | None, option("Needed with a manifest.", metavar="FILE")] = None,
    overrides: options.Overrides,
    merge: Annotated[
        Path | None,
        option(
            "Also write a whole checkpoint there: adapters multiplied into the base model's weights.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Train a model; a training that was interrupted goes on.

    Killed, the same command goes on from the last step saved, to the same weights.
    """
    if merge is not None:
        checkpoint.is_merged(out, merge)
    named = [] if task is None else [f"data.task={json.dumps(str(task))}"]
    trained = training.train_agentps(
        source, out, recipe=recipe, overrides=[*named, *overrides], bar=sys.stderr.isatty()
    )
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one prints
        return
    _draw(out)
    _print_metrics(out / checkpoint.METRICS)
    if merge is not None:
        checkpoint.merge_adapters(trained, merge)
        echo(f"whole checkpoint: {merge}")
    _print_next(out)


@app.command(
    epilog="Example: selftrain agentps from-run runs/mine --server http://127.0.0.1:8000 --out models/mine"
)
def from_run(
    run: options.RunPath,
    *,
    out: Annotated[Path, option("The model's folder.", metavar="DIR")],
    servers: Annotated[
        list[str],
        several("Of an OpenAI-compatible server that answers the questions.", "--server", metavar="URL"),
    ],
    recipe: Annotated[Path | None, option("TOML; without one, the defaults.", metavar="FILE")] = None,
    overrides: options.Overrides,
    token_cap: options.TokenCap = None,
) -> None:
    """Have a model answer the questions about a run's posts, train on them, measure on the run's test posts.

    Asked about are the posts that are learned from and those that validate, where the run knows no answer.
    Interrupted, the same command goes on; no answer is paid for twice.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SelftrainError(
            "from-run asks a server and measures, each of which one process does, and several were started:"
            " start it without accelerate. To train with several, take the answers that `selftrain annotate`"
            " writes: accelerate launch ... -m selftrain agentps train RUN --set data.process=ANSWERS"
        )
    if run.is_file():
        raise SelftrainError(
            f"{run} is a file; expected the folder of a finished run. Of a manifest `selftrain annotate`"
            " writes the answers, and `selftrain agentps train MANIFEST --task FILE` learns from them"
        )
    made = recipes.load_agentps_recipe(recipe, overrides, source=run)
    checkpoint.check_out(out, trained=True)
    found = dataset.load_posts(made.data, made.seed)
    asked = dataset.question_set(found.task, made.model.variant)
    # before anything is paid for
    training.check_named(made, asked)
    tested = dataset.run_test_posts(run, found.task, made.data)
    data = made.data
    if asked.process:
        file = out.resolve() / "answers.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        _ask(found, annotation.annotation_settings(None, servers, token_cap), file)
        data = data.model_copy(update={"process": file})
    trained = training.train_recipe(made.model_copy(update={"data": data}), out, bar=sys.stderr.isatty())
    _draw(out)
    if tested:
        measured = _Measured([*enumerate(tested, 1)], f"the test posts of {run}", made.data.tolerance)
        _measure(trained, measured, out / "test", made.training.evaluation_batch, _check_device("auto"))
    else:
        echo(f"{run} has no test posts: these are the metrics of the validation posts")
    _print_metrics((out / "test" if tested else out) / checkpoint.METRICS)
    _print_next(out / "test" if tested else out)


def _ask(found: dataset.LabelledPosts, settings: annotation.AnnotationSettings, out: Path) -> None:
    """Write the answers about the posts that are learned from or validate, with their provenance.

    Answers that are there already, of every post, stay: what failed would be asked again, and a training that
    has begun with the others could not go on.
    """
    posts = [*found.train, *found.validation]
    # again: a model's answer beside a person's, which the run hid, stands in no post's `process`
    planned = annotation.plan_questions(
        posts, found.task, found.task.questions, again=True, max_images=settings.vlm.max_images
    )
    plan = [
        one._replace(asks=tuple(ask for ask in one.asks if ask.name not in one.post.process))
        for one in planned
    ]
    if annotation.is_answered(plan, out):
        echo(f"answered before, remove the file to ask again: {out}")
        return
    questioner = annotation.build_questioner(settings, found.task, out, progress=sys.stderr.isatty())
    try:
        answered = annotation.answer_questions(plan, found.task.questions, questioner)
        paid = questioner.runner.usage()
    finally:
        questioner.close()
    writing.write_manifest(map(answers.alone, answered), out)
    echo(f"{paid.calls:,} questions asked, {paid.stored:,} answered before: {out}")


@app.command(epilog="Example: selftrain agentps predict models/mine new.jsonl --out scored.jsonl")
@options.grouped
def predict(
    model: Trained,
    manifest: options.Manifest,
    *,
    out: options.OutFile,
    rows_per_file: options.RowsPerFile = None,
    reading: options.Reading,
    batch: Batch = 16,
    device: Device = "auto",
    server: Annotated[
        str | None,
        option("MODEL is a merged checkpoint, and vLLM serves it there for token_embed.", metavar="URL"),
    ] = None,
    workers: options.Workers,
) -> None:
    """Score posts: the final answer and every question's.

    Killed, or stopped by too many bad rows, the same command goes on; until the end what there is lies in
    OUT.part, or in the folder that --rows-per-file fills.
    """
    check_target(out, model, manifest, rows_per_file)
    _check_device(device)
    if server is not None and device != "auto":
        raise SelftrainError("with --server another process computes: leave out --device, or --server")
    engine = workers.engine()
    folder, threads = (model, None) if engine is None else (model.absolute(), int(engine.cpus))
    load: Callable[[], Predictor] = partial(predicting.AgentPSPredictor.load, folder, device, batch, threads)
    if server is not None:
        load = partial(served.ServedModel, folder, server, batch=batch)
    work = streams.ModelAtWork(
        predictor=load(), columns=reading.named, tolerance=reading.tolerance(),
        progress=sys.stderr.isatty(), engine=engine, load=load if engine else None,
    )  # fmt: skip
    write_predictions(out, work, manifest, done="scored", rows=rows_per_file)


@app.command(epilog="Example: selftrain agentps evaluate models/mine test.jsonl --out metrics")
@options.grouped
def evaluate(
    model: Trained,
    manifest: options.Manifest,
    *,
    out: Annotated[Path, option("For metrics, answers and report.html.", metavar="DIR")],
    reading: options.Reading,
    batch: Batch = 16,
    device: Device = "auto",
    split: Annotated[Split | None, option("Which posts, where the manifest says what each is for.")] = None,
    rules: Annotated[
        list[str],
        several(
            "Set anew how a question is answered, on the model's own validation posts, and keep it with the"
            " model: final='precision .8', 'recall .9', f1, macro_f1 or likeliest.",
            "--decide",
            metavar="QUESTION=RULE",
        ),
    ],
) -> None:
    """Measure every question, and draw a page.

    Posts whose pictures cannot be read are listed with the bad rows in DIR/quarantine.jsonl. Killed, or
    stopped by too many of them, the same command goes on.
    """
    where = _check_device(device)
    checkpoint.check_out(out)
    loaded = checkpoint.load(model)
    limits = reading.tolerance()
    sources = recipes.SourceSettings.model_validate(
        {"columns": reading.named, "max_bad_rows": limits.rows, "max_bad_share": limits.share}
    )
    measured = _Measured.of(dataset.read_rows(manifest, loaded.task, sources), split, limits)
    measured.check_known()
    if rules:  # kept with the model: not before it is known that there is something to measure
        asked = loaded.built.questions.all
        now = {one.name: made.goal for one, made in zip(asked, loaded.decisions, strict=True)}
        given = read_pairs(rules, "--decide", "QUESTION=RULE, for instance final='precision .8'")
        loaded = predicting.redecide(loaded, now | given)
        model_page.write_report(model, model / checkpoint.PAGE)
    _measure(loaded, measured, out, batch, where)
    _print_metrics(out / checkpoint.METRICS)
    _print_next(out)


class _Measured(NamedTuple):
    """Posts with labels, and how many of them may be left out."""

    rows: Sequence[tuple[int, Post | manifests.Problem]]  # each with its line, those that became no post too
    where: str
    tolerance: manifests.Tolerance
    noted: Sequence[Json] = ()  # what else the quarantine lists, and no limit counts

    @classmethod
    def of(
        cls, report: manifests.ManifestReport, split: Split | None, tolerance: manifests.Tolerance
    ) -> _Measured:
        lines = {post.id: line for post, line in zip(report.posts, report.lines, strict=True)}
        posts = dataset.of_split(report.posts, split)
        rows: list[tuple[int, Post | manifests.Problem]] = [(lines[post.id], post) for post in posts]
        noted = report.quarantine  # rows and notes
        # a row that cannot be read is of no split: with one it has counted against the whole manifest alone
        if split in {None, "all"}:
            rows = sorted([*rows, *((one.line, one) for one in report.problems)], key=itemgetter(0))
            noted = replace(report, problems=()).quarantine
        return cls(rows, str(report.path), tolerance, noted)

    def check_known(self) -> None:
        """Raise DataError where no post has a label or an answer to measure by."""
        posts = [one for _, one in self.rows if isinstance(one, Post)]
        if not any(post.label is not None or post.process for post in posts):
            raise DataError(
                f"none of {len(posts):,} posts of {self.where} has a label, or an answer to a question, to"
                " measure by: add labels, name their column (--column label=NAME), or score the posts"
                " (`selftrain agentps predict`)"
            )


def _measure(
    loaded: checkpoint.AgentPSModel, measured: _Measured, out: Path, batch: int, device: str
) -> None:
    """Write answers, metrics, what was left out and the page; killed, the same goes on."""
    asked, left_out = loaded.built.questions, out / checkpoint.QUARANTINE
    with streams.part_of(out / checkpoint.VALIDATION, {"model": loaded.fingerprint}).opened() as opened:
        if not opened.finished:
            if not opened.tally.rows:
                opened.write([], map(row_stream.json_line, measured.noted))
            rows = partial(row_source.post_rows, measured.rows, opened.tally, opened.remedy)
            row_stream.pour(
                lambda: row_source.parts(rows, streams.CHUNK), opened,
                lambda: row_stream.judging(lambda: loaded, partial(_answered, batch=batch, device=device)),
                tolerance=measured.tolerance, where=measured.where, progress=sys.stderr.isatty(),
                advice=f"  {streams.advice(f'they are listed in {opened.quarantine}; ', opened.remedy)}",
            )  # fmt: skip
            scored = predicting.read_scored(opened.sink, asked)
            questions = decisions.full_report(asked, scored, loaded.decisions)
            figures = {"model": loaded.fingerprint, "questions": questions}
            atomic.write_json(out / checkpoint.METRICS, figures)
        opened.publish(out / checkpoint.VALIDATION, left_out)
    tasks.dump_task(loaded.task, out / checkpoint.TASK)
    _draw(out)


def _draw(out: Path) -> None:
    """Draw the page of a folder, and say which posts were left out."""
    model_page.write_report(out, out / checkpoint.PAGE)
    left_out = out / checkpoint.QUARANTINE
    if left_out.exists():
        typed = quarantined.LeftOutRow.from_json
        listed = [row for row in run_dir.read_jsonl(left_out) if typed(row).kind != manifests.NOTE]
        list_left_out(listed, len(listed), left_out)


def _answered(
    loaded: checkpoint.AgentPSModel, rows: list[row_source.SourceRow], *, batch: int, device: str
) -> row_stream.JudgedRows:
    """Return a record of every post, and lines for the quarantine about rows and posts that are unread."""
    asked, kept, failed = loaded.built.questions, list[str](), list[str]()
    posts = [row.post for row in rows if row.post is not None]
    scored = predicting.predict(loaded, posts, batch_size=batch, device=device)
    for row in rows:
        reason = row.reason
        if row.post is not None:
            one = next(scored)
            kept.append(row_stream.json_line(predicting.answers_row(asked, one)))
            reason = one.reason
        if reason:
            failed.append(row_stream.failed_line(row, reason))
    return row_stream.JudgedRows(kept, failed)


def _print_next(out: Path) -> None:
    echo(f"\nnext:\n  {out / checkpoint.PAGE}  curves and cases: open it in a browser")


def _print_metrics(file: Path) -> None:
    """Print one row a question."""
    questions = model_records.ModelMetrics.read(file).questions
    found = table(
        "question",
        *HEADINGS,
        title="metrics of the answer looked for, with 95 % intervals",
        show_edge=True,
        pad_edge=True,
    )
    for name, one in questions.items():
        known = [] if one.metrics is None else [one.metrics[metric] for metric in METRICS]
        cells = [f"{m.value:.3f}\n{m.low:.3f}-{m.high:.3f}" for m in known] or ["-"] * len(METRICS)
        found.add_row(name, str(one.posts), *cells)
    console().print(found)
    for name, one in questions.items():
        for line in (one.note, one.overall, *(one.decision.lines(one.looked_for) if one.decision else ())):
            if line:
                console().print(plain(f"{name}: {line}"), soft_wrap=True)
