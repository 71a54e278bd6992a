"""``selftrain review``: people look at posts within a budget, on a page of ours or in a tool of theirs."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from selftrain._util.choices import Among, Order, Pictures
from selftrain._util.deferred import deferred
from selftrain.cli import options
from selftrain.cli.commands import noun
from selftrain.cli.options import DRAWING, argument, option
from selftrain.cli.printing import echo, print_json, print_some, quoted
from selftrain.errors import BudgetError, ExchangeError, LedgerError
from selftrain.store import atomic

with deferred():
    from selftrain.data import run_posts
    from selftrain.review import labelling, ledger, sampling
    from selftrain.review.exchange import review_export, review_import
    from selftrain.review.page import review_server
    from selftrain.review.page import session as sessions
    from selftrain.store import run_dir
    from selftrain.web import http_server

app = noun("Have people review posts: on a page, or in a tool of yours.")

AUDITED = options.Drawing(floor=0.2, double_annotation_rate=0.0)
REFUSED = 1
"""Exit status of an import that refused lines."""

Reviewed = Annotated[Path, argument("RUN", "A run folder with a review.")]


@app.command(epilog="Example: selftrain review serve runs/mine --budget 40")
@options.grouped
def serve(
    run: options.RunPath,
    *,
    budget: Annotated[
        int | None, option("Most posts that may be reviewed; begins a review.", metavar="B")
    ] = None,
    reviewer: Annotated[
        str, option("Put a name into the URL that is printed.", metavar="NAME", show_default=False)
    ] = "",
    show_opinions: Annotated[
        bool, option("Show the machines' labels before the reviewer answers.", "--show-opinions")
    ] = False,
    port: Annotated[int, option("0: the last one if it is free, else any that is.")] = 0,
    host: options.Host = "127.0.0.1",
    no_browser: Annotated[bool, option("Print the URL and open nothing.", "--no-browser")] = False,
    drawing: options.Drawing,
    order: Annotated[
        Order, option("uncertain: the likely errors first, no estimate before the end.", panel=DRAWING)
    ] = "sampled",
    among: Annotated[Among, option("accepted: pseudo-labels.", panel=DRAWING)] = "divergent",
    seed: Annotated[int, option("Of the draw.", metavar="N", panel=DRAWING)] = 0,
    context: typer.Context,
) -> None:
    """Serve the page on which people review a run's divergent posts, within a budget.

    Draws posts that the classifier and the agents do not agree on, the likely errors more often, and serves
    the page on which people label them. A review that exists goes on.
    """
    folder = labelling.review_folder(run)
    begun = None
    if not _goes_on(folder, budget, _drawing_given(context)):
        begun = sampling.request_reviews(
            folder, budget=_checked_budget(folder, budget, among), batch=among, seed=seed, among=among,
            order=order, **drawing._asdict(),
        )  # fmt: skip
    http_server.quiet_logs()
    session = review_server.open_session(folder, show_opinions=show_opinions)
    if begun is not None:
        echo(f"drawn {len(begun.drawn):,} of {begun.posts:,} posts into {begun.ledger}")
    echo(_progress_line(session))
    try:
        review_server.serve(
            folder, session, review_server.Opening(host, port, reviewer),
            report=echo, opened=lambda where: None if no_browser else _open_browser(where),
        )  # fmt: skip
        echo(_progress_line(session))
        if session.ledger.progress().finished:
            echo(f"next: {review_server.next_command(folder)}")
    finally:
        session.close()


def _drawing_given(context: typer.Context) -> dict[str, object]:
    """Return the options on how posts are drawn that stand on the command line, and their values."""
    found = dict[str, object]()
    for param in context.command.params:
        source = context.get_parameter_source(name := param.name or "")
        drawing = getattr(param, "rich_help_panel", None) == DRAWING
        if drawing and source is not None and source.name != "DEFAULT":
            found[param.opts[0]] = context.params[name]
    return found


def _goes_on(folder: run_dir.RunFolder, budget: int | None, drawing: Mapping[str, object]) -> bool:
    """Return whether the run has a review with posts in it, for these options."""
    folder.recipe()  # no run folder: said before anything else
    with ledger.opened_ledger(folder) as found:
        if found is None or not any(found.drawn(batch) for batch in found.batches()):
            return False
        path, allowed = found.path, found.budget
        if budget not in (None, found.base_budget, allowed):
            raise LedgerError(
                f"{path} holds a review with a budget of {allowed:,}, now {budget:,}: leave --budget out to"
                " go on with it, or move the file away to begin anew"
            )
        among = next((one for one in found.batches() if one in get_args(Among)), "divergent")
        order = "uncertain" if found.likeliest_first(among) else "sampled"
        rate = found.double_annotation_rate
    # the same command goes on; what else it was begun with, no ledger says
    begun = {"--among": among, "--order": order, "--seed": found.seed, "--double-annotation-rate": rate}
    other = [name for name in drawing if budget is None or begun.get(name, drawing[name]) != drawing[name]]
    if other:
        raise LedgerError(
            f"{path} holds a review whose posts are drawn: {', '.join(other)} cannot change it. Leave that"
            " out, or move the file away to begin anew"
        )
    return True


def _checked_budget(folder: run_dir.RunFolder, budget: int | None, among: Among) -> int:
    if budget is not None:
        return budget
    posts = len(sampling.verdicts_among(folder, among))
    raise BudgetError(
        f"{folder.path} has no review yet; {posts:,} {among} posts are there to draw from. Begin one with"
        f" `selftrain review serve {quoted(folder.path)} --budget B`"
    )


def _progress_line(session: sessions.ReviewSession) -> str:
    """Return how far the review is, in a line."""
    progress = session.ledger.progress()
    second = f", {progress.second:,} of {progress.doubled:,} second reviews" if progress.doubled else ""
    return f"reviewed {progress.reviewed:,} of {progress.budget:,} posts{second}"


def _echo_next(run: Path, word: str) -> None:
    """Print what gives reviews to the run or its file, and what else learns from them, as the page does."""
    echo(f"{word}: {review_server.next_command(labelling.review_folder(run))}")
    echo(f"or: {labelling.train_command(run)}")


def _open_browser(where: str) -> None:
    """Open a browser where there is a screen: a text browser would take the terminal away."""
    screen = (
        sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if screen and sys.stdout.isatty():
        # some browsers are waited for, and the server has to answer them
        threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()


@app.command(epilog="Example: selftrain review export runs/mine --to label-studio --out tasks.json")
def export(
    run: Reviewed,
    *,
    to: Annotated[Literal["label-studio", "csv"], option("The format.")],
    out: Annotated[Path, options.written("Where to.")],
    hide_opinions: Annotated[
        bool, option("Leave out the labels of classifier and agents.", "--hide-opinions")
    ] = False,
    everything: Annotated[bool, option("Posts that are reviewed already too.", "--all")] = False,
    pictures: Annotated[
        Pictures | None,
        option("In Label Studio tasks: embedded (the default), or as URLs of its local storage."),
    ] = None,
    local_root: Annotated[
        Path | None, option("What Label Studio's local storage serves.", metavar="DIR")
    ] = None,
) -> None:
    """Write the posts that wait for a review as Label Studio tasks or CSV.

    Label Studio tasks come with predictions of classifier and agents, and a labelling configuration in a
    file of the same name that ends in .xml. Label Studio shows predictions to reviewers: leave them out with
    --hide-opinions if nobody is to lean towards them.
    """
    if to == "csv" and (pictures or local_root):
        raise ExchangeError(
            f"{'--pictures' if pictures else '--local-root'} is about Label Studio tasks; a table names"
            " pictures as the manifest does: leave it out"
        )
    if local_root and pictures != "local-files":
        raise ExchangeError(
            "--local-root is about pictures in Label Studio's local storage: add --pictures local-files, or"
            " leave it out"
        )
    folder = labelling.review_folder(run)
    for written in (out,) if to == "csv" else (out, review_export.config_beside(out)):
        atomic.check_not_read(written, *run_posts.files_of(folder))
    found = review_export.gather_tasks(folder, hide_opinions=hide_opinions, everything=everything)
    if to == "csv":
        atomic.write_text(out, review_export.to_csv(found.tasks))
        echo(f"{out}: {len(found.tasks):,} posts; fill in label and reviewer")
    else:
        config = review_export.write_label_studio(
            found, out, pictures=pictures or "data-uri", root=local_root
        )
        echo(f"{out}: {len(found.tasks):,} tasks to import")
        echo(f"{config}: the labelling configuration")
    echo(f"then: selftrain review import {quoted(run)} FILE")
    _echo_next(run, "and")


@app.command("import", epilog="Example: selftrain review import runs/mine export.json")
def import_file(
    run: Reviewed,
    file: Annotated[Path, argument("FILE", "The reviews.")],
    *,
    reviewer: Annotated[
        str, option("Who decided, where the file is silent.", metavar="NAME", show_default=False)
    ] = "",
    all_or_nothing: Annotated[
        bool, option("Take nothing where a line is refused.", "--all-or-nothing")
    ] = False,
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
) -> int:
    """Take reviews from Label Studio's JSON, JSON-MIN or CSV export, our CSV, or JSON lines.

    What would spend over the budget, repeats, contradicts an earlier decision of the same reviewer, or names
    an unknown post or class is refused line by line; the rest is taken. The same file again changes nothing.
    Exit status 1 where lines were refused.
    """
    found = review_import.import_reviews(
        labelling.review_folder(run), file, reviewer=reviewer, all_or_nothing=all_or_nothing
    )
    if as_json:
        print_json(found._asdict() | {"refused": [one._asdict() for one in found.refused]})
        return REFUSED if found.refused else 0
    print_some([f"line {one.line}, post {one.post_id!r}: {one.reason}" for one in found.refused])
    nothing = ": nothing was taken" if found.nothing else ""
    echo(
        f"{found.taken:,} taken, {found.known:,} known before, {found.empty:,} without a review,"
        f" {len(found.refused):,} refused{nothing}"
    )
    _echo_next(run, "next")
    return REFUSED if found.refused else 0


@app.command(epilog="Example: selftrain review audit runs/mine --budget 100")
@options.grouped
def audit(
    run: options.RunPath,
    *,
    budget: options.Budget,
    drawing: options.Drawing = AUDITED,
    seed: options.Seed = 0,
) -> None:
    """Have a sample of a run's pseudo-labels reviewed: how wrong are they?

    Draws pseudo-labels with known probabilities into the run's review, beside its budget. Once people have
    looked at them, `selftrain show` and the report show the share of wrong pseudo-labels with its 95 %
    interval; corrections enter grown.jsonl when the run's command is given again. A review that is there
    keeps its own seed and share of second reviews.
    """
    found = sampling.request_audit(run_dir.RunFolder(run), budget=budget, seed=seed, **drawing._asdict())
    drawn = "drawn" if found.new else "were drawn before, and stay"
    echo(f"{len(found.drawn):,} of {found.posts:,} pseudo-labels {drawn}: {found.batch!r} in {found.ledger}")
    echo(f"review them with: selftrain review serve {quoted(run)}")
    _echo_next(run, "then")
