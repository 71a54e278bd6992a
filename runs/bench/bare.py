"""`python -m runs.bench bare`: what our parts cost beside something that does the same and no more.

serve   `selftrain serve` of an exported classifier, and the same file in a bare onnxruntime session behind
        uvicorn, which checks nothing (`runs.bench.bare_server`): posts a second of sixteen clients, a
        connection for each post
filter  `selftrain filter` of a file of texts, and a loop that reads its lines, asks the same model and writes
        what passes: posts a second
loop    the rounds of a run, features there, and scikit-learn's SelfTrainingClassifier on the same rows
        (`runs.bench.bare_loop`): seconds of the processor
report  a run's page, and pandas' `DataFrame.to_html` of the same verdicts (`runs.bench.bare_report`): seconds
        of the processor to write, and on the clock to open in a headless Chromium

Both take turns in one run. Posts are drawn, and have words alone. Servers have half of the cores, clients the
others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runs.bench.bare_loop import looped
from runs.bench.bare_report import reported
from runs.bench.report import chromium
from runs.bench.serve import ask, halves, serve_command, serving, train_on_drawn
from runs.bench.study import Figure, Figures, numbers
from selftrain.data.posts import Post
from selftrain.errors import DataError
from selftrain.models.onnx_export import export_onnx
from selftrain.models.onnx_predictor import OnnxPredictor
from selftrain.serving.streams import ModelAtWork, filter_posts

STUDY = "bare"
PARTS = ("serve", "filter", "loop", "report")
WARM = 200
"""Posts that the loop and the report are tried on first: what is imported is not measured."""
CLIENTS = 16
THRESHOLD = 0.5
TEXT_LIMIT = 20_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each server (default: 15)")
    parser.add_argument("--posts", type=int, default=1000, help="posts to filter (default: 1000)")
    parser.add_argument(
        "--pools", type=numbers, default="2000,20000", help="posts of the loop's pool, by commas"
    )
    parser.add_argument(
        "--verdicts", type=numbers, default="1000,10000", help="verdicts of the report, by commas"
    )
    parser.add_argument("--chromium", help="the browser (default: the chromium on the path)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of both (default: 3)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure the pairs that --json does not hold yet, and print all.

    Raises:
        DataError: No part is called so, or a server does not start.
        SelftrainError: A report is to be opened, and there is no Chromium, or no Playwright to drive it.
    """
    todo = [
        (part, n, repeat)
        for repeat in range(args.repeats)
        for part, n in _sizes(args)
        if not figures.has(STUDY, part, n, repeat)
    ]
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
        measures = _measures(args, Path(name), {part for part, *_ in todo})
        for part, n, repeat in todo:
            found = measures[part](n, repeat)
            print(f"{part} {n} {repeat}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)
            figures.add([Figure(STUDY, "drawn", part, n, repeat, *one) for one in found.items()])
    print("\n".join(figures.table()))


def _sizes(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Return each part that is asked for, with each of its sizes."""
    sizes = {"serve": [args.posts], "filter": [args.posts], "loop": args.pools, "report": args.verdicts}
    if unknown := sorted(set(args.parts.split(",")) - set(sizes)):
        raise DataError(f"no part is called {unknown}: expected some of {', '.join(sizes)}")
    return [(part, n) for part in args.parts.split(",") for n in sizes[part]]


Measure = Callable[[int, int], dict[str, float]]
"""(size, repeat) -> metric -> value."""


def _measures(args: argparse.Namespace, folder: Path, parts: set[str]) -> dict[str, Measure]:
    """Return how each of some parts is measured; what they need is there then."""
    found: dict[str, Measure] = {}
    if "report" in parts:
        browser = chromium(args.chromium)  # where there is none, nothing else is measured first
        reported(folder, WARM, 0, browser)
        found["report"] = lambda n, repeat: reported(folder, n, repeat, browser)
    if "loop" in parts:
        looped(folder, WARM, 0)
        found["loop"] = lambda n, repeat: looped(folder, n, repeat)
    if parts & {"serve", "filter"}:
        model = folder / "model.onnx"
        posts = [row for row in train_on_drawn(folder) if row["text"]]
        export_onnx(folder / "run", model)
        found["serve"] = lambda n, repeat: _rates(*_served(model, posts, args.seconds))
        found["filter"] = lambda n, repeat: _rates(*_filtered(folder, model, posts, n, repeat))
    return found


def _rates(ours: float, bare: float) -> dict[str, float]:
    return {"posts_per_second": ours, "posts_per_second, bare": bare, "ratio": ours / bare}


# ---- served --------------------------------------------------------------------------------------------


def _served(model: Path, posts: list[dict[str, Any]], seconds: float) -> tuple[float, float]:
    """Return the posts a second of our server, and of the bare one."""
    everything, cores = os.sched_getaffinity(0), halves()
    bodies = [json.dumps({"id": row["id"], "text": row["text"]}).encode() for row in posts]
    commands = serve_command(model), ("-m", "runs.bench.bare_server", str(model))
    try:
        ours, bare = (asyncio.run(_rate(command, cores, bodies, seconds)) for command in commands)
    finally:
        os.sched_setaffinity(0, everything)
    return ours, bare


async def _rate(
    command: tuple[str, ...], cores: tuple[set[int], set[int]], bodies: list[bytes], seconds: float
) -> float:
    async with serving(*command, cores=cores[0]) as (port, _):
        os.sched_setaffinity(0, cores[1])
        await _ask_for(port, bodies, seconds / 5)  # warm
        return await _ask_for(port, bodies, seconds)


async def _ask_for(port: int, bodies: list[bytes], seconds: float) -> float:
    """Let the clients score posts for so long; return how many a second were answered."""
    began, answered = time.monotonic(), 0

    async def client(number: int) -> None:
        nonlocal answered
        draw = random.Random(number)
        while time.monotonic() < began + seconds:
            status = await ask(port, b"POST /score", draw.choice(bodies), f"127.0.1.{number + 1}")
            if status != 200:
                raise RuntimeError(f"a post was answered with status {status}")
            answered += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return answered / (time.monotonic() - began)


# ---- filtered ------------------------------------------------------------------------------------------


def _filtered(
    folder: Path, model: Path, posts: list[dict[str, Any]], count: int, repeat: int
) -> tuple[float, float]:
    """Return the posts a second of our filter, and of a loop over the lines."""
    predictor, source = OnnxPredictor(model), folder / "posts.jsonl"
    rows = ({"id": f"p{n}", "text": posts[n % len(posts)]["text"]} for n in range(count))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    predictor.predict([Post("warm", posts[0]["text"])])

    def rate(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return count / (time.perf_counter() - began)

    ours, bare = folder / f"ours{repeat}.jsonl", folder / f"bare{repeat}.jsonl"
    at_work = ModelAtWork(predictor=predictor)
    rates = (
        rate(lambda: filter_posts(
            at_work, str(source), ours, threshold=THRESHOLD, text_limit=TEXT_LIMIT, tell=lambda _: None
        )),
        rate(lambda: _loop(predictor, source, bare)),
    )  # fmt: skip
    if list(_ids(ours)) != list(_ids(bare)):
        raise AssertionError("the filter and the loop let different posts pass: their speeds do not compare")
    return rates


def _loop(predictor: OnnxPredictor, source: Path, sink: Path) -> None:
    """Do what a script would do that expects nothing bad."""
    with source.open(encoding="utf-8") as lines, sink.open("w", encoding="utf-8") as passed:
        for line in lines:
            row = json.loads(line)
            (found,) = predictor.predict([Post(row["id"], row["text"])])
            if found.probs[predictor.positive] >= THRESHOLD:
                passed.write(json.dumps(row | {"prediction": found.to_json()}) + "\n")


def _ids(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["id"] for line in lines)
