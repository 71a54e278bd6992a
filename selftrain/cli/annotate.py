"""``selftrain annotate``: process labels from a model."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selftrain._util.deferred import deferred
from selftrain._util.printable import printable
from selftrain.cli import options
from selftrain.cli.options import COST, option, several
from selftrain.cli.printing import console, number, plain, table
from selftrain.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

with deferred():
    from selftrain.annotation import annotate as annotation
    from selftrain.annotation import answer_report
    from selftrain.data import manifest as manifests

app = typer.Typer()

_REASONS = 3
ASKED, ASKING = "Who is asked", options.ASKING

Servers = Annotated[
    list[str],
    several(
        "Of an OpenAI-compatible server, for instance http://127.0.0.1:8000; may be given several times.",
        "--server", metavar="URL", panel=ASKED,
    ),
]  # fmt: skip
FromRecipe = Annotated[
    Path | None, option("Take the section vlm, seed and tolerances of it.", metavar="RECIPE", panel=ASKED)
]
Questions = Annotated[
    str | None, option("Ask these only; by default all of the task.", metavar="NAME,NAME", panel=ASKING)
]
Direct = Annotated[bool, option("Ask for the class too, directly, to compare.", "--direct", panel=ASKING)]
Again = Annotated[
    bool, option("Ask anew what a model has answered in this manifest.", "--again", panel=ASKING)
]
Limit = Annotated[
    int | None, option("Only about the first N posts; the others are kept.", min=1, metavar="N", panel=COST)
]
MaxFailed = Annotated[
    float,
    option(
        "Stop above this share of questions without a usable answer.",
        min=0, max=1, metavar="SHARE", panel=COST,
    ),
]  # fmt: skip
Estimate = Annotated[
    bool, option("Tell what it would cost and stop; no answer is asked for.", "--estimate", panel=COST)
]


@app.command(
    epilog="Example: selftrain annotate posts.jsonl --task task.toml --server http://127.0.0.1:8000"
    " --out annotated.jsonl --estimate"
)
@options.grouped
def annotate(
    manifest: options.Manifest,
    *,
    task: options.TaskFile,
    out: Annotated[Path, options.written("The manifest to write; beside the other one.")],
    servers: Servers,
    recipe: FromRecipe = None,
    overrides: options.Overrides,
    reading: options.Reading,
    questions: Questions = None,
    direct: Direct = False,
    again: Again = False,
    prompts: options.Prompts = None,
    limit: Limit = None,
    token_cap: options.TokenCap = None,
    max_failed: MaxFailed = 0.1,
    estimate: Estimate = False,
    workers: options.Workers,
) -> None:
    """Ask a model a task's questions about every post (process labels).

    Writes the manifest again with the answers: into `process` where nobody has given one, with their
    provenance, else into `process_model`, for a report to measure them. Labels and known answers are not
    shown to the model. Interrupted, the same command goes on; nothing is paid for twice.
    """
    options.refuse_idle_overrides(recipe, overrides)
    engine = workers.engine()
    settings = annotation.annotation_settings(recipe, servers, token_cap, overrides)
    settings = settings._replace(tolerance=reading.tolerance(settings.tolerance))
    names = None if questions is None else [one.strip() for one in questions.split(",") if one.strip()]
    prepared = annotation.prepare_annotation(
        manifest, task, out, settings, questions=names, direct=direct, again=again, limit=limit,
        columns=reading.named,
    )  # fmt: skip
    _print_problems(prepared)  # to be known before anything is paid for
    if engine is not None and not estimate:
        if not settings.vlm.database:
            raise RecipeError(
                "workers share the answers that were paid for, and the token cap, in a PostgreSQL database:"
                " name it with --recipe FILE --set vlm.database=postgresql://..."
            )
        build = partial(
            annotation.build_questioner, settings, prepared.task, out.absolute(),
            prompts=None if prompts is None else prompts.absolute(), max_failed=1.0,
        )  # fmt: skip
        pool = annotation.QuestionerPool(engine, build, max_failed=max_failed, progress=sys.stderr.isatty())
        _print_annotated(annotation.annotate(prepared, pool))
        return
    questioner = annotation.build_questioner(
        settings, prepared.task, out, prompts=prompts, max_failed=max_failed, progress=sys.stderr.isatty()
    )
    try:
        if estimate:
            cost = annotation.estimate_cost(prepared.plan, questioner, settings.seed)
            print(*cost.lines(settings.vlm.token_cap), sep="\n")
        else:
            _print_annotated(annotation.annotate(prepared, questioner))
    finally:
        questioner.close()


def _print_problems(prepared: annotation.PreparedAnnotation) -> None:
    if problems := prepared.manifest.problems:
        print(f"{prepared.manifest.set_aside:,} rows are set aside and will not be written:")
        for line in manifests.describe(problems):
            print(printable(line))


def _print_annotated(done: annotation.AnnotatedManifest) -> None:
    report, paid, shown = done.report, done.usage, console()
    shown.print(_answers_table(report))
    for one in report.all_questions:
        for reason, count in list(one.missing.items())[:_REASONS]:
            print(printable(f"{one.name}: {count:,} x no answer: {reason}"))
    if any(one.known is not None for one in report.all_questions):
        shown.print()
        shown.print(_known_table(report))
    every = "the question" if len(report.questions) == 1 else f"all {len(report.questions)} questions"
    share = report.complete / max(report.posts, 1)
    print(f"\n{report.complete:,} of {report.posts:,} posts ({share:.1%}) have an answer to {every}")
    print(
        f"cost: {paid.calls:,} calls, {paid.usage.prompt:,} prompt tokens ({paid.usage.cached:,} cached),"
        f" {paid.usage.completion:,} answer tokens; {paid.stored:,} answers were in the store already"
    )
    print(printable(f"written: {done.out} and {done.report_file}"))


def _answers_table(report: answer_report.AnnotationReport) -> Table:
    found = table("question", "answered", "missing")
    found.add_column("answers")
    for one in report.all_questions:
        spread = ", ".join(f"{answer} {count:,}" for answer, count in one.answers.items() if count)
        found.add_row(plain(one.name), f"{one.answered:,}", f"{sum(one.missing.values()):,}", plain(spread))
    return found


def _known_table(report: answer_report.AnnotationReport) -> Table:
    """Return process questions beside the final one asked directly, where people's answers are known."""
    found = table(
        "question", "posts", "missing", "accuracy", "95 %", "majority", "macro-F1", "balanced",
        title="where the answer is known", title_justify="left",
    )  # fmt: skip

    def add(name: str, known: answer_report.AnswerMetrics) -> None:
        low, high = known.accuracy.low, known.accuracy.high
        found.add_row(
            plain(name), f"{known.posts:,}", f"{known.missing:.1%}", number(known.accuracy.value),
            f"{low:.3f}-{high:.3f}", number(known.majority), number(known.macro_f1),
            number(known.balanced_accuracy),
        )  # fmt: skip

    for one in report.questions:
        if one.known is not None:
            add(one.name, one.known)
    mean = report.process_mean
    if mean is not None and sum(one.known is not None for one in report.questions) > 1:
        found.add_section()
        found.add_row(
            "process questions, mean", "", f"{mean.missing:.1%}", number(mean.accuracy), "", "",
            number(mean.macro_f1), number(mean.balanced_accuracy),
        )  # fmt: skip
    if report.final is not None and report.final.known is not None:
        found.add_section()
        add("final question, directly", report.final.known)
    return found
