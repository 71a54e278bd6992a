"""``selftrain compare``: runs side by side, in the terminal or as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from selftrain._util.types import Interval
    from selftrain.report.compare import Comparison


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("compare", help="runs side by side: recipes, curves, final figures")
    parser.add_argument("first", type=Path, metavar="RUN", help="a run folder; others are held against it")
    parser.add_argument("others", type=Path, metavar="RUN", nargs="+", help="more run folders")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Prints the tables, and writes the page when one is asked for.

    Raises:
        RunStateError: No run folder, no finished round in it, or a damaged one.
        StorageError: The page cannot be written.
    """
    from selftrain.report.compare import compare, to_json
    from selftrain.store.run_dir import RunFolder

    comparison = compare([RunFolder(path) for path in (args.first, *args.others)])
    if args.html is not None:
        from selftrain.report.compare import write_comparison

        write_comparison(comparison, args.html)
    if args.json:
        print(json.dumps(to_json(comparison)).replace("\x7f", "\\u007f"))
        return 0
    _print(comparison)
    if args.html is not None:
        from selftrain._util.printable import printable

        print(printable(str(args.html)))
    return 0


def _print(comparison: Comparison) -> None:
    from selftrain.cli.render import console, plain

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


def final_table(comparison: Comparison) -> Table:
    """One column a run: final figures with their intervals, then what the run came to."""
    from selftrain.cli.render import number
    from selftrain.models.intervals import METRICS

    table = _table(comparison)
    runs = comparison.runs
    for split in comparison.splits:
        for name in METRICS:
            row = [_interval(run.estimates[split][name]) for run in runs]
            table.add_row(f"{split} {name.replace('_f1', '-F1')}", *row)
            if name == "macro_f1":
                table.add_row("  gain", *(_gain(one) for one in comparison.gains[split]))
        table.add_row(f"{split} AUC", *(number(run.points[split]["auc"]) for run in runs))
        table.add_section()
    sums = [run.summary for run in runs]
    if any(run.simulated for run in runs):
        table.add_row("agents", *("SIMULATED" if run.simulated else "" for run in runs))
    table.add_row("rounds kept", *(f"{one.kept} of {one.rounds}, best {one.best_round}" for one in sums))
    table.add_row("labels, grown to", *(f"{one.labelled:,}, {one.grown:,}" for one in sums))
    table.add_row("pseudo-label precision", *(number(one.pseudo_label_precision) for one in sums))
    table.add_row("candidates", *(f"{one.candidates:,}" for one in sums))
    table.add_row("agent calls", *(f"{run.cost.calls:,}" if run.cost else "-" for run in runs))
    table.add_row("tokens", *(f"{run.cost.tokens:,}" if run.cost else "-" for run in runs))
    table.add_row("seconds in rounds", *(f"{one.seconds:.0f}" for one in sums))
    return table


def curves_table(comparison: Comparison) -> Table:
    """Validation macro-F1, one line a round; what was rolled back stands in brackets."""
    from selftrain.cli.render import number, plain

    table = _table(comparison)
    longest = max(len(run.rounds) for run in comparison.runs)
    for place in range(longest):
        cells = []
        for run in comparison.runs:
            if place >= len(run.rounds):
                cells.append(plain(""))
                continue
            _, kept, found = run.rounds[place]
            value = number(found.validation)
            cells.append(plain(f"{value} " if kept else f"({value})", "" if kept else "dim"))
        table.add_row(f"round {place}", *cells)
    return table


def recipe_table(comparison: Comparison) -> Table:
    """The keys that are not the same in all recipes."""
    from selftrain.cli.render import plain

    table = _table(comparison)
    for key, values in comparison.recipe:
        table.add_row(plain(key), *(plain("-" if value is None else value) for value in values))
    return table


def _table(comparison: Comparison) -> Table:
    from rich.table import Table

    from selftrain.cli.render import plain

    table = Table(show_edge=False, pad_edge=False)
    table.add_column()
    for run in comparison.runs:
        table.add_column(plain(run.name), justify="right", overflow="fold")
    return table


def _interval(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f} {one.high:.3f}]"


def _gain(one: Interval | None) -> str:
    return "-" if one is None else f"{one.value:+.3f} [{one.low:+.3f} {one.high:+.3f}]"
