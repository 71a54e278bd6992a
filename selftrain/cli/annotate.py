"""``selftrain annotate``: process labels from a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from selftrain._util.printable import printable
from selftrain.annotation.annotate import Annotated as Written
from selftrain.annotation.annotate import PreparedAnnotation, prepare_annotation
from selftrain.annotation.annotate import annotate as annotate_posts
from selftrain.annotation.answer_report import AnnotationReport, MeanMetrics, QuestionReport, mean_metrics
from selftrain.annotation.question_plan import (
    MAX_FAILED,
    annotation_settings,
    build_questioner,
    estimate_cost,
)
from selftrain.cli.options import Manifest, Overrides
from selftrain.cli.printing import console, number, plain
from selftrain.data.manifest import describe
from selftrain.errors import RecipeError

app = typer.Typer()

_REASONS = 3
SERVERS, QUESTIONS, LIMITS = "Who is asked", "What is asked", "How much"


@app.command(
    help="Ask a model a task's questions about every post (process labels).\n\n"
    "Writes the manifest again with the answers: into `process` where nobody has given one, with their"
    " provenance, else into `process_model`, for a report to measure them. Labels and known answers are"
    " not shown to the model. Interrupted, the same command goes on; nothing is paid for twice.",
    epilog="Example: selftrain annotate posts.jsonl --task task.toml --server http://127.0.0.1:8000"
    " --out annotated.jsonl --estimate",
)
def annotate(
    manifest: Manifest,
    *,
    task: Annotated[Path, typer.Option(metavar="TASK", help="A TOML file with questions.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The manifest to write; beside the other one.")],
    servers: Annotated[
        list[str],
        typer.Option(
            "--server",
            metavar="URL",
            default_factory=list,
            show_default=False,
            rich_help_panel=SERVERS,
            help="Of an OpenAI-compatible server, for instance http://127.0.0.1:8000; may be given several"
            " times.",
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            rich_help_panel=SERVERS,
            help="Take the section vlm, seed and tolerances of it.",
        ),
    ] = None,
    overrides: Overrides,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", rich_help_panel=QUESTIONS, help="Ask these only; by default all of the task."
        ),
    ] = None,
    direct: Annotated[
        bool,
        typer.Option(
            "--direct", rich_help_panel=QUESTIONS, help="Ask for the class too, directly, to compare."
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again", rich_help_panel=QUESTIONS, help="Ask anew what a model has answered in this manifest."
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=QUESTIONS,
            help="Prompt files that replace those in agents/questions.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=LIMITS,
            help="Only about the first N posts; the others are kept.",
        ),
    ] = None,
    token_cap: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=LIMITS,
            help="Most tokens that FILE may cost, in all starts.",
        ),
    ] = None,
    max_failed: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            rich_help_panel=LIMITS,
            help="Stop above this share of questions without a usable answer.",
        ),
    ] = MAX_FAILED,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            rich_help_panel=LIMITS,
            help="Tell what it would cost and stop; no answer is asked for.",
        ),
    ] = False,
) -> None:
    """Ask and write, or tell what it would cost.

    Raises:
        SelftrainError, or an error of the agents' tree: What was paid for is kept.
    """
    if overrides and recipe is None:
        raise RecipeError("--set changes a value of a recipe, and none is given: add --recipe")
    settings = annotation_settings(recipe, servers, token_cap, overrides)
    names = None if questions is None else [one.strip() for one in questions.split(",") if one.strip()]
    prepared = prepare_annotation(
        manifest, task, out, settings, questions=names, direct=direct, again=again, limit=limit
    )
    _print_set_aside(prepared)
    questioner = build_questioner(
        settings, prepared.task, out, prompts=prompts, max_failed=max_failed, progress=sys.stderr.isatty()
    )
    try:
        if estimate:
            for line in estimate_cost(prepared.plan, questioner, settings.seed).lines(settings.vlm.token_cap):
                print(line)
            return
        _print_annotated(annotate_posts(prepared, questioner), prepared)
    finally:
        questioner.close()


def _print_set_aside(prepared: PreparedAnnotation) -> None:
    """Rows that will not be in the manifest that is written: to be known before it is paid for."""
    if problems := prepared.manifest.problems:
        print(f"{len(problems):,} rows are set aside and will not be written:")
        for line in describe(problems):
            print(printable(line))


def _print_annotated(done: Written, prepared: PreparedAnnotation) -> None:
    told, spent = done.report, done.usage
    shown = console()
    shown.print(_answers_table(told))
    for one in _each(told):
        for reason, count in list(one.missing.items())[:_REASONS]:
            print(printable(f"{one.name}: {count:,} x no answer: {reason}"))
    if any(one.known is not None for one in _each(told)):
        shown.print()
        shown.print(_known_table(told))
    asked = [question.name for question in prepared.questions]
    share = told.complete / max(told.posts, 1)
    every = "the question" if len(asked) == 1 else f"all {len(asked)} questions"
    print(f"\n{told.complete:,} of {told.posts:,} posts ({share:.1%}) have an answer to {every}")
    print(
        f"cost: {spent['calls']:,} calls, {spent['prompt']:,} prompt tokens ({spent['cached']:,} cached),"
        f" {spent['completion']:,} answer tokens; {spent['stored']:,} answers were in the store already"
    )
    print(printable(f"written: {done.out} and {done.report_file}"))


def _answers_table(told: AnnotationReport) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("question")
    table.add_column("answered", justify="right")
    table.add_column("missing", justify="right")
    table.add_column("answers")
    for one in _each(told):
        spread = ", ".join(f"{answer} {count:,}" for answer, count in one.answers.items() if count)
        missing = sum(one.missing.values())
        table.add_row(plain(one.name), f"{one.answered:,}", f"{missing:,}", plain(spread))
    return table


def _known_table(told: AnnotationReport) -> Table:
    """Process questions against the final one asked directly, where persons' answers are known."""
    table = Table(title="where the answer is known", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("question")
    for heading in ("posts", "missing", "accuracy", "95 %", "majority", "macro-F1", "balanced"):
        table.add_column(heading, justify="right")
    process = [one for one in told.questions if one.known is not None]
    for one in process:
        table.add_row(plain(one.name), *_known_cells(one))
    if len(process) > 1:
        averaged = mean_metrics([one.known for one in process if one.known is not None])
        assert averaged is not None
        table.add_section()
        table.add_row("process questions, mean", *_mean_cells(averaged))
    if told.final is not None and told.final.known is not None:
        table.add_section()
        table.add_row("final question, directly", *_known_cells(told.final))
    return table


def _known_cells(one: QuestionReport) -> Sequence[str]:
    known = one.known
    assert known is not None
    accuracy = known.accuracy
    return (
        f"{known.posts:,}", f"{known.missing:.1%}", number(accuracy.value),
        f"{accuracy.low:.3f}-{accuracy.high:.3f}", number(known.majority), number(known.macro_f1),
        number(known.balanced_accuracy),
    )  # fmt: skip


def _mean_cells(averaged: MeanMetrics) -> Sequence[str]:
    return (
        "", f"{averaged.missing:.1%}", number(averaged.accuracy), "", "", number(averaged.macro_f1),
        number(averaged.balanced_accuracy),
    )  # fmt: skip


def _each(told: AnnotationReport) -> list[QuestionReport]:
    return [*told.questions, *([told.final] if told.final is not None else [])]
