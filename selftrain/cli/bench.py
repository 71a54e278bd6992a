"""``selftrain bench``: the studies, each in a module of `selftrain.bench` with a parser of its own."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

STUDIES = {
    "hsol": "offensive tweets (Davidson et al. 2017): the loop against labels alone",
    "harmeme": "harmful memes (Pramanick et al. 2021): text and images",
    "selection": "memory of choosing from a growing pool",
    "agents": "vision-language agents on a vLLM server: speed, cache, cost, injections",
    "agentps": "process supervision beside its ablations, on a multimodal language model",
    "report": "size of a long run's report, and how fast a browser opens it",
    "act": "what a human budget buys, and whether error estimates cover the truth",
    "features": "speed of text features beside sentence-transformers",
}


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `bench`; the study's own options are parsed once its module is known."""
    parser = subparsers.add_parser(
        "bench",
        help="repeat a study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Studies:\n" + "\n".join(f"  {name:<10}{text}" for name, text in STUDIES.items()),
        epilog="`selftrain bench STUDY --help` shows the options of a study.",
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the study")
    parser.set_defaults(handler=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Hands over to the study.

    Raises:
        SelftrainError: The study's module is not in this installation.
    """
    return run_features(args.options) if args.study == "features" else run_study(args.study, args.options)


def run_study(name: str, options: Sequence[str]) -> int:
    """A study whose module gives `add_parser(subparsers)` and `run(args)`."""
    from selftrain.errors import SelftrainError

    module_name = f"selftrain.bench.{name}"
    if importlib.util.find_spec(module_name) is None:
        raise SelftrainError(
            f"the study {name!r} is not in this installation: there is no module {module_name}. Install a"
            f" version of selftrain that has it, or choose another of {', '.join(STUDIES)}"
        )
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(prog="selftrain bench")
    module.add_parser(parser.add_subparsers())
    return int(module.run(parser.parse_args([name, *options])))


def run_features(options: Sequence[str]) -> int:
    """Texts a second on HSOL's tweets, ours and theirs in turns."""
    parser = argparse.ArgumentParser(prog="selftrain bench features", description=STUDIES["features"])
    parser.add_argument("--data", type=Path, required=True, help="folder of HSOL's labeled_data.csv")
    parser.add_argument("--n", type=int, default=2000, help="how many tweets (default: 2000)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--json", type=Path, help="append the figures to this file")
    args = parser.parse_args(options)
    if args.n < 1 or args.repeats < 1:
        parser.error(f"--n {args.n} --repeats {args.repeats}: expected at least 1 of each")

    from selftrain.bench.features import texts_throughput
    from selftrain.bench.study import Figure, Figures

    texts = hsol_texts(args.data, args.n)
    result = texts_throughput(texts, args.repeats)
    figures = Figures(args.json)
    figures.add(
        [
            Figure("features", "hsol", "ours", args.n, 0, "ratio", result.ratio),
            Figure("features", "hsol", "ours", args.n, 0, "texts_per_second", result.ours),
            Figure("features", "hsol", "sentence_transformers", args.n, 0, "texts_per_second", result.theirs),
        ]
    )
    print("\n".join(figures.table()))
    return 0


def hsol_texts(source: Path, count: int) -> list[str]:
    """The first `count` tweets that hold a word.

    Raises:
        ManifestError: No labeled_data.csv there, or no tweet in it.
    """
    from selftrain.data.importers import hsol
    from selftrain.data.importers.base import Record
    from selftrain.errors import ManifestError

    texts: list[str] = []
    for record in hsol.read(source).records:
        if isinstance(record, Record) and record.text.strip():
            texts.append(record.text)
        if len(texts) == count:
            break
    if not texts:
        raise ManifestError(f"{source} holds no tweet: expected HSOL's labeled_data.csv")
    return texts
