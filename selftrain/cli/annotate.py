"""``selftrain annotate`` and ``selftrain tasks``: process labels from a model, and tasks with questions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selftrain.annotation.annotate import Annotated, Prepared
    from selftrain.annotation.figures import Mean
    from selftrain.annotation.report import QuestionReport, Report

_REASONS = 3


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands."""
    parser = subparsers.add_parser(
        "annotate",
        help="ask a model on a server a task's questions about every post",
        description="Asks a task's questions about every post and writes the manifest again with the answers:"
        " into `process` where nobody has given one, with their provenance, else into `process_model`, for a"
        " report to measure them. Labels and known answers are not shown to the model. Interrupted, the"
        " same command goes on; nothing is paid for twice.",
    )
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet")
    add("--task", type=Path, required=True, metavar="TASK", help="a TOML file with questions")
    add("--out", type=Path, required=True, metavar="FILE", help="the manifest to write; beside the other one")
    add(
        "--server", action="append", default=[], dest="servers", metavar="ADDRESS",
        help="of an OpenAI-compatible server, for instance http://127.0.0.1:8000; may be given several times",
    )  # fmt: skip
    add("--questions", metavar="NAME,NAME", help="ask these only (default: all of the task)")
    add("--direct", action="store_true", help="ask for the class too, directly, to compare")
    add("--again", action="store_true", help="ask anew what a model has answered in this manifest")
    add("--limit", type=_positive, metavar="N", help="only about the first N posts; the others are kept")
    add("--token-cap", type=_positive, metavar="N", help="most tokens that FILE may cost, in all starts")
    add(
        "--max-failed", type=_share, default=None, metavar="SHARE",
        help="stop above this share of questions without a usable answer (default: 0.1)",
    )  # fmt: skip
    add("--prompts", type=Path, metavar="DIR", help="prompt files that replace those in agents/questions")
    add("--estimate", action="store_true", help="tell what it would cost and stop; no answer is asked for")
    add("--recipe", type=Path, metavar="RECIPE", help="take the [vlm] section, seed and tolerances of it")
    add(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="change one value of the recipe; may be given several times",
    )  # fmt: skip
    parser.set_defaults(handler=run_annotate)


def run_annotate(args: argparse.Namespace) -> int:
    """Asks and writes, or tells what it would cost."""
    from selftrain.annotation.annotate import annotate, prepare
    from selftrain.annotation.building import MAX_FAILED, settings_of
    from selftrain.annotation.estimate import estimate
    from selftrain.build import build_question_panel
    from selftrain.errors import RecipeError

    if args.overrides and args.recipe is None:
        raise RecipeError("--set changes a value of a recipe, and none is given: add --recipe")
    settings = settings_of(args.recipe, args.servers, args.token_cap, args.overrides)
    names = (
        None if args.questions is None else [one.strip() for one in args.questions.split(",") if one.strip()]
    )
    prepared = prepare(
        args.manifest, args.task, args.out, settings,
        questions=names, direct=args.direct, again=args.again, limit=args.limit,
    )  # fmt: skip
    _print_set_aside(prepared)
    panel = build_question_panel(
        settings, prepared.task, args.out, prompts=args.prompts,
        max_failed=MAX_FAILED if args.max_failed is None else args.max_failed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    try:
        if args.estimate:
            for line in estimate(prepared.plan, panel, settings.seed).lines(settings.vlm.token_cap):
                print(line)
            return 0
        _print_annotated(annotate(prepared, panel), prepared)
    finally:
        panel.close()
    return 0


def _print_set_aside(prepared: Prepared) -> None:
    """Rows that will not be in the manifest that is written: to be known before it is paid for."""
    from selftrain._util.printable import printable
    from selftrain.data.manifest import describe

    if problems := prepared.manifest.problems:
        print(f"{len(problems):,} rows are set aside and will not be written:")
        for line in describe(problems):
            print(printable(line))


def _print_annotated(done: Annotated, prepared: Prepared) -> None:
    from selftrain._util.printable import printable
    from selftrain.cli.printing import console

    told, spent = done.report, done.spending
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


def _answers_table(told: Report) -> object:
    from rich.table import Table

    from selftrain.cli.printing import plain

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


def _known_table(told: Report) -> object:
    """Process questions against the final one asked directly, where persons' answers are known."""
    from rich.table import Table

    from selftrain.annotation.figures import mean
    from selftrain.cli.printing import plain

    table = Table(title="where the answer is known", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("question")
    for heading in ("posts", "missing", "accuracy", "95 %", "majority", "macro-F1", "balanced"):
        table.add_column(heading, justify="right")
    process = [one for one in told.questions if one.known is not None]
    for one in process:
        table.add_row(plain(one.name), *_known_cells(one))
    if len(process) > 1:
        averaged = mean([one.known for one in process if one.known is not None])
        assert averaged is not None
        table.add_section()
        table.add_row("process questions, mean", *_mean_cells(averaged))
    if told.final is not None and told.final.known is not None:
        table.add_section()
        table.add_row("final question, directly", *_known_cells(told.final))
    return table


def _known_cells(one: QuestionReport) -> Sequence[str]:
    from selftrain.cli.printing import number

    known = one.known
    assert known is not None
    accuracy = known.accuracy
    return (
        f"{known.posts:,}", f"{known.missing:.1%}", number(accuracy.value),
        f"{accuracy.low:.3f}-{accuracy.high:.3f}", number(known.majority), number(known.macro_f1),
        number(known.balanced_accuracy),
    )  # fmt: skip


def _mean_cells(averaged: Mean) -> Sequence[str]:
    from selftrain.cli.printing import number

    return (
        "", f"{averaged.missing:.1%}", number(averaged.accuracy), "", "", number(averaged.macro_f1),
        number(averaged.balanced_accuracy),
    )  # fmt: skip


def _each(told: Report) -> list[QuestionReport]:
    return [*told.questions, *([told.final] if told.final is not None else [])]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share from 0 to 1")
    return value
