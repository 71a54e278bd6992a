"""``selftrain status``, ``show``, ``report`` and ``compare``: what is in run folders, for reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agents.judgment import Verdict
from selftrain.cli.options import AsJson, RunPath
from selftrain.cli.printing import console, plain, print_hints, print_json, print_texts, quoted, say
from selftrain.cli.tables import (
    curves_table,
    final_table,
    post_lines,
    recipe_table,
    rounds_table,
    status_lines,
    verdict_line,
)
from selftrain.report import post_history, write_report
from selftrain.report.compare import Comparison, to_json, write_comparison
from selftrain.report.compare import compare as compare_runs
from selftrain.report.post_history import Chapter, Kind, chosen_verdicts, select_rounds
from selftrain.report.status import run_status
from selftrain.review.estimates import newest_estimate, reviewed_batches
from selftrain.store.run_dir import RunFolder

app = typer.Typer()

KINDS: dict[Kind, str] = {
    "disagreements": "verdicts in which classifier and agents name different classes",
    "failed": "verdicts with a call that failed",
    "changed": "verdicts in which an agent changed its mind",
}


@app.command(
    help="Say where a run stands, and what would happen next.",
    epilog="Example: selftrain status runs/mine",
)
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Print one screen.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    state = run_status(RunFolder(run))
    if as_json:
        print_json(state.to_json())
    else:
        print_texts(plain(f"{name:<16}  {value}") for name, value in status_lines(state))


WHAT = "What to show, instead of the rounds"


@app.command(
    help="Show the rounds of a run, or everything said about one post.",
    epilog="Example: selftrain show runs/mine --round 2 --disagreements",
)
def show(
    run: RunPath,
    *,
    post: Annotated[
        str | None, typer.Option(metavar="ID", help="The story of one post.", rich_help_panel=WHAT)
    ] = None,
    disagreements: Annotated[
        bool,
        typer.Option("--disagreements", help=f"All {KINDS['disagreements']}.", rich_help_panel=WHAT),
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help=f"All {KINDS['failed']}.", rich_help_panel=WHAT)
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help=f"All {KINDS['changed']}.", rich_help_panel=WHAT)
    ] = False,
    number: Annotated[
        int | None,
        typer.Option("--round", metavar="N", help="Of one round; alone, its verdicts, one a line."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print rounds, one round's verdicts, the verdicts of one kind, or one post's story.

    Raises:
        RunStateError: No run folder, a damaged one, or no such round or post in it.
        BadParameter: Several of them at once.
    """
    asked: dict[Kind, bool] = {"disagreements": disagreements, "failed": failed, "changed": changed}
    kinds = [kind for kind, wanted in asked.items() if wanted]
    if len(kinds) + (post is not None) > 1:
        raise typer.BadParameter("only one of --post, --disagreements, --failed and --changed at a time")
    folder = RunFolder(run)
    if post is not None:
        _show_post(folder, post, number, as_json=as_json)
    elif kinds:
        _show_kind(folder, number, kinds[0], as_json=as_json)
    elif number is not None:
        _show_round(folder, number, as_json=as_json)
    else:
        _show_rounds(folder, as_json=as_json)


@app.command(
    help="Render a run's report.html anew.",
    epilog="Example: selftrain report runs/mine --out mine.html",
)
def report(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to, instead of report.html in RUN.")
    ] = None,
) -> None:
    """Print where the page lies.

    Raises:
        RunStateError: No run folder, or a damaged one.
        StorageError: The page cannot be written.
    """
    say(write_report(RunFolder(run), out))


@app.command(
    help="Hold runs side by side: recipes, curves, final figures.",
    epilog="Example: selftrain compare runs/plain runs/vlm --html side_by_side.html",
)
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder; the others are held against it.")
    ],
    others: Annotated[list[Path], typer.Argument(metavar="RUN", help="More run folders.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the tables, and write the page when one is asked for.

    Raises:
        RunStateError: No run folder, no finished round in it, or a damaged one.
        StorageError: The page cannot be written.
    """
    comparison = compare_runs([RunFolder(path) for path in (first, *others)])
    if html is not None:
        write_comparison(comparison, html)
    if as_json:
        print_json(to_json(comparison))
        return
    _print_comparison(comparison)
    if html is not None:
        say(html)


def _show_post(folder: RunFolder, post_id: str, number: int | None, *, as_json: bool) -> None:
    story = post_history.load(folder, post_id, number)
    if as_json:
        print_json(*story.to_json())
    else:
        print_texts(post_lines(story))


def _show_round(folder: RunFolder, number: int, *, as_json: bool) -> None:
    select_rounds(folder, number)
    verdicts = folder.verdicts(number)
    if as_json:
        print_json(*(verdict.to_json() for verdict in verdicts))
        return
    nothing = [] if verdicts else [plain(f"round {number} verified no post: it is the labels alone")]
    print_texts([*map(verdict_line, verdicts), *nothing])


def _show_kind(folder: RunFolder, number: int | None, kind: Kind, *, as_json: bool) -> None:
    chosen = chosen_verdicts(folder, number, kind)
    if as_json:
        print_json(*({"round": one.round, "kept": one.kept, **one.verdict.to_json()} for one in chosen))
        return
    where = "any round" if number is None else f"round {number}"
    print_texts([_kind_line(one) for one in chosen] or [plain(f"none in {where}: no {KINDS[kind]}")])


def _kind_line(chapter: Chapter) -> Text:
    outcome = "kept" if chapter.kept else "rolled back"
    return plain(f"round {chapter.round:>2}, {outcome:<11}  ", "dim").append_text(
        verdict_line(chapter.verdict)
    )


def _show_rounds(folder: RunFolder, *, as_json: bool) -> None:
    rounds = select_rounds(folder, None)
    if as_json:
        print_json(*(one.to_json() for one in rounds))
        return
    console().print(rounds_table(rounds))
    line = newest_estimate(reviewed_batches(folder))
    if line is not None:
        print_texts([plain(""), plain(line)])
    if len(rounds) > 1:
        print()
        print_hints(_hints(quoted(folder.path), folder.verdicts(1)))


def _hints(run: str, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    lines = [(f"selftrain show {run} --round 1", "the verdicts of a round, one a line")]
    if verdicts:
        post = quoted(_telling(verdicts).post_id)
        lines.append((f"selftrain show {run} --post {post}", "everything said about one post"))
    lines.append(
        (f"selftrain show {run} --disagreements", "where classifier and agents name different classes")
    )
    return [*lines, (f"selftrain status {run}", "where it stands, and what would happen next")]


def _telling(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict most worth reading first: one that took a second judgment, else any."""
    return max(verdicts, key=lambda verdict: len(verdict.judgments))


def _print_comparison(comparison: Comparison) -> None:
    shown = console()
    if not comparison.same_task:
        shown.print(plain("different tasks: the figures do not compare", "bold red"))
    elif not comparison.same_posts:
        shown.print(plain("not the same posts in the same splits: figures differ by the draw, too", "bold"))
    for table, what in (
        (
            final_table(comparison),
            "best models [95 % interval]; gain: on the first run, paired post by post",
        ),
        (curves_table(comparison), "validation macro-F1 by round; in brackets: rolled back"),
        (recipe_table(comparison), "what the recipes differ in" if comparison.recipe else "the same recipe"),
    ):
        shown.print(plain(what, "dim"))
        if table.row_count:
            shown.print(table)
        shown.print()
