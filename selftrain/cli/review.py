"""``selftrain review``: people look at posts within a budget, on a page of ours or in a tool of theirs."""

from __future__ import annotations

import json
import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from selftrain.act.budget import Rule
from selftrain.cli.commands import noun
from selftrain.cli.options import RunPath
from selftrain.cli.printing import print_json, quoted, say
from selftrain.errors import BudgetError, LedgerError
from selftrain.review.exchange import review_export
from selftrain.review.exchange.review_export import Pictures, gather_tasks, to_csv
from selftrain.review.exchange.review_import import import_reviews
from selftrain.review.labelling import review_folder
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.page.review_server import Opening, next_command, open_session
from selftrain.review.page.review_server import serve as serve_page
from selftrain.review.page.session import ReviewSession
from selftrain.review.sampling import (
    Among,
    Order,
    Requested,
    request_audit,
    request_reviews,
    verdicts_among,
)
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.web.http_server import quiet_logs

app = noun("Have people review posts: on a page, or in a tool of yours.")

REFUSED = 1
"""Exit status of an import that refused lines."""

DRAWING = "How the posts are drawn when the review begins"
DRAWN: dict[str, Any] = {
    "rule": "exponential", "floor": 0.1, "doubled": 0.1, "order": "sampled", "among": "divergent", "seed": 0
}  # fmt: skip
"""How a sample is drawn where no option says otherwise; of a review that exists, nothing of it can change."""

Reviewed = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with a review.")]


@app.command(
    help="Serve the page on which people review a run's divergent posts, within a budget.\n\n"
    "Draws posts that the classifier and the agents do not agree on, the likely errors more often, and"
    " serves the page on which people label them. A review that exists goes on.",
    epilog="Example: selftrain review serve runs/mine --budget 40",
)
def serve(
    run: RunPath,
    *,
    budget: Annotated[
        int | None, typer.Option(metavar="B", help="Most posts that may be reviewed; begins a review.")
    ] = None,
    reviewer: Annotated[
        str,
        typer.Option(metavar="NAME", show_default=False, help="Put a name into the address that is printed."),
    ] = "",
    show_opinions: Annotated[
        bool,
        typer.Option("--show-opinions", help="Show what machines said before the reviewer answers."),
    ] = False,
    port: Annotated[int, typer.Option(help="0: the last one if it is free, else any that is.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open nothing.")
    ] = False,
    rule: Annotated[
        Rule | None, typer.Option(rich_help_panel=DRAWING, help="By default exponential.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=DRAWING,
            help="Of the budget that is drawn from all posts alike; by default .1.",
        ),
    ] = None,
    doubled: Annotated[
        float | None,
        typer.Option(
            "--double-annotation-rate",
            metavar="SHARE",
            rich_help_panel=DRAWING,
            help="Of posts that two people review; by default .1.",
        ),
    ] = None,
    order: Annotated[
        Order | None,
        typer.Option(
            rich_help_panel=DRAWING,
            help="By default sampled; uncertain, the likely errors first, has no estimate before all are"
            " reviewed.",
        ),
    ] = None,
    among: Annotated[
        Among | None,
        typer.Option(rich_help_panel=DRAWING, help="By default divergent; accepted: pseudo-labels."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=DRAWING, help="By default 0.")
    ] = None,
) -> None:
    """Serve the page until told to end.

    Raises:
        SelftrainError: No run, nothing to review, a budget that cannot be spent, another run's ledger, a port
            that cannot be had.
    """
    drawing = {
        "rule": rule, "floor": floor, "doubled": doubled, "order": order, "among": among, "seed": seed
    }  # fmt: skip
    folder = review_folder(run)
    begun = begin(folder, budget, {name: value for name, value in drawing.items() if value is not None})
    quiet_logs()
    session = open_session(folder, show_opinions=show_opinions)
    if begun is not None:
        say(f"drawn {len(begun.drawn):,} of {begun.posts:,} posts into {begun.ledger}")
    say(_progress_line(session))
    try:
        serve_page(
            folder, session, Opening(host, port, reviewer),
            tell=say, opened=lambda where: None if no_browser else _open_browser(where),
        )  # fmt: skip
        say(_progress_line(session))
        if session.ledger.progress().finished:
            say(f"next: {next_command(folder)}")
    finally:
        session.close()


