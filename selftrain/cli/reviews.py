"""``selftrain reviews``: review in your own tool. ``selftrain act audit``: are the pseudo-labels right?"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

REFUSED = 1
"""Exit status of an import that refused lines."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `reviews` and its commands."""
    parser = subparsers.add_parser("reviews", help="review in Label Studio or a spreadsheet: export, import")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_export(commands)
    _add_import(commands)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write the posts that wait for a review as Label Studio tasks or CSV",
        description="Label Studio tasks come with predictions of classifier and agents, and a labelling"
        " configuration in a file of the same name that ends in .xml. Label Studio shows predictions to"
        " reviewers: leave them out with --hide-opinions if nobody is to lean towards them.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder with a review")
    add("--to", choices=("label-studio", "csv"), required=True, help="the format")
    add("--out", type=Path, required=True, metavar="FILE", help="where to")
    add("--hide-opinions", action="store_true", help="leave out what classifier and agents said")
    add("--all", action="store_true", dest="everything", help="posts that are reviewed already too")
    add(
        "--pictures", choices=("data-uri", "local-files"), default="data-uri",
        help="in Label Studio tasks: embedded (default), or as addresses of its local storage",
    )  # fmt: skip
    add("--local-root", type=Path, metavar="DIR", help="what Label Studio's local storage serves")
    parser.set_defaults(handler=run_export)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import",
        help="take reviews from Label Studio's JSON, JSON-MIN or CSV export, or from our CSV",
        description="What would spend over the budget, repeats, contradicts an earlier decision of the same"
        " reviewer, or names an unknown post or class is refused line by line; the rest is taken. The same"
        " file again changes nothing. Exits with 1 where lines were refused.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder with a review")
    add("file", type=Path, metavar="FILE", help="the reviews")
    add("--reviewer", default="", metavar="NAME", help="who decided, where the file does not say")
    add("--all-or-nothing", action="store_true", help="take nothing where a line is refused")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run_import)


def add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `act audit`."""
    parser = commands.add_parser(
        "audit",
        help="have a sample of a run's pseudo-labels reviewed: how wrong are they?",
        description="Draws pseudo-labels with known probabilities into the run's review, beside its budget."
        " Once people have looked at them, `selftrain show` and the report tell the share of wrong"
        " pseudo-labels with its 95 %% interval; corrections enter grown.jsonl when the run's command is"
        " given again.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder")
    add("--budget", type=int, required=True, metavar="B", help="posts to review")
    add("--rule", choices=("normalised", "exponential", "threshold"), default="exponential")
    add("--floor", type=float, default=0.2, metavar="SHARE", help="spread evenly (default: 0.2)")
    add("--doubled", type=float, default=0.0, metavar="SHARE", help="reviewed by two people (default: 0)")
    add("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.set_defaults(handler=run_audit)


def run_export(args: argparse.Namespace) -> int:
    """Writes the file, and for Label Studio the configuration beside it.

    Raises:
        ActError, RunStateError, BackboneError: Nothing is written.
    """
    from selftrain.review.exchange import review_export as label_studio
    from selftrain.review.exchange.review_export import gather_tasks, to_csv
    from selftrain.review.labelling import review_folder
    from selftrain.store import atomic

    found = gather_tasks(
        review_folder(args.run), hide_opinions=args.hide_opinions, everything=args.everything
    )
    if args.to == "csv":
        atomic.write_text(args.out, to_csv(found.tasks))
        _say(f"{args.out}: {len(found.tasks):,} posts; fill in label and reviewer")
    else:
        config = label_studio.labelling_config(
            found.classes,
            pictures=any(task.images for task in found.tasks),
            opinions=any(task.opinions for task in found.tasks),
        )
        tasks = list(label_studio.to_tasks(found.tasks, pictures=args.pictures, root=args.local_root))
        atomic.write_text(args.out.with_suffix(".xml"), config)
        atomic.write_text(args.out, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
        _say(f"{args.out}: {len(tasks):,} tasks to import")
        _say(f"{args.out.with_suffix('.xml')}: the labelling configuration")
    _say(f"then: selftrain reviews import {shlex.quote(str(args.run))} FILE")
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Takes what can be taken, and names every line that is refused.

    Raises:
        ActError, RunStateError: Nothing is taken.
    """
    from selftrain.review.exchange.review_import import import_reviews
    from selftrain.review.labelling import review_folder

    found = import_reviews(
        review_folder(args.run), args.file, reviewer=args.reviewer, all_or_nothing=args.all_or_nothing
    )
    if args.json:
        record = found._asdict() | {"refused": [one._asdict() for one in found.refused]}
        print(json.dumps(record).replace("\x7f", "\\u007f"))
        return REFUSED if found.refused else 0
    for one in found.refused:
        _say(f"line {one.line}, post {one.post_id!r}: {one.reason}")
    nothing = ": nothing was taken" if found.nothing else ""
    _say(
        f"{found.taken:,} taken, {found.known:,} known before, {found.empty:,} without a review,"
        f" {len(found.refused):,} refused{nothing}"
    )
    return REFUSED if found.refused else 0


def run_audit(args: argparse.Namespace) -> int:
    """Draws the sample and says where it waits.

    Raises:
        ActError, RunStateError: Nothing is drawn.
    """
    from selftrain.review.sampling import request_audit
    from selftrain.store.run_dir import RunFolder

    found = request_audit(
        RunFolder(args.run), budget=args.budget, rule=args.rule, floor=args.floor,
        double_annotation_rate=args.doubled, seed=args.seed,
    )  # fmt: skip
    drawn = "drawn" if found.new else "were drawn before"
    _say(f"{len(found.drawn):,} of {found.posts:,} pseudo-labels {drawn}: {found.batch!r} in {found.ledger}")
    _say(f"review them with: selftrain review {shlex.quote(str(args.run))}")
    return 0


def _say(line: str) -> None:
    from selftrain._util.printable import printable

    print(printable(line), flush=True)
