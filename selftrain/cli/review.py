"""``selftrain review``: the page on which people review a run's divergent posts, within a budget."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selftrain.review.page.session import ReviewSession
    from selftrain.review.sampling import Among, Requested
    from selftrain.store.run_dir import RunFolder

DRAWING = ("rule", "floor", "doubled", "order", "among", "seed")
"""Options that say how a sample is drawn; of a review that exists, nothing of it can change."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "review",
        help="a page on which people review a run's divergent posts, within a budget",
        description="Draws posts that the classifier and the agents do not agree on, the likely errors more"
        " often, and serves the page on which people label them. A review that exists goes on.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder")
    add("--budget", type=int, metavar="B", help="most posts that may be reviewed; begins a review")
    add("--reviewer", default="", metavar="NAME", help="put a name into the address that is printed")
    add("--show-opinions", action="store_true", help="show what machines said before the reviewer answers")
    add("--port", type=int, default=0, help="default: the last one if it is free, else any that is")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--no-browser", action="store_true", help="print the address and open nothing")
    drawing = parser.add_argument_group("how the posts are drawn when the review begins").add_argument
    drawing("--rule", choices=("normalised", "exponential", "threshold"), help="default: exponential")
    drawing(
        "--floor", type=float, metavar="SHARE",
        help="of the budget that is drawn from all posts alike (default: 0.1)",
    )  # fmt: skip
    drawing("--doubled", type=float, metavar="SHARE", help="of posts that two people review (default: 0.1)")
    drawing(
        "--order", choices=("sampled", "uncertain"),
        help="default: sampled; uncertain, the likely errors first, has no estimate before all are reviewed",
    )  # fmt: skip
    drawing("--among", choices=("divergent", "accepted"), help="default: divergent; accepted: pseudo-labels")
    drawing("--seed", type=int, metavar="N", help="default: 0")
    parser.set_defaults(handler=run_review, **dict.fromkeys(DRAWING))


def run_review(args: argparse.Namespace) -> int:
    """Serves the page until it is told to end.

    Raises:
        SelftrainError: No run, nothing to review, a budget that cannot be spent, another run's ledger, a port
            that cannot be had.
    """
    from selftrain._util.printable import printable
    from selftrain.review.labelling import review_folder
    from selftrain.review.page.review_server import Opening, next_command, open_session, serve
    from selftrain.web.http_server import quiet_logs

    folder = review_folder(args.run)
    begun = begin(folder, args)
    quiet_logs()

    def tell(line: str) -> None:
        print(printable(line), flush=True)

    desk = open_session(folder, show_opinions=args.show_opinions)
    if begun is not None:
        tell(f"drawn {len(begun.drawn):,} of {begun.posts:,} posts into {begun.ledger}")
    tell(standing(desk))
    opening = Opening(args.host, args.port, args.reviewer)
    try:
        serve(
            folder, desk, opening, tell=tell, opened=lambda where: None if args.no_browser else _show(where)
        )
        tell(standing(desk))
        if desk.ledger.progress().finished:
            tell(f"next: {next_command(folder)}")
    finally:
        desk.close()
    return 0


def begin(folder: RunFolder, args: argparse.Namespace) -> Requested | None:
    """Draws the sample of a review that is not there yet; None: one is, and goes on.

    Raises:
        BudgetError: No budget for a new review, or one that cannot be spent.
        LedgerError: The budget or the drawing is not that of the review that exists.
        RunStateError: No run folder, or a damaged one.
    """
    from selftrain.errors import BudgetError
    from selftrain.review.sampling import request_reviews, verdicts_among

    if _goes_on(folder, args.budget, [name for name in DRAWING if getattr(args, name) is not None]):
        return None
    among: Among = args.among or "divergent"
    if args.budget is None:
        posts = len(verdicts_among(folder, among))
        raise BudgetError(
            f"{folder.path} has no review yet; {posts:,} {among} posts are there to draw from."
            f" Begin one with `selftrain review {shlex.quote(str(folder.path))} --budget B`"
        )
    return request_reviews(
        folder,
        budget=args.budget,
        batch=among,
        rule=args.rule or "exponential",
        floor=0.1 if args.floor is None else args.floor,
        double_annotation_rate=0.1 if args.doubled is None else args.doubled,
        seed=args.seed or 0,
        among=among,
        order=args.order or "sampled",
    )


def _goes_on(folder: RunFolder, budget: int | None, drawing: list[str]) -> bool:
    """Whether the run has a review with posts in it, for these options.

    Raises:
        LedgerError: Options that would draw another one.
    """
    from selftrain.errors import LedgerError
    from selftrain.review.ledger import ReviewLedger
    from selftrain.review.ledger_reader import LEDGER

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
        options = ", ".join(f"--{name}" for name in drawing)
        raise LedgerError(
            f"{path} holds a review whose posts are drawn: {options} cannot change it. Leave that out, or"
            " move the file away to begin anew"
        )
    return True


def standing(desk: ReviewSession) -> str:
    """How far the review is, in a line."""
    progress = desk.ledger.progress()
    second = f", {progress.second:,} of {progress.doubled:,} second reviews" if progress.doubled else ""
    return f"reviewed {progress.reviewed:,} of {progress.budget:,} posts{second}"


def _show(where: str) -> None:
    """Opens a browser where there is a screen: a text browser would take the terminal away."""
    import threading
    import webbrowser

    screen = (
        sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if screen and sys.stdout.isatty():
        # some browsers are waited for, and the server has to answer them
        threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()