def begin(folder: RunFolder, budget: int | None, drawing: dict[str, Any]) -> Requested | None:
    """Draw the sample of a review that is not there yet; None: one is, and goes on.

    Raises:
        BudgetError: No budget for a new review, or one that cannot be spent.
        LedgerError: The budget or the drawing is not that of the review that exists.
        RunStateError: No run folder, or a damaged one.
    """
    if _goes_on(folder, budget, drawing):
        return None
    chosen = DRAWN | drawing
    if budget is None:
        posts = len(verdicts_among(folder, chosen["among"]))
        raise BudgetError(
            f"{folder.path} has no review yet; {posts:,} {chosen['among']} posts are there to draw from."
            f" Begin one with `selftrain review serve {quoted(folder.path)} --budget B`"
        )
    doubled = chosen.pop("doubled")
    return request_reviews(
        folder, budget=budget, batch=chosen["among"], double_annotation_rate=doubled, **chosen
    )


def _goes_on(folder: RunFolder, budget: int | None, drawing: dict[str, Any]) -> bool:
    """Return whether the run has a review with posts in it, for these options.

    Raises:
        LedgerError: Options that would draw another one.
    """
    folder.recipe()  # no run folder: said before anything else
    path = folder.path / LEDGER
    if not path.exists():
        return False
    ledger = ReviewLedger(path)
    try:
        if not any(ledger.drawn(batch) for batch in ledger.batches()):
            return False
        if budget not in (None, ledger.base_budget, ledger.budget):
            raise LedgerError(
                f"{path} holds a review with a budget of {ledger.budget:,}, now {budget:,}: leave --budget"
                " out to go on with it, or move the file away to begin anew"
            )
    finally:
        ledger.close()
    if drawing and budget is None:
        options = ", ".join("--double-annotation-rate" if o == "doubled" else f"--{o}" for o in drawing)
        raise LedgerError(
            f"{path} holds a review whose posts are drawn: {options} cannot change it. Leave that out, or"
            " move the file away to begin anew"
        )
    return True


def _progress_line(session: ReviewSession) -> str:
    """Return how far the review is, in a line."""
    progress = session.ledger.progress()
    second = f", {progress.second:,} of {progress.doubled:,} second reviews" if progress.doubled else ""
    return f"reviewed {progress.reviewed:,} of {progress.budget:,} posts{second}"


