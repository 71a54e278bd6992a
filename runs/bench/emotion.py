"""`python -m runs.bench emotion`: four classes, TweetEval emotion, with agents drawn from the labels.

The protocol and the methods of the study `judges`: 30 % test, n labels, the rest is the pool, no validation
split. Two agents are right on a given share of posts and err together (`agents.simulated`): what the loop
would make of such agents, not what any model does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runs.bench.judges import METHODS, WITHOUT_AGENTS, JudgedSet, measure_seed, tables
from runs.bench.loop_study import cut
from runs.bench.study import Figures, numbers
from selftrain.errors import DataError

if TYPE_CHECKING:
    from selftrain.data.posts import Post
    from selftrain.data.task import Task

SOURCE = "tweeteval/emotion"
PEERS = ("one_model", "majority_hard", "cleanlab", "dawid_skene", "crowdlab", "article")
SHOWN = (*WITHOUT_AGENTS, *PEERS, "ours")
ROLES = ("reviewer", "user")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {SOURCE}")
    parser.add_argument(
        "--n", type=numbers, default="100", help="numbers of labels, by commas (default: 100)"
    )
    parser.add_argument("--seeds", type=numbers, default="0..4", help="as 0..4, or by commas (default: 0..4)")
    parser.add_argument("--asked", default="500,all", help="posts that may be asked about (default: 500,all)")
    parser.add_argument("--most", type=int, help="posts of each class that are used, drawn once")
    parser.add_argument("--accuracy", type=float, default=0.8, help="of each agent (default: .8)")
    parser.add_argument("--shared", type=float, default=0.7, help="see `agents.shared` (default: .7)")
    parser.add_argument("--methods", default=",".join(SHOWN), help=f"by commas (default: {', '.join(SHOWN)})")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, and print the tables.

    Raises:
        DataError: The data is not there, or a method that is none.
    """
    from selftrain.data.importers import import_named
    from selftrain.data.manifest import read_manifest
    from selftrain.data.task import load_task

    source, methods = args.data / SOURCE, args.methods.split(",")
    if not source.exists():
        raise DataError(f"{source} is not there: clone github.com/cardiffnlp/tweeteval, and give `datasets`")
    if unknown := [method for method in methods if method not in METHODS]:
        raise DataError(f"no method is called {unknown}: expected some of {', '.join(METHODS)}")
    name = f"emotion, agents {args.accuracy:g}, shared {args.shared:g}"
    name += "" if args.most is None else f", {args.most} of each class"
    sizes, budgets = args.n, args.asked.split(",")
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as place:
        folder = Path(place)
        imported = import_named("tweeteval-emotion", source, folder)
        if args.most is not None:
            cut(imported.manifest, args.most)
        task = load_task(imported.task)
        posts = tuple(read_manifest(imported.manifest, task).posts)
        for seed in args.seeds:
            files = _answers(posts, task, folder, args, seed)
            judged = JudgedSet(name, folder, task, posts, tuple(files))
            for n in sizes:
                measure_seed(judged, figures, methods, n=n, seed=seed, budgets=budgets, validation=0.0)
    print("\n".join(tables(figures, [name], methods, sizes, budgets)))


def _answers(
    posts: Sequence[Post], task: Task, folder: Path, args: argparse.Namespace, seed: int
) -> list[Path]:
    """Draw what the agents answer about every post, and return their files."""
    from agents.simulated import SimulatedAgent, symmetric

    truth = {post.id: str(post.label) for post in posts}
    confusion, files = symmetric(task.names, args.accuracy), []
    for role in ROLES:
        agent = SimulatedAgent(role, truth, confusion, shared=args.shared, seed=seed)
        answers = zip(posts, agent.judge(posts), strict=True)
        rows = (json.dumps({"id": post.id, "label": one.label}) + "\n" for post, one in answers)
        files.append(folder / f"{role}.jsonl")
        files[-1].write_text("".join(rows), encoding="utf-8")
    return files
