"""`python -m runs.bench scale`: what a Ray cluster of this machine costs and brings, beside one process.

Tweets of HSOL with words of others behind them (without --data, drawn words) go through `selftrain predict`'s
own code. Overhead and memory are measured with a model that costs nothing, what more workers bring with the
default text encoder, a thread each. Every figure is of a process of its own, whose cluster begins and ends
with it. All outputs must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import median

import psutil

from runs.bench.agents_data import drawn_posts
from runs.bench.shown import table_head, table_line
from runs.bench.study import Figure, Figures, numbers
from selftrain.cli.printing import write_predictions
from selftrain.data.posts import Post
from selftrain.engine.mapping import Block, Engine, InProcess, Rescue, Result, Source, Stage
from selftrain.engine.on_ray import LOCAL, OnRay
from selftrain.errors import EngineError
from selftrain.models.predictor import Prediction, ValidationScores
from selftrain.serving.streams import CHUNK, ModelAtWork

WORDS = "free prize claim now meeting notes garden choir sunday market lovely awful rain office"
MODELS = {"nothing": "one that costs nothing", "encoder": "the default text encoder"}
METRICS = {
    "seconds": "seconds in all, the cluster's start included",
    "cpu_seconds": "seconds of a core",
    "posts_per_second": "posts a second once all workers are at work",
    "driver_mb": "MB of the command",
    "worker_mb": "MB of a worker",
}
METHODS = {"in process": 0, "1 worker": 1, "2 workers": 2, "4 workers": 4}
"""Name -> workers of the cluster, with half a core each where there are too few; 0: none."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument(
        "--n", type=numbers, default="10000,100000,1000000", help="posts through a model that costs nothing"
    )
    parser.add_argument("--encoded", type=numbers, default="10240", help="posts through the encoder; 0: none")
    parser.add_argument("--methods", default=",".join(METHODS), help="by commas (default: all)")
    parser.add_argument("--data", type=Path, help="folder with hsol/labeled_data.csv")
    parser.add_argument("--repeats", type=int, default=3, help="of each, but of a million (default: 3)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure each in a child process, and print the table."""
    asked = [("nothing", n) for n in args.n]
    asked += [("encoder", n) for n in args.encoded if n]
    for model, n in asked:
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
            manifest = write_posts(Path(folder) / "posts.jsonl", n, args.data)
            outputs = set[bytes]()
            for seed in range(args.repeats if n < 1_000_000 else 1):
                for method in args.methods.split(","):
                    workers = METHODS[method]
                    if figures.has("scale", method, n, seed, dataset=model):
                        continue
                    out = Path(folder) / "out.jsonl"
                    command = [sys.executable, "-m", "runs.bench.scale", str(manifest), str(out), model]
                    done = subprocess.run([*command, str(workers)], check=True, stdout=subprocess.PIPE)
                    outputs.add(blake2b(out.read_bytes()).digest())
                    values = json.loads(done.stdout)
                    figures.add([Figure("scale", model, method, n, seed, *item) for item in values.items()])
            if len(outputs) > 1:
                raise EngineError(f"{len(outputs)} different outputs of {n:,} posts: expected the same bytes")
    print("\n".join(figures.table()))


def write_posts(file: Path, n: int, data: Path | None = None) -> Path:
    """Write `n` posts: tweets, each with words of another one, or eight to thirty drawn words."""
    draw, words = random.Random(0), WORDS.split()
    tweets = [post.text for post in drawn_posts("hsol", data, 20_000, 0)[1]] if data else []
    with file.open("w", encoding="utf-8") as lines:
        for number in range(n):
            if tweets:
                other = draw.choice(tweets).split()
                text = " ".join([draw.choice(tweets), *draw.sample(other, min(3, len(other)))])
            else:
                text = " ".join(draw.choices(words, k=draw.randint(8, 30)))
            lines.write(json.dumps({"id": f"p{number}", "text": text}) + "\n")
    return file


class Simulated:
    """A model whose answer is drawn from the text, at no cost."""

    kind, name, positive, classes = "classifier", "simulated", "yes", ("yes", "no")
    fingerprint, calibrated, picture_side, threshold = "0" * 64, False, None, None

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """Return as many predictions."""
        return [self._one(post, self._probability(post)) for post in posts]

    def validation(self) -> ValidationScores | None:
        """Return None: it has none."""
        return None

    def _probability(self, post: Post) -> float:
        return blake2b(post.text.encode(), digest_size=1).digest()[0] / 256

    def _one(self, post: Post, probability: float) -> Prediction:
        label = self.classes[probability < 0.5]
        return Prediction(post.id, label, {"yes": probability, "no": 1 - probability})


class TextEncoder(Simulated):
    """The default text encoder in one thread; its first feature is the answer."""

    def __init__(self) -> None:
        import torch

        from backbones import load_backbone

        torch.set_num_threads(1)
        self._backbone = load_backbone("minilm_efficientnet")

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """Return as many predictions."""
        rows = self._backbone.encode(posts).rows
        return [self._one(post, 0.5 + float(row[0])) for post, row in zip(posts, rows, strict=True)]


@dataclass
class Timed:
    """An engine, and when each of its results came."""

    engine: Engine
    times: list[float] = field(default_factory=list)

    @contextmanager
    def map(
        self,
        source: Source[Block],
        stage: Stage[Block, Result],
        rescue: Rescue[Block, Result] | None = None,
    ) -> Iterator[Iterator[Result]]:
        """See `Engine.map`."""
        with self.engine.map(source, stage, rescue) as found:
            yield (self._noted(one) for one in found)

    def _noted(self, one: Result) -> Result:
        self.times.append(time.perf_counter())
        return one


class Watch(threading.Thread):
    """Looks twice a second at the processes of this one's cluster.

    Attributes:
        peak: Bytes, the most that any worker had of its own.
        cpu: Process -> seconds of a core that it has taken.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.cpu = 0, dict[int, float]()
        self.ended = threading.Event()

    def run(self) -> None:
        """Look, until `ended` is set."""
        while not self.ended.wait(0.5):
            self.look()

    def look(self) -> None:
        """Look at all that are there now."""
        this = psutil.Process()
        for one in (this, *this.children(recursive=True)):
            try:
                times, memory = one.cpu_times(), one.memory_info()
                self.cpu[one.pid] = times.user + times.system
                if one.name().startswith("ray::"):
                    self.peak = max(self.peak, memory.rss - memory.shared)
            except psutil.Error:  # it is gone
                continue


def measure(manifest: Path, out: Path, model: str, workers: int) -> dict[str, float]:
    """Return seconds, posts a second once all workers are at work, and peak memory in megabytes."""
    made: Callable[[], Simulated] = Simulated if model == "nothing" else TextEncoder
    cores = min(1.0, (os.cpu_count() or 1) / max(workers, 1))
    engine = Timed(OnRay(LOCAL, workers, cores) if workers else InProcess())
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):
        predictor = Simulated() if workers else made()
        work = ModelAtWork(predictor=predictor, engine=engine, load=partial(made))
        write_predictions(str(out), work, manifest, done="labelled")
    seconds = time.perf_counter() - began
    watch.ended.set()
    watch.join()
    watch.look()  # once more: a run may be over before the second look
    found = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(sum(watch.cpu.values()), 1),
        "driver_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    first = max(workers, 1)
    if len(engine.times) > 2 * first:
        posts = (len(engine.times) - first) * CHUNK
        found["posts_per_second"] = round(posts / (engine.times[-1] - engine.times[first - 1]), 1)
    return found | ({"worker_mb": round(watch.peak / 1e6, 1)} if workers else {})


# ---- the page -------------------------------------------------------------------------------------------


def costs(figures: Figures) -> Iterator[str]:
    """Yield a table: medians of the repeats, in process and by workers."""
    yield from table_head("posts, model", "", *METHODS)
    for model, told in MODELS.items():
        for n in sorted({f.n for f in figures.figures if f.dataset == model}):
            label = f"{n:,}, {told}"
            for metric, unit in METRICS.items():
                found = [figures.values(one, n, metric, dataset=model) for one in METHODS]
                if any(found) and (metric != "posts_per_second" or model == "encoder"):
                    cells = [f"{median(one.values()):,.0f}" if one else "" for one in found]
                    yield table_line(label, unit, *cells)
                    label = ""


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given = sys.argv[1:]
    print(json.dumps(measure(Path(given[0]), Path(given[1]), given[2], int(given[3]))))
