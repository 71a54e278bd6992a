"""``selftrain run`` and ``selftrain quickstart``: a recipe becomes a run folder, round by round."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from selftrain._util.deferred import deferred
from selftrain.cli import options
from selftrain.cli.options import Overrides, Recipe, option
from selftrain.cli.printing import console, echo, print_hints, quoted
from selftrain.errors import RecipeError

with deferred():
    from selftrain import config, rounds, runs
    from selftrain.cli import tables
    from selftrain.data import drawn
    from selftrain.engine import on_ray
    from selftrain.report import status
    from selftrain.store import run_dir

app = typer.Typer()

QUICKSTART_POSTS = 900


@app.command("run", epilog="Example: selftrain run recipe.toml --out runs/mine --set rounds.max=5")
@options.grouped
def run_recipe(
    recipe: Recipe,
    *,
    out: Annotated[Path, option("The run folder.", metavar="DIR")],
    overrides: Overrides,
    estimate: Annotated[
        bool,
        option(
            "Tell what the agents would cost, or how good they are where that is nothing, and stop; of"
            " vision-language agents a short probe is paid for, and kept.",
            "--estimate",
        ),
    ] = False,
    mirror: Annotated[
        str | None,
        option(
            "Keep the run folder there too, after each round: the same command goes on from there on another"
            " machine, one at a time.",
            metavar="s3://BUCKET/PREFIX",
        ),
    ] = None,
    workers: options.Workers,
) -> None:
    """Run a recipe; a run that was interrupted goes on.

    Killed at any moment, the same command goes on: no answer is paid for twice, no finished round is lost.
    On a Ray cluster features are computed, once; the rounds are this process's.
    """
    # without a cluster the run reads the recipe, once
    engine = workers.engine(config.load_recipe(recipe, overrides).engine if workers.ray is not None else None)
    if not estimate:
        _run(recipe, out, overrides, engine, mirror)
        return
    started = runs.start(recipe, out, overrides, engine=engine)
    for line in started.estimate(progress=sys.stderr.isatty()).lines(started.recipe.vlm.token_cap):
        echo(line)


@app.command(epilog="Example: selftrain quickstart --out runs/first")
def quickstart(
    out: Annotated[Path, option("The run folder.", metavar="DIR")] = Path("runs/quickstart"),
) -> None:
    """Make a first run, on posts that it draws itself.

    No GPU, no download, no labels of yours.
    """
    data = out / "quickstart-data"
    if not (data / "task.toml").exists():  # written last
        echo(f"drawing {QUICKSTART_POSTS} posts of a notice board into {data}")
        drawn.draw_posts(data, QUICKSTART_POSTS)
    # quoted: a folder may have a name that TOML reads as something else
    paths = {"manifest": data / "manifest.jsonl", "task": data / "task.toml"}
    _run(quickstart_recipe(), out, [f"data.{key}={json.dumps(str(path))}" for key, path in paths.items()])


def quickstart_recipe() -> Path:
    """Return the recipe: inside the package in a wheel, in ``runs/`` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    places = (package / "recipes" / "quickstart.toml", package.parent / "runs" / "quickstart.toml")
    for place in places:
        if place.is_file():
            return place
    raise RecipeError(
        f"the quickstart recipe is missing: expected {places[0]}. The installation is incomplete; install it"
        " again with pip install --force-reinstall --no-deps selftrain"
    )


def _run(
    recipe: Path,
    out: Path,
    overrides: Sequence[str],
    engine: on_ray.OnRay | None = None,
    mirror: str | None = None,
) -> None:
    started = runs.start(recipe, out, overrides, engine=engine, mirror=mirror)
    going_on = "going on with" if started.folder.finished() else "starting"
    echo(f"{going_on} the run {out}{f', kept at {mirror} too' if mirror else ''}")
    before: rounds.RoundResult | None = None
    for finished in started.rounds(progress=sys.stderr.isatty()):
        echo(f"{finished}{'  (finished earlier)' if finished.number < started.earlier else ''}")
        for line in (*rounds.trust_lines(finished, before), *rounds.cost_lines(finished)):
            echo(f"         | {line}")
        before = finished
    if started.stopped:
        echo(f"\nstopped: {started.stopped}")
    if started.folder.finished():
        _close(started.folder)


def _close(folder: run_dir.RunFolder) -> None:
    """Print the closing table, and where to look next."""
    found, path = rounds.finished_rounds(folder), folder.path
    waiting = "posts wait for review" if status.missing_reviews(folder) else None  # where was told above
    shown = console()
    shown.print()
    shown.print(tables.summary_table(status.summarise(found), status.why_stopped(folder) or waiting))
    hints = [
        (str(path / "report.html"), "the whole run on one page: open it in a browser"),
        (f"selftrain show {quoted(path)}", "the rounds, and how to read one post's story"),
        (str(path / "grown.jsonl"), "the grown dataset, with where each label comes from"),
    ]
    if len(found) > 1:
        hints.append((str(path / "rounds" / "0001" / "verdicts.jsonl"), "every word of the agents"))
    print("\nnext:")
    print_hints(hints, indent="  ")
