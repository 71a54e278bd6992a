"""``selftrain status``, ``show`` and ``report``: what is in a run folder, for reading."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from agents.judgment import Verdict
    from selftrain.report.post_history import Chapter, Kind
    from selftrain.store.run_dir import RunFolder

KINDS: dict[Kind, str] = {
    "disagreements": "verdicts in which classifier and agents name different classes",
    "failed": "verdicts with a call that failed",
    "changed": "verdicts in which an agent changed its mind",
}


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the three commands."""
    status = subparsers.add_parser("status", help="where a run stands, and what would happen next")
    show = subparsers.add_parser("show", help="the rounds of a run, or everything said about one post")
    report = subparsers.add_parser("report", help="render a run's report.html anew")
    for parser in (status, show, report):
        parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    show.add_argument("--round", type=int, metavar="N", help="of one round; alone, its verdicts, one a line")
    kinds = show.add_mutually_exclusive_group()
    kinds.add_argument("--post", metavar="ID", help="the story of one post")
    for kind, text in KINDS.items():
        kinds.add_argument(f"--{kind}", action="store_const", const=kind, dest="kind", help=text)
    report.add_argument("--out", type=Path, metavar="FILE", help="where to (default: report.html in RUN)")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    show.add_argument("--json", action="store_true", help="print JSON lines")
    status.set_defaults(handler=run_status)
    show.set_defaults(handler=run_show)
    report.set_defaults(handler=run_report)


def run_status(args: argparse.Namespace) -> int:
    """One screen.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    from selftrain.report import status
    from selftrain.store.run_dir import RunFolder

    state = status.run_status(RunFolder(args.run))
    if args.json:
        _print_json([state.to_json()])
        return 0
    from selftrain.cli.render import plain, status_lines

    _print_texts(plain(f"{name:<16}  {value}") for name, value in status_lines(state))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Rounds, one round's verdicts, the verdicts of one kind, or one post's story.

    Raises:
        RunStateError: No run folder, a damaged one, or no such round or post in it.
    """
    from selftrain.store.run_dir import RunFolder

    folder = RunFolder(args.run)
    if args.post is not None:
        _show_post(folder, args.post, args.round, as_json=args.json)
    elif args.kind is not None:
        _show_kind(folder, args.round, args.kind, as_json=args.json)
    elif args.round is not None:
        _show_round(folder, args.round, as_json=args.json)
    else:
        _show_rounds(folder, as_json=args.json)
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Prints where the page lies.

    Raises:
        RunStateError: No run folder, or a damaged one.
        StorageError: The page cannot be written.
    """
    from selftrain._util.printable import printable
    from selftrain.report import write_report
    from selftrain.store.run_dir import RunFolder

    print(printable(str(write_report(RunFolder(args.run), args.out))))
    return 0


def _show_post(folder: RunFolder, post_id: str, number: int | None, *, as_json: bool) -> None:
    from selftrain.report import post_history

    post = post_history.load(folder, post_id, number)
    if as_json:
        _print_json(post.to_json())
        return
    from selftrain.cli.render import post_lines

    _print_texts(post_lines(post))


def _show_round(folder: RunFolder, number: int, *, as_json: bool) -> None:
    from selftrain.report.post_history import select_rounds

    select_rounds(folder, number)
    verdicts = folder.verdicts(number)
    if as_json:
        _print_json(verdict.to_json() for verdict in verdicts)
        return
    from selftrain.cli.render import plain, verdict_line

    nothing = [] if verdicts else [plain(f"round {number} verified no post: it is the labels alone")]
    _print_texts([*map(verdict_line, verdicts), *nothing])


def _show_kind(folder: RunFolder, number: int | None, kind: Kind, *, as_json: bool) -> None:
    from selftrain.report.post_history import chosen_verdicts

    chosen = chosen_verdicts(folder, number, kind)
    if as_json:
        _print_json({"round": one.round, "kept": one.kept, **one.verdict.to_json()} for one in chosen)
        return
    from selftrain.cli.render import plain

    lines = [_kind_line(one) for one in chosen]
    where = "any round" if number is None else f"round {number}"
    _print_texts(lines or [plain(f"none in {where}: no {KINDS[kind]}")])


def _kind_line(chapter: Chapter) -> Text:
    from selftrain.cli.render import plain, verdict_line

    outcome = "kept" if chapter.kept else "rolled back"
    return plain(f"round {chapter.round:>2}, {outcome:<11}  ", "dim").append_text(
        verdict_line(chapter.verdict)
    )


def _show_rounds(folder: RunFolder, *, as_json: bool) -> None:
    from selftrain.report.post_history import select_rounds

    rounds = select_rounds(folder, None)
    if as_json:
        _print_json(one.to_json() for one in rounds)
        return
    from selftrain.cli.render import console, plain, rounds_table
    from selftrain.review.estimates import newest_estimate, reviewed_batches

    console().print(rounds_table(rounds))
    line = newest_estimate(reviewed_batches(folder))
    if line is not None:
        _print_texts([plain(""), plain(line)])
    if len(rounds) > 1:
        _print_texts(_hints(shlex.quote(str(folder.path)), folder.verdicts(1)))


def _telling(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict most worth reading first: one that took a second judgment, else any."""
    return max(verdicts, key=lambda verdict: len(verdict.judgments))


def _hints(run: str, verdicts: Sequence[Verdict]) -> list[Text]:
    from selftrain.cli.render import plain

    lines = [(f"selftrain show {run} --round 1", "the verdicts of a round, one a line")]
    if verdicts:
        post = shlex.quote(_telling(verdicts).post_id)
        lines.append((f"selftrain show {run} --post {post}", "everything said about one post"))
    lines.append(
        (f"selftrain show {run} --disagreements", "where classifier and agents name different classes")
    )
    lines.append((f"selftrain status {run}", "where it stands, and what would happen next"))
    width = max(len(command) for command, _ in lines)
    return [plain(""), *(plain(f"{command:<{width}}  {why}") for command, why in lines)]


def _print_texts(lines: Iterable[Text]) -> None:
    """Long lines are left to the terminal to wrap: what is piped stays one line each."""
    from selftrain.cli.render import console

    shown = console()
    for line in lines:
        shown.print(line, soft_wrap=True)


def _print_json(records: Iterable[Mapping[str, Any]]) -> None:
    """ASCII alone: no character of a post reaches the terminal as itself."""
    for record in records:
        print(json.dumps(record).replace("\x7f", "\\u007f"))  # DEL is ASCII too
