"""`python -m runs.bench agents`: vision-language agents on a real vLLM server, part by part.

throughput  our panel against a bare client that posts the same request bodies, in turns, same server
cache       prompt tokens served from the prefix cache in a cross-review of memes
reference   candidates a second against transformers' generate, one at a time, eight a post
memory      peak memory of the client with 1,000 and 100,000 candidates queued
injections  labels turned by posts that give orders, beside as many words that give none
labels      label probabilities through the tokenizers of published models: off, or absent
client      requests a second of one client process, over a bare aiohttp client, on a stub
knee        calls in flight that are found worth it, on a stub that serves 300 at once
judge       accuracy, kappa, calibration of a small model as Reviewer and User on tweets, and its cost
gain        what the loop gains from its answers over the labels alone, five seeds
pull        how often the classifier's word pulls an agent over, on labelled tweets
turned      what a run learns of posts whose agents were talked round, from the answers of judge
flips       posts that give orders to the model that judges tweets, and what a run learns of them
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs.bench.study import Figure, Figures
from selftrain.errors import DataError

PARTS = (
    "throughput", "cache", "reference", "memory", "injections", "labels", "client", "knee", "judge",
    "gain", "pull", "flips", "turned",
)  # fmt: skip
OF_JUDGE = ("judge", "gain", "pull", "flips", "turned")
STUDY = "agents"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hsol/ and harmeme/")
    parser.add_argument("--models", type=Path, required=True, help="where the small models are built, once")
    parser.add_argument(
        "--text-server", metavar="URL", help="a running server of a text model, instead of our own"
    )
    parser.add_argument("--image-server", metavar="URL", help="a running server of an image model, likewise")
    parser.add_argument("--judge", default="qwen2.5-coder-1.5b", help="judges tweets (default: %(default)s)")
    parser.add_argument("--judge-server", metavar="URL", help="a running server of it, instead of our own")
    parser.add_argument("--form", default="label_first", help="of its answers (default: %(default)s)")
    parser.add_argument(
        "--rationale-chars", type=int, default=60, help="of its reasons (default: %(default)s)"
    )
    parser.add_argument(
        "--label-apart", action="store_true", help="ask it for the label in a turn of its own"
    )
    parser.add_argument(
        "--labelled", type=int, default=100, help="posts of gain, flips and turned (default: %(default)s)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: %(default)s)")
    parser.add_argument("--posts", type=int, default=48, help="posts a pass (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of passes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure the parts that the file does not hold yet, and print the table.

    Raises:
        SelftrainError, AgentError: No data, no server.
    """
    from selftrain.errors import SelftrainError

    wanted = args.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise SelftrainError(f"no parts {unknown}: expected some of {','.join(PARTS)}")
    missing = [part for part in wanted if not figures.has(STUDY, _method(part, args), args.posts, args.seed)]
    served = (
        (("throughput", "reference"), args.text_server, "smollm2"),
        (("cache", "injections"), args.image_server, "small-vlm"),
        (OF_JUDGE[:-1], args.judge_server, args.judge),
    )
    for parts, given, model in served:
        asked = [part for part in parts if part in missing]
        if asked:
            with _server(given, args.models / model, args.models) as address:
                for part in asked:
                    _measure(part, address, args, figures)
    for part in (one for one in missing if one in ("memory", "labels", "client", "knee", "turned")):
        _measure(part, "", args, figures)
    print("\n".join(figures.table()))


def _measure(part: str, address: str, args: argparse.Namespace, figures: Figures) -> None:
    from runs.bench import (
        agents_client,
        agents_injections,
        agents_labels,
        agents_memory,
        agents_speed,
    )

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
        case one if one in OF_JUDGE:
            values = _of_judge(part, address, args)
        case "labels":
            values = agents_labels.label_errors(args.seed)
        case "client":
            values = agents_client.speed(args.posts, args.repeats)
        case "knee":
            values = agents_client.knee()
        case _:
            values = agents_memory.growth()
    method = _method(part, args)
    rows = [Figure(STUDY, part, method, args.posts, args.seed, name, value) for name, value in values.items()]
    figures.add(rows)
    for row in rows:
        print(f"  {row.metric}: {row.value:.4g}", flush=True)


def _of_judge(part: str, address: str, args: argparse.Namespace) -> dict[str, float]:
    from runs.bench import agents_judge, agents_turned

    store = args.models / f"{args.judge}.sqlite"
    asked = agents_judge.Asked((address,), store, args.form, args.rationale_chars, args.label_apart)
    if part in ("judge", "pull"):
        alone = agents_judge.judged if part == "judge" else agents_judge.pulled
        return alone(asked, args.data, args.posts, args.seed)
    studies = {"gain": agents_judge.gained, "flips": agents_judge.turned, "turned": agents_turned.followed}
    return studies[part](asked, args.data, args.posts, args.seed, labelled=args.labelled)


def _method(part: str, args: argparse.Namespace) -> str:
    """Return the name under which a part's figures stand: another judge, asked otherwise, is another."""
    if part not in OF_JUDGE:
        return part
    form = f"{args.form}, label apart" if args.label_apart else args.form
    labelled = "" if part in ("judge", "pull") else f", {args.labelled} labelled"
    return f"{part}: {args.judge}, {form}, {args.rationale_chars} characters{labelled}"


@contextmanager
def _server(given: str | None, model: Path, models: Path) -> Iterator[str]:
    """The address given, or that of a server of our own for as long as the block runs."""
    if given:
        yield given
        return
    from agents.vllm.command import ServeOptions, free_port, serve_command
    from agents.vllm.interpreter import find_interpreter
    from agents.vllm.launch import serving
    from runs.bench.small_models import QWEN, export_qwen, export_small_vlm, export_smollm2

    exports = {"smollm2": export_smollm2, "small-vlm": export_small_vlm, **dict.fromkeys(QWEN, export_qwen)}
    if model.name not in exports:
        raise DataError(f"no small model is called {model.name!r}: expected one of {', '.join(exports)}")
    exports[model.name](model)
    options = ServeOptions(name=model.name, port=free_port(), max_model_len=4096)
    command = serve_command(find_interpreter(), model, options)
    with serving(
        command, log=models / f"{model.name}.log", report=lambda text: print(text, flush=True)
    ) as served:
        yield served[1].endpoint
