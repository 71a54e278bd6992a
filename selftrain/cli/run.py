"""``selftrain run`` and ``selftrain quickstart``: a recipe becomes a run folder, round by round."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selftrain.rounds import RoundResult
    from selftrain.store.run_dir import RunFolder

QUICKSTART_POSTS = 900


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands."""
    run = subparsers.add_parser("run", help="run a recipe; a run that was interrupted goes on")
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run folder")
    run.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="change one value of the recipe; may be given several times",
    )  # fmt: skip
    run.add_argument(
        "--estimate", action="store_true",
        help="tell what vision-language agents would cost and stop; a short probe is paid for, and kept",
    )  # fmt: skip
    run.set_defaults(handler=run_recipe)
    quickstart = subparsers.add_parser("quickstart", help="a first run, on posts that it draws itself")
    quickstart.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), metavar="DIR",
        help="the run folder (default: %(default)s)",
    )  # fmt: skip
    quickstart.set_defaults(handler=run_quickstart)


def run_recipe(args: argparse.Namespace) -> int:
    """Prints every round as it finishes, then what the run has come to; or what it would cost."""
    if args.estimate:
        return _estimate(args.recipe, args.out, args.overrides)
    return _go(args.recipe, args.out, args.overrides)


def run_quickstart(args: argparse.Namespace) -> int:
    """Draws the posts into the run folder, unless they are there, and runs the recipe that comes with it."""
    from selftrain.data.drawn import draw_posts

    data = args.out / "quickstart-data"
    if not (data / "task.toml").exists():  # written last
        print(f"drawing {QUICKSTART_POSTS} posts of a notice board into {data}", flush=True)
        draw_posts(data, QUICKSTART_POSTS)
    # quoted: a folder may have a name that TOML reads as something else
    paths = {"manifest": data / "manifest.jsonl", "task": data / "task.toml"}
    overrides = [f"data.{key}={json.dumps(str(path))}" for key, path in paths.items()]
    return _go(quickstart_recipe(), args.out, overrides)


def quickstart_recipe() -> Path:
    """The recipe: inside the package in a wheel, in ``runs/`` in a checkout.

    Raises:
        RecipeError: It is in neither.
    """
    from selftrain.errors import RecipeError

    package = Path(__file__).resolve().parent.parent
    places = (package / "recipes" / "quickstart.toml", package.parent / "runs" / "quickstart.toml")
    for place in places:
        if place.is_file():
            return place
    raise RecipeError(
        f"the quickstart recipe is missing: expected {places[0]}. The installation is incomplete; install it"
        " again with pip install --force-reinstall --no-deps selftrain"
    )


def _go(recipe: Path, out: Path, overrides: Sequence[str]) -> int:
    from selftrain._util.printable import printable
    from selftrain.rounds import cost_lines, trust_lines
    from selftrain.runs import start
    from selftrain.store.run_dir import RunFolder

    started = start(recipe, out, overrides)
    earlier = RunFolder(out).finished()
    print(printable(f"{'going on with' if earlier else 'starting'} the run {out}"), flush=True)
    before: RoundResult | None = None
    for finished in started.rounds(progress=sys.stderr.isatty()):
        mark = "  (finished earlier)" if finished.number < earlier else ""
        print(f"{finished}{mark}", flush=True)
        for line in (*trust_lines(finished, before), *cost_lines(finished)):
            print(f"         | {printable(line)}", flush=True)
        before = finished
    if started.stopped:
        print(f"\n{printable(f'stopped: {started.stopped}')}", flush=True)
    if started.folder.finished():
        _close(started.folder)
    return 0


def _estimate(recipe: Path, out: Path, overrides: Sequence[str]) -> int:
    from selftrain.runs import start

    started = start(recipe, out, overrides)
    for line in started.estimate(progress=sys.stderr.isatty()).lines(started.recipe.vlm.token_cap):
        print(line)
    return 0


def _close(folder: RunFolder) -> None:
    """The closing table, and where to look next."""
    from selftrain.cli.render import console, summary_table
    from selftrain.report.status import missing_reviews, summarise, why_stopped
    from selftrain.rounds import finished_rounds

    rounds = finished_rounds(folder)
    shown = console()
    shown.print()
    waiting = "posts wait for review" if missing_reviews(folder) else None  # where was told above
    shown.print(summary_table(summarise(rounds), why_stopped(folder) or waiting))
    path = folder.path
    quoted = shlex.quote(str(path))
    lines = [
        (str(path / "report.html"), "the whole run on one page: open it in a browser"),
        (f"selftrain show {quoted}", "the rounds, and how to read one post's story"),
        (str(path / "grown.jsonl"), "the grown dataset, with where each label comes from"),
    ]
    if len(rounds) > 1:
        lines.append((str(path / "rounds" / "0001" / "verdicts.jsonl"), "every word of the agents"))
    print("\nnext:")
    width = max(len(what) for what, _ in lines)
    for what, why in lines:
        print(f"  {what:<{width}}  {why}")
