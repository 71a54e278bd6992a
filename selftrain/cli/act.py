"""``selftrain act``: a small human budget. `choose`: who annotates, who criticizes, how much; `audit`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.cli.reviews import add_audit

if TYPE_CHECKING:
    from rich.table import Table

    from agents.ask.cache import ResponseCache
    from agents.ask.criticizer.desk import Desk
    from agents.trust import Interval
    from selftrain.act.choosing import Choice
    from selftrain.act.scoring import AnnotatorScore, CriticizerScore
    from selftrain.data.posts import Post
    from selftrain.data.task import Task

KEY_VARIABLE = "SELFTRAIN_API_KEY"
MAX_BAD_ROWS, MAX_BAD_SHARE = 100, 0.05  # as a recipe's defaults
STRATEGIES = ("plain", "reasoning", "graded", "devils_advocate", "log_probability", "perplexity")
"""As in `agents.ask.criticizer.strategies`, which is not imported for their names."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `act` and its commands."""
    parser = subparsers.add_parser("act", help="a small human budget, spent where labels are likely wrong")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    from selftrain.cli.act_label import add_label, add_labels

    add_choose(commands)
    add_label(commands)
    add_labels(commands)
    add_audit(commands)


def add_choose(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `act choose`."""
    parser = commands.add_parser(
        "choose",
        help="test models on labelled posts: who annotates, who criticizes, what budget",
        description="Every model annotates the labelled posts. The most accurate one is to annotate, the"
        " second most accurate one to criticize, in the way that finds its errors best; the budget is the"
        " share of wrong labels and a buffer. Answers are kept and paid for once.",
        epilog=f"The servers' key is taken from {KEY_VARIABLE}, never from the command line.",
    )
    add = parser.add_argument
    add(
        "manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet, with some labelled posts"
    )
    add("--task", type=Path, required=True, metavar="FILE", help="a TOML file: classes and policy")
    add(
        "--server", action="append", required=True, dest="servers", metavar="ADDRESS[#MODEL]",
        help="a vLLM server, and the model's name where it serves several; once for each model",
    )  # fmt: skip
    add(
        "--strategy", action="append", dest="strategies", choices=STRATEGIES, metavar="NAME",
        help=f"a way to criticize, may be repeated (default: all): {', '.join(STRATEGIES)}",
    )  # fmt: skip
    add("--annotate", choices=("plain", "reasoning", "both"), default="both", help="default: both")
    add("--self", action="store_true", dest="self_criticism", help="try the annotator as criticizer too")
    add("--labelled", type=int, default=100, metavar="N", help="labelled posts to test on (default: 100)")
    add("--pool", type=int, metavar="N", help="posts that the budget is for (default: the unlabelled ones)")
    add("--buffer", type=float, default=0.1, metavar="SHARE", help="on top of the errors (default: 0.1)")
    add("--token-cap", type=int, metavar="N", help="most tokens that all of this may cost")
    add("--store", type=Path, metavar="FILE", help="kept answers (default: responses.sqlite beside MANIFEST)")
    add("--prompts", type=Path, metavar="FOLDER", help="prompt files that replace the built-in ones")
    add("--seed", type=int, default=0, help="chooses the labelled posts (default: 0)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured; - for standard output")
    parser.set_defaults(handler=run_choose)


def run_choose(args: argparse.Namespace) -> int:
    """Prints the tables, and writes the JSON object when one is asked for.

    Raises:
        SelftrainError, or an error of the agents' tree: what was paid for is kept.
    """
    from agents.ask.criticizer.wording import Wording
    from selftrain.act.choosing import MODES, choose
    from selftrain.build import brief_of
    from selftrain.data.task import load_task
    from selftrain.store import atomic

    task = load_task(args.task)
    labelled, unlabelled = read_posts(args.manifest, task, args.labelled, args.seed)
    with _desks(args) as desks:
        choice = choose(
            desks,
            labelled,
            Wording(brief_of(task), folder=args.prompts),
            strategies=tuple(dict.fromkeys(args.strategies or STRATEGIES)),
            modes=MODES if args.annotate == "both" else (args.annotate,),
            self_criticism=args.self_criticism,
            buffer=args.buffer,
            pool=unlabelled if args.pool is None else args.pool,
            seed=args.seed,
        )
    if args.json is not None and str(args.json) == "-":
        print(json.dumps(choice.to_json()).replace("\x7f", "\\u007f"))
        return 0
    if args.json is not None:
        atomic.write_json(args.json, choice.to_json())
    _print(choice)
    return 0


def read_posts(manifest: Path, task: Task, count: int, seed: int) -> tuple[list[Post], int]:
    """At most `count` labelled posts, drawn by the seed, and how many posts have no label.

    Raises:
        ManifestError, QuarantineError: It cannot be read, or too many of its rows are bad.
        BudgetError: Fewer than two labelled posts, or asked for.
    """
    import random

    from selftrain.data.manifest import enforce, read_manifest
    from selftrain.errors import BudgetError

    report = read_manifest(manifest, task)
    enforce(report, MAX_BAD_ROWS, MAX_BAD_SHARE)
    posts = report.posts
    labelled = [post for post in posts if post.label is not None]
    if count < 2 or len(labelled) < 2:
        raise BudgetError(
            f"{manifest} has {len(labelled)} labelled posts, {count} asked for: expected at least two; label"
            " some by hand, a hundred are plenty"
        )
    drawn = random.Random(seed).sample(range(len(labelled)), min(count, len(labelled)))
    return [labelled[place] for place in sorted(drawn)], len(posts) - len(labelled)


@contextmanager
def _desks(args: argparse.Namespace) -> Iterator[dict[str, Desk]]:
    """Model name -> a desk on its server; two of one name are told apart by their addresses."""
    from selftrain.build import store_beside

    store = store_beside(args.manifest, args.store)
    with ExitStack() as stack:
        stack.callback(store.close)
        desks: dict[str, Desk] = {}
        for server in dict.fromkeys(args.servers):
            run = f"act choose {args.manifest.resolve()}"
            desk = desk_of(server, store, run=run, token_cap=args.token_cap)
            stack.callback(desk.close)
            name = desk.identity().model
            desks[name if name not in desks else f"{name} at {server}"] = desk
        yield desks


def desk_of(server: str, store: ResponseCache, *, run: str, token_cap: int | None) -> Desk:
    """A model at ADDRESS[#MODEL] at work.

    Raises:
        ServerRefusedError: An address that is none.
    """
    from selftrain.build import build_desk
    from selftrain.config import VlmSection
    from selftrain.data.manifest import MAX_PIXELS

    address, _, model = server.partition("#")
    section = VlmSection(servers=(address,), model=model, key_variable=KEY_VARIABLE, token_cap=token_cap)
    return build_desk(section, store, run=run, max_pixels=MAX_PIXELS, progress=sys.stderr.isatty())


def _print(choice: Choice) -> None:
    from selftrain.cli.printing import console, plain

    shown = console()
    shown.print(plain("annotators, on labelled posts [95 % interval]", "dim"))
    shown.print(annotators_table(choice.annotators))
    shown.print(plain(f"criticizers of the labels of {choice.annotator.model}", "dim"))
    shown.print(criticizers_table(choice.criticizers))
    for line in recommendation(choice):
        shown.print(plain(line))


def recommendation(choice: Choice) -> Iterator[str]:
    """What to do, in words."""
    annotator, criticizer, budget = choice.annotator, choice.criticizer, choice.budget
    yield f"annotate with {annotator.model} ({annotator.mode})"
    yield f"criticize with {criticizer.model} ({criticizer.strategy})"
    wrong, share = _per_cent(budget.error), _per_cent(budget.share)
    posts = ""
    if budget.posts is not None:
        value, low, high = budget.posts
        posts = f": {value:,} posts [{low:,}, {high:,}]"
    yield f"wrong labels {wrong}, buffer {100 * budget.buffer:g} %, budget {share}{posts}"
    for warning in choice.warnings:
        yield f"note: {warning}"


def annotators_table(scores: Sequence[AnnotatorScore]) -> Table:
    """One line a model and way of annotating, best first."""
    table = _table("model", "asked", "accuracy", "without a label", "tokens")
    for one in scores:
        _row(table, one.model, one.mode, _per_cent(one.accuracy), f"{one.unlabelled}", f"{one.tokens:,}")
    return table


def criticizers_table(scores: Sequence[CriticizerScore]) -> Table:
    """One line a model and strategy, best first."""
    table = _table("model", "strategy", "AUC", "ABS", "mean estimate", "missing", "tokens")
    for one in scores:
        auc = "-" if one.auc is None else f"{one.auc.value:.3f} [{one.auc.low:.3f}, {one.auc.high:.3f}]"
        gain = "-" if one.abs is None else f"{one.abs:.3f}"
        _row(
            table, one.model, one.strategy, auc, gain, f"{one.mean_error:.3f}", f"{one.missing}",
            f"{one.tokens:,}",
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    return table


def _row(table: Table, *cells: str) -> None:
    from selftrain.cli.printing import plain

    table.add_row(*map(plain, cells))


def _per_cent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
