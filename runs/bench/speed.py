"""`python -m runs.bench speed --against REVISION`: whole runs by the code checked out and that of a commit.

They take turns. Both are taken out of git, so that what is edited meanwhile changes neither. Beside the time
on the clock stands that of the processor, which others on the machine stretch less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from runs.bench.loop_study import HARMEME, HSOL, LoopStudy, import_data
from runs.bench.study import Figure, Figures
from selftrain.errors import DataError

SETS = {study.name: study for study in (HSOL, HARMEME)}
HERE = Path(__file__).parents[2]
RATIO = "now over before"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hsol/ or harmeme/")
    parser.add_argument("--against", required=True, metavar="REVISION", help="a commit of this checkout")
    parser.add_argument("--set", choices=SETS, default=HSOL.name, help="data set (default: hsol)")
    parser.add_argument("--most", type=int, help="posts of each class that are used (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: 3)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure pairs of runs, and print the mean of their ratios.

    Raises:
        DataError: The data is not there, or no commit has that name.
    """
    study = SETS[args.set]._replace(most=args.most)
    revisions = {"before": commit(args.against), "now": commit("HEAD")}
    of = f"of {revisions['before']} and {revisions['now']}"
    of += "" if args.most is None else f", {args.most} of each class"
    missing = [
        repeat
        for repeat in range(args.repeats)
        if not figures.has("speed", f"{RATIO} {of}", 0, repeat, dataset=study.name)
    ]
    if missing:
        for repeat, spent in _pairs(study, args.data, revisions, missing):
            figures.add([
                Figure("speed", study.name, f"{name} {of}", 0, repeat, *one)
                for name, each in spent.items()
                for one in each._asdict().items()
            ])  # fmt: skip
    print("\n".join(figures.table()))


def _pairs(
    study: LoopStudy, data: Path, revisions: Mapping[str, str], repeats: Sequence[int]
) -> Iterator[tuple[int, dict[str, Spent]]]:
    """Yield what a run by each side took, and their ratios."""
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name, ExitStack() as opened:
        folder = Path(name)
        overrides = import_data(study, data, folder)
        sides = {
            side: opened.enter_context(checkout(revision, folder / side))
            for side, revision in revisions.items()
        }
        for side, code in sides.items():  # features are computed, and kept, before the clock starts
            _spent(study, code, folder / f"{side}-features", overrides)
        for repeat in repeats:
            spent = {
                side: _spent(study, code, folder / f"{side}-{repeat}", overrides)
                # who goes first changes, as the machine may grow busier or idler meanwhile
                for side, code in sorted(sides.items(), reverse=bool(repeat % 2))
            }
            before, now = spent["before"], spent["now"]
            same = _scores(folder / f"now-{repeat}") == _scores(folder / f"before-{repeat}")
            told = (
                f"before {before.told()}; now {now.told()}; scores {'the same' if same else 'NOT the same'}"
            )
            print(told, flush=True)
            ratios = Spent(now.seconds / before.seconds, now.cpu_seconds / before.cpu_seconds)
            yield repeat, {**spent, RATIO: ratios}


class Spent(NamedTuple):
    """What a run took: seconds on the clock, and of the processor."""

    seconds: float
    cpu_seconds: float

    def told(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of the processor)"


def commit(revision: str) -> str:
    """Return the short name of a commit.

    Raises:
        DataError: git knows no such commit here.
    """
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"]
    found = subprocess.run(asked, check=False, capture_output=True, text=True)
    if found.returncode:
        raise DataError(f"--against {revision}: {found.stderr.strip()}; expected a commit of {HERE}")
    return found.stdout.strip()


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """Lend the files of a commit in a new folder."""
    git = ["git", "-C", str(HERE), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), revision], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def _spent(study: LoopStudy, code: Path, out: Path, overrides: list[str]) -> Spent:
    """Run the recipe in a process of its own, with the packages below `code`; return what it took."""
    settings = [part for override in overrides for part in ("--set", override)]
    recipe = str(code / "runs" / study.recipe)
    command = [sys.executable, "-m", "selftrain", "run", recipe, "--out", str(out), *settings]
    environment = os.environ | {"PYTHONPATH": str(code)}
    began, used = time.perf_counter(), _cpu_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=code, env=environment)
    return Spent(time.perf_counter() - began, _cpu_seconds() - used)


def _cpu_seconds() -> float:
    """Return what all processes that were started and have ended took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _scores(run: Path) -> list[Any]:
    """Return the rounds' metrics on validation posts; of both sides they lie in the same place."""
    files = sorted(run.glob("rounds/*/metrics.json"))
    return [json.loads(file.read_text(encoding="utf-8"))["validation"]["macro_f1"] for file in files]
