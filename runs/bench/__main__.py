"""The studies, each in a module of this folder with options of its own: ``python -m runs.bench STUDY``.

A module gives `add_options(parser)`, and `run(args, figures)`, which measures what the figures lack, and
prints them.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agents.errors import AgentError
from runs.bench.study import Figures
from selftrain.errors import SelftrainError


class Study(NamedTuple):
    """What is studied, and options with which it takes a minute or two: enough to see that it works."""

    about: str
    quick: str
    module: str = ""  # its file here, where that is called otherwise
    kept: bool = True  # whether there are figures for --json to keep


STUDIES = {
    "hsol": Study(
        "offensive tweets (Davidson et al. 2017): the loop against labels alone",
        "--most 100 --n 20 --seeds 0,1",
        "loop_study",
    ),
    "harmeme": Study(
        "harmful memes (Pramanick et al. 2021): text and images",
        "--most 50 --n 20 --seeds 0,1 --peers label_spreading --set rounds.max=1",
        "loop_study",
    ),
    "words": Study(
        "the same on tweets of Sentiment140 and TweetEval and on words of Hateful Memes",
        "--most 50 --n 20 --seeds 0,1 --peers label_spreading --set rounds.max=1",
        "loop_study",
    ),
    "judges": Study(
        "answers of real models: every rule that could use them, and its peers",
        "--n 100 --seeds 0,1 --asked 500",
    ),
    "probabilities": Study("what an agent's probability adds to its word", "--n 100 --seeds 0,1"),
    "agents_needed": Study(
        "how good agents must be, how independent, and how many posts they take",
        "--sets hatebiasnet --worlds 1 --seeds 0,1",
    ),
    "emotion": Study(
        "four classes, agents drawn from the labels: the same rules and peers",
        "--most 60 --n 40 --seeds 0 --asked 80 --methods labels_only,dawid_skene,ours",
    ),
    "frontier": Study(
        "what a euro buys, as labels by people and as answers of models",
        "--json docs/benchmarks/judges.jsonl",
    ),
    "pools": Study("seconds and memory of a whole run as its pool grows", "--n 1000"),
    "agents": Study(
        "vision-language agents on a vLLM server: speed, cache, cost, injections",
        "--posts 8 --repeats 1 --parts throughput,cache,client",
    ),
    "agentps": Study(
        "process supervision beside its ablations, on a multimodal language model",
        "--parts pairs --seeds 0,1 --n 6 --epochs 1 --ways agentps",
    ),
    "decisions": Study(
        "AgentPS's thresholds, calibration and weights of answers",
        "--posts 12,12,12 --seeds 0 --epochs 1 --weights balanced",
        kept=False,
    ),
    "report": Study("size of a long run's report, and how fast a browser opens it", "--n 100,1000"),
    "act": Study(
        "what a human budget buys, and whether error estimates cover the truth",
        "--part training --datasets emotion --errors spread --seeds 0,1",
    ),
    "features": Study("speed of text features beside sentence-transformers", "--n 200 --repeats 1"),
    "serve": Study(
        "how long honest clients of `selftrain serve` wait while hostile ones attack it",
        "--seconds 3 --repeats 1",
    ),
    "bare": Study(
        "what server, filter, loop and report cost beside something that does the same and no more",
        "--seconds 2 --posts 100 --pools 300 --verdicts 200 --repeats 1",
    ),
    "soak": Study(
        "what hours of requests and rounds leave in memory, open files and on disk",
        "--requests 60 --rounds 10",
    ),
    "scale": Study(
        "posts by the workers of a Ray cluster beside one process: time, memory, the same bytes",
        "--n 2000 --encoded 0 --repeats 1 --methods 'in process,2 workers'",
    ),
    "cost": Study(
        "core seconds predicted from few posts beside what many took, and the hours of very many",
        "--small 20 --words 100 --pictured 40 --pool 1500 --labelled 60 --repeats 1",
    ),
    "speed": Study(
        "a whole run, features cached, by this code and by that of another commit", "--repeats 1 --most 300"
    ),
}
FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one study.

    Args:
        argv: The study's name and its options; None: those of this process.

    Returns:
        The exit status: 2 after an error that has a message.
    """
    wide = max(map(len, STUDIES))
    parser = argparse.ArgumentParser(
        prog="python -m runs.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Studies:\n"
        + "\n".join(f"  {name:<{wide}}  {one.about}" for name, one in STUDIES.items()),
        epilog="`python -m runs.bench STUDY --help` shows the options of a study. With --quick it takes two"
        " seeds and small sizes, where nothing else is said: to see that it works.",
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the study")
    args = parser.parse_args(argv)
    options = args.options
    if "--quick" in options:  # before the others: who gives an option again means the last one
        options.remove("--quick")
        options = [*shlex.split(STUDIES[args.study].quick), *options]
    try:
        run_study(args.study, options)
    except (SelftrainError, AgentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


def run_study(name: str, options: Sequence[str]) -> None:
    """Run a study with the options that follow its name; `args.study` is that name."""
    study = STUDIES[name]
    module = importlib.import_module(f"runs.bench.{study.module or name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m runs.bench {name}", description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.add_options(parser)
    parser.set_defaults(study=name)
    if study.kept:
        parser.add_argument("--json", type=Path, help="append the figures to this file, and go on from it")
    args = parser.parse_args(options)
    module.run(args, Figures(args.json if study.kept else None))


if __name__ == "__main__":
    sys.exit(main())