def _open_browser(where: str) -> None:
    """Open a browser where there is a screen: a text browser would take the terminal away."""
    screen = (
        sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if screen and sys.stdout.isatty():
        # some browsers are waited for, and the server has to answer them
        threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()


@app.command(
    help="Write the posts that wait for a review as Label Studio tasks or CSV.\n\n"
    "Label Studio tasks come with predictions of classifier and agents, and a labelling configuration in"
    " a file of the same name that ends in .xml. Label Studio shows predictions to reviewers: leave them"
    " out with --hide-opinions if nobody is to lean towards them.",
    epilog="Example: selftrain review export runs/mine --to label-studio --out tasks.json",
)
def export(
    run: Reviewed,
    *,
    to: Annotated[Literal["label-studio", "csv"], typer.Option(help="The format.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to.")],
    hide_opinions: Annotated[
        bool, typer.Option("--hide-opinions", help="Leave out what classifier and agents said.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Posts that are reviewed already too.")] = False,
    pictures: Annotated[
        Pictures,
        typer.Option(help="In Label Studio tasks: embedded, or as addresses of its local storage."),
    ] = "data-uri",
    local_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What Label Studio's local storage serves.")
    ] = None,
) -> None:
    """Write the file, and for Label Studio the configuration beside it.

    Raises:
        ActError, RunStateError, BackboneError: Nothing is written.
    """
    found = gather_tasks(review_folder(run), hide_opinions=hide_opinions, everything=everything)
    if to == "csv":
        atomic.write_text(out, to_csv(found.tasks))
        say(f"{out}: {len(found.tasks):,} posts; fill in label and reviewer")
    else:
        config = review_export.labelling_config(
            found.classes,
            pictures=any(task.images for task in found.tasks),
            opinions=any(task.opinions for task in found.tasks),
        )
        tasks = list(review_export.to_tasks(found.tasks, pictures=pictures, root=local_root))
        atomic.write_text(out.with_suffix(".xml"), config)
        atomic.write_text(out, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
        say(f"{out}: {len(tasks):,} tasks to import")
        say(f"{out.with_suffix('.xml')}: the labelling configuration")
    say(f"then: selftrain review import {quoted(run)} FILE")


@app.command(
    "import",
    help="Take reviews from Label Studio's JSON, JSON-MIN or CSV export, or from our CSV.\n\n"
    "What would spend over the budget, repeats, contradicts an earlier decision of the same reviewer, or"
    " names an unknown post or class is refused line by line; the rest is taken. The same file again"
    " changes nothing. Exit status 1 where lines were refused.",
    epilog="Example: selftrain review import runs/mine export.json",
)
def import_file(
    run: Reviewed,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The reviews.")],
    *,
    reviewer: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Who decided, where the file is silent.")
    ] = "",
    all_or_nothing: Annotated[
        bool, typer.Option("--all-or-nothing", help="Take nothing where a line is refused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Take what can be taken, and name every line that is refused.

    Raises:
        ActError, RunStateError: Nothing is taken.
    """
    found = import_reviews(review_folder(run), file, reviewer=reviewer, all_or_nothing=all_or_nothing)
    if as_json:
        print_json(found._asdict() | {"refused": [one._asdict() for one in found.refused]})
        return REFUSED if found.refused else 0
    for one in found.refused:
        say(f"line {one.line}, post {one.post_id!r}: {one.reason}")
    nothing = ": nothing was taken" if found.nothing else ""
    say(
        f"{found.taken:,} taken, {found.known:,} known before, {found.empty:,} without a review,"
        f" {len(found.refused):,} refused{nothing}"
    )
    return REFUSED if found.refused else 0


@app.command(
    help="Have a sample of a run's pseudo-labels reviewed: how wrong are they?\n\n"
    "Draws pseudo-labels with known probabilities into the run's review, beside its budget. Once people"
    " have looked at them, `selftrain show` and the report tell the share of wrong pseudo-labels with its"
    " 95 % interval; corrections enter grown.jsonl when the run's command is given again.",
    epilog="Example: selftrain review audit runs/mine --budget 100",
)
def audit(
    run: RunPath,
    *,
    budget: Annotated[int, typer.Option(metavar="B", help="Posts to review.")],
    rule: Annotated[Rule, typer.Option(help="How likely errors are drawn more often.")] = "exponential",
    floor: Annotated[float, typer.Option(metavar="SHARE", help="Spread evenly.")] = 0.2,
    doubled: Annotated[
        float, typer.Option("--double-annotation-rate", metavar="SHARE", help="Reviewed by two people.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draw.")] = 0,
) -> None:
    """Draw the sample and say where it waits.

    Raises:
        ActError, RunStateError: Nothing is drawn.
    """
    found = request_audit(
        RunFolder(run), budget=budget, rule=rule, floor=floor, double_annotation_rate=doubled, seed=seed
    )
    drawn = "drawn" if found.new else "were drawn before"
    say(f"{len(found.drawn):,} of {found.posts:,} pseudo-labels {drawn}: {found.batch!r} in {found.ledger}")
    say(f"review them with: selftrain review serve {quoted(run)}")
