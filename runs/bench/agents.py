"""`python -m runs.bench agents`: vision-language agents on a real vLLM server, part by part.

throughput  our panel against a bare client that posts the same request bodies, in turns, same server
cache       prompt tokens served from the prefix cache in a cross-review of memes
reference   candidates a second against transformers' generate, one at a time, eight a post
memory      peak memory of the client with 1,000 and 100,000 candidates queued
injections  labels turned by posts that give orders, beside as many words that give none
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs.bench.study import Figure, Figures

PARTS = ("throughput", "cache", "reference", "memory", "injections")
STUDY = "agents"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the study's options."""
    parser = subparsers.add_parser(
        "agents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hsol/ and harmeme/")
    parser.add_argument("--models", type=Path, required=True, help="where the small models are built, once")
    parser.add_argument(
        "--text-server", metavar="URL", help="a running server of a text model, instead of our own"
    )
    parser.add_argument("--image-server", metavar="URL", help="a running server of an image model, likewise")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: %(default)s)")
    parser.add_argument("--posts", type=int, default=48, help="posts a pass (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of passes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append the figures to this file, and go on from it")


def run(args: argparse.Namespace) -> int:
    """Measures the parts that the file does not hold yet, and prints the table.

    Raises:
        SelftrainError, AgentError: No data, no server.
    """
    from selftrain.errors import SelftrainError

    wanted = args.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise SelftrainError(f"no parts {unknown}: expected some of {','.join(PARTS)}")
    figures = Figures(args.json)
    missing = [part for part in wanted if not figures.has(STUDY, part, args.posts, args.seed)]
    served = (
        (("throughput", "reference"), args.text_server, "smollm2"),
        (("cache", "injections"), args.image_server, "small-vlm"),
    )
    for parts, given, model in served:
        asked = [part for part in parts if part in missing]
        if asked:
            with _server(given, args.models / model, args.models) as address:
                for part in asked:
                    _measure(part, address, args, figures)
    if "memory" in missing:
        _measure("memory", "", args, figures)
    print("\n".join(figures.table()))
    return 0


def _measure(part: str, address: str, args: argparse.Namespace, figures: Figures) -> None:
    from runs.bench import agents_injections, agents_memory, agents_speed

    print(f"measuring {part}", flush=True)
    match part:
        case "throughput":
            values = agents_speed.throughput(address, args.data, args.posts, args.repeats, args.seed)
        case "reference":
            values = agents_speed.reference(address, args.models / "smollm2", args.data, args.seed)
        case "cache":
            values = agents_speed.cache(address, args.data, args.posts, args.seed)
        case "injections":
            values = agents_injections.flips(address, args.data, args.seed)
        case _:
            values = agents_memory.growth()
    rows = [Figure(STUDY, part, part, args.posts, args.seed, name, value) for name, value in values.items()]
    figures.add(rows)
    for row in rows:
        print(f"  {row.metric}: {row.value:.4g}", flush=True)


@contextmanager
def _server(given: str | None, model: Path, models: Path) -> Iterator[str]:
    """The address given, or that of a server of our own for as long as the block runs."""
    if given:
        yield given
        return
    from agents.vllm.command import ServeOptions, free_port, serve_command
    from agents.vllm.interpreter import find_interpreter
    from agents.vllm.launch import serving
    from runs.bench.small_models import export_small_vlm, export_smollm2

    (export_smollm2 if model.name == "smollm2" else export_small_vlm)(model)
    options = ServeOptions(name=model.name, port=free_port(), max_model_len=4096)
    command = serve_command(find_interpreter(), model, options)
    with serving(
        command, log=models / f"{model.name}.log", report=lambda text: print(text, flush=True)
    ) as served:
        yield served[1].endpoint
