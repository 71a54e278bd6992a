"""``selftrain status``, ``show``, ``report`` and ``compare``: what is in run folders, for reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selftrain._util.deferred import deferred
from selftrain.cli.options import AsJson, RunPath, argument, option, written
from selftrain.cli.printing import console, echo, plain, print_hints, print_json, print_texts, quoted
from selftrain.store import atomic

if TYPE_CHECKING:
    from rich.text import Text

    from agents.judgment import Verdict

with deferred():
    from selftrain import rounds as finished
    from selftrain.cli import tables
    from selftrain.report import compare as comparing
    from selftrain.report import post_history, run_page
    from selftrain.report import status as statuses
    from selftrain.review import estimates
    from selftrain.store import run_dir

app = typer.Typer()

WHAT = "What to show, instead of the rounds"
KINDS: dict[post_history.Kind, str] = {
    "disagreements": "verdicts in which classifier and agents name different classes",
    "failed": "verdicts with a call that failed",
    "changed": "verdicts in which an agent changed its mind",
}


def _all_of(kind: post_history.Kind) -> Any:  # noqa: ANN401 -- typer's own
    return option(f"All {KINDS[kind]}.", f"--{kind}", panel=WHAT)


@app.command(epilog="Example: selftrain status runs/mine")
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Say where a run stands, and what would happen next."""
    state = statuses.run_status(run_dir.RunFolder(run))
    if as_json:
        print_json(state.to_json())
    else:
        print_texts(plain(f"{name:<16}  {value}") for name, value in tables.status_lines(state))


@app.command(epilog="Example: selftrain show runs/mine --round 2 --disagreements")
def show(
    run: RunPath,
    *,
    post: Annotated[str | None, option("The story of one post.", metavar="ID", panel=WHAT)] = None,
    disagreements: Annotated[bool, _all_of("disagreements")] = False,
    failed: Annotated[bool, _all_of("failed")] = False,
    changed: Annotated[bool, _all_of("changed")] = False,
    number: Annotated[
        int | None, option("Of one round; alone, its verdicts, one a line.", "--round", metavar="N")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rounds of a run, or everything said about one post."""
    # in the order of KINDS
    wanted = dict(zip(KINDS, (disagreements, failed, changed), strict=True))
    kinds = [kind for kind, asked in wanted.items() if asked]
    if len(kinds) + (post is not None) > 1:
        raise typer.BadParameter("only one of --post, --disagreements, --failed and --changed at a time")
    folder = run_dir.RunFolder(run)
    if post is None and not kinds and number is None:
        _show_rounds(folder, as_json=as_json)
        return
    records: Iterable[dict[str, Any]]
    lines: Iterable[Text]
    if post is not None:
        story = post_history.load(folder, post, number)
        records, lines = story.to_json(), tables.post_lines(story)
    elif kinds:
        told = post_history.told_chapters(folder, number)
        chosen = [one for one in told if post_history.is_of_kind(one.verdict, kinds[0])]
        records = ({"round": one.round, "kept": one.kept, **one.verdict.to_json()} for one in chosen)
        where = "any round" if number is None else f"round {number}"
        nothing = plain(f"none in {where}: no {KINDS[kinds[0]]}")
        lines = map(tables.chapter_line, chosen) if chosen else [nothing]
    else:
        verdicts = [one.verdict for one in post_history.told_chapters(folder, number)]
        records = (verdict.to_json() for verdict in verdicts)
        nothing = plain(f"round {number} verified no post: it is the labels alone")
        lines = map(tables.verdict_line, verdicts) if verdicts else [nothing]
    if as_json:
        print_json(*records)
    else:
        print_texts([plain(tables.SIMULATED)] if folder.environment().simulated else [])
        print_texts(lines)


@app.command(epilog="Example: selftrain report runs/mine --out mine.html")
def report(
    run: RunPath, out: Annotated[Path | None, written("Where to, instead of report.html in RUN.")] = None
) -> None:
    """Render a run's report.html anew."""
    echo(run_page.write_report(run_dir.RunFolder(run), out))


@app.command(epilog="Example: selftrain compare runs/plain runs/vlm --html side_by_side.html")
def compare(
    first: Annotated[Path, argument("RUN", "A run folder; the others are held against it.")],
    others: Annotated[list[Path], argument("RUN", "More run folders.")],
    html: Annotated[Path | None, written("Write a page as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold runs side by side: recipes, curves, final metrics."""
    comparison = comparing.compare([run_dir.RunFolder(path) for path in (first, *others)])
    if html is not None:
        atomic.write_text(html, comparing.render_comparison(comparison))
    if as_json:
        print_json(comparing.to_json(comparison))
        return
    _print_comparison(comparison)
    if html is not None:
        echo(html)


def _show_rounds(folder: run_dir.RunFolder, *, as_json: bool) -> None:
    rounds = post_history.select_rounds(folder, None)
    if as_json:
        print_json(*(one.to_json() for one in rounds))
        return
    console().print(tables.rounds_table(rounds))
    # what the last round that asked the agents says of them
    gains = next((one.gains for one in reversed(rounds) if one.gains), {})
    print_texts(map(plain, finished.gain_lines(gains)))
    line = estimates.newest_estimate(estimates.reviewed_batches(folder))
    if line is not None:
        print_texts([plain(""), plain(line)])
    if len(rounds) > 1:
        print()
        print_hints(_hints(quoted(folder.path), folder.verdicts(1)))


def _hints(run: str, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    lines = [(f"selftrain show {run} --round 1", "the verdicts of a round, one a line")]
    if verdicts:
        # most worth reading first: one that took a second judgment
        post = quoted(max(verdicts, key=lambda verdict: len(verdict.judgments)).post_id)
        lines.append((f"selftrain show {run} --post {post}", "everything said about one post"))
    lines.append(
        (f"selftrain show {run} --disagreements", "where classifier and agents name different classes")
    )
    return [*lines, (f"selftrain status {run}", "where it stands, and what would happen next")]


def _print_comparison(comparison: comparing.Comparison) -> None:
    shown = console()
    if not comparison.same_task:
        shown.print(plain("different tasks: the metrics do not compare", "bold red"))
    elif not comparison.same_posts:
        shown.print(plain("not the same posts in the same splits: metrics differ by the draw, too", "bold"))
    best = "best models [95 % interval]; gain: on the first run, paired post by post"
    curves = "validation macro-F1 and AUC by round; in brackets: rolled back"
    recipes = "what the recipes differ in" if comparison.recipe else "the same recipe"
    for what, found in (
        (best, tables.final_table(comparison)),
        (curves, tables.curves_table(comparison)),
        (recipes, tables.recipe_table(comparison)),
    ):
        shown.print(plain(what, "dim"))
        if found.row_count:
            shown.print(found)
        shown.print()
