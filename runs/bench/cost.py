"""`python -m runs.bench cost`: core seconds of many posts, predicted from few, beside what the many took.

A model of five numbers: what a row costs to read, check and write, the words of a post to encode and score, a
picture to read, encode and score, a post of the pool to choose among in all rounds of a run, and what a run
costs whatever its pool (imports, training, agents that learn from the labels). The first three are measured
on few posts, before the wholes and after them; the others are a line through two runs with features that cost
nothing. The wholes are `predict` on posts of words, a run of two rounds on half as many, a run on posts with
pictures, and one with features that cost nothing on a pool three times as large as any that the model saw.
All is seconds of a core, in one thread, of processes that take turns: what else the machine does moves them
less than the clock. Last comes what the model says of very many posts, and arithmetic about GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import NamedTuple

from runs.bench import pools, scale
from runs.bench.serve import train_on_drawn
from runs.bench.shown import table_head, table_line
from runs.bench.study import Figure, Figures
from selftrain.data.drawn import draw_posts
from selftrain.data.posts import Post
from selftrain.models.predictor import Predictor
from selftrain.serving.streams import ModelAtWork

STUDY = "cost"
ROUNDS = 3
"""Rounds of a run here in which the pool is scored: two that choose, and the one before them."""
HOUR = 3600.0
CARD = 757e12
"""Operations a second in bfloat16 to which an NVIDIA H200 came with large matrices (docs/experiments.md)."""
WEIGHTS = 8.05e9
"""Of llava-onevision-qwen2-7b: 16.1 GB of bfloat16 (docs/agents.md)."""
WORD_TOKENS, PICTURE_TOKENS = 440, 1_060
"""Of a prompt about 160 words (28,096 in 64 calls, docs/scale.md), and of a picture (17,000 in 16,
docs/agents.md)."""


class Rates(NamedTuple):
    """Seconds of a core."""

    row: float  # to read, check and write a row
    words: float  # to encode and score the words of a post
    picture: float  # to read, encode and score a picture
    pooled: float  # of a post of the pool, in all rounds of a run together
    fixed: float  # of a run, whatever its pool

    def predicting(self, posts: float, pictures: float = 0) -> float:
        """Return what `predict` takes, the start of its process apart."""
        return posts * (self.row + self.words) + pictures * self.picture

    def running(self, posts: float, worded: float, pictures: float = 0) -> float:
        """Return what a whole run takes on so many posts, of which so many have words."""
        return self.fixed + posts * self.pooled + worded * self.words + pictures * self.picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--small", type=int, default=500, help="posts to measure rates on (default: 500)")
    parser.add_argument("--words", type=int, default=5000, help="posts of words to predict (default: 5000)")
    parser.add_argument("--pictured", type=int, default=1000, help="posts with pictures (default: 1000)")
    parser.add_argument("--pool", type=int, default=200_000, help="the largest pool (default: 200000)")
    parser.add_argument(
        "--labelled", type=int, default=pools.LABELLED, help="posts with a label of each run (default: 400)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of all (default: 3)")
    parser.add_argument("--posts", type=float, default=1e8, help="what to tell the hours of (default: 1e8)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure the repeats that --json does not hold yet, and print predicted beside measured."""
    sizes = Sizes(args.small, args.words, args.pictured, args.pool, args.labelled)
    todo = [seed for seed in range(args.repeats) if not figures.has(STUDY, "model", args.small, seed)]
    if todo:
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
            write(Path(name), sizes)
            for seed in todo:
                figures.add(measured_once(Path(name), sizes, seed))
    print("\n".join([*figures.table(), "", *wholes(figures), "", *hours(figures, args.posts)]))
    print("\n".join(["", *floors(args.posts)]))


# ---- the posts -----------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """How many posts there are of each kind."""

    small: int  # to measure rates on
    words: int  # to predict
    pictured: int  # of a run with pictures, beside those that are labelled
    pool: int  # of the largest run
    labelled: int  # of each run

    @property
    def worded(self) -> int:
        """The pool of a run on posts of words."""
        return self.words // 2

    @property
    def line(self) -> tuple[int, int]:
        """The two pools that the model's line goes through."""
        # not smaller ones: the offline agents read the words of MOST_OF_POOL posts at most, which is fixed
        # only for pools beyond that
        return self.pool // 6, self.pool // 3


def write(folder: Path, sizes: Sizes) -> None:
    """Write a trained model, and the posts of each size, labels and recipe beside those of a run."""
    with redirect_stdout(sys.stderr):
        train_on_drawn(folder / "model", 100)  # however good: what it costs is asked
    for n in (sizes.small, sizes.words):
        scale.write_posts(folder / f"{n}.jsonl", n)
    for n in (*sizes.line, sizes.pool):
        (folder / f"pool-{n}").mkdir()
        pools.write(folder / f"pool-{n}", n, sizes.labelled)
    (folder / "worded").mkdir()
    pools.write(folder / "worded", sizes.worded, sizes.labelled)
    draw_posts(folder / "pictured-small", sizes.small // 2, seed=1)
    draw_posts(folder / "pictured", sizes.pictured + sizes.labelled, seed=2)
    encoded = pools.RECIPE.replace('kind = "runs.bench.pools:WordCounts"\n', "")
    for name, pool in (("worded", sizes.worded), ("pictured", sizes.pictured)):
        chosen = encoded.replace(f"k = {pools.CHOSEN}", f"k = {min(pools.CHOSEN, pool // 2)}")
        (folder / name / "recipe.toml").write_text(chosen, encoding="utf-8")
    lines = (folder / "pictured" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[sizes.labelled :]:
        del row["label"]
    (folder / "pictured" / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- measured, each in a process of its own ---------------------------------------------------------------


def measured_once(folder: Path, sizes: Sizes, seed: int) -> list[Figure]:
    """Return the figures of one repeat: the model's, then of each whole what was predicted and taken."""
    works = {
        "predict, words": ("predict", f"{sizes.words}.jsonl"),
        "run, words": ("run", "worded"),
        "run, pictures": ("run", "pictured"),
        "run, features that cost nothing": ("run", f"pool-{sizes.pool}"),
    }
    before = child(folder, "rates", str(sizes.small))
    line = [child(folder, "run", f"pool-{n}")["seconds"] for n in sizes.line]
    taken = {method: child(folder, *work)["seconds"] for method, work in works.items()}
    after = child(folder, "rates", str(sizes.small))

    few, some = sizes.line
    pooled = (line[1] - line[0]) / (some - few)
    small = {name: (before[name] + after[name]) / 2 for name in before}
    rates = Rates(**small, pooled=pooled, fixed=line[0] - few * pooled)
    predicted = predictions(folder, sizes, rates)
    found = [Figure(STUDY, "drawn", "model", sizes.small, seed, *item) for item in rates._asdict().items()]
    for method, (n, seconds) in predicted.items():
        values = {"predicted": seconds, "measured": taken[method]}
        print(f"{seed} {method}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
        found += [Figure(STUDY, "drawn", method, n, seed, *item) for item in values.items()]
    return found


def predictions(folder: Path, sizes: Sizes, rates: Rates) -> dict[str, tuple[int, float]]:
    """Return what the model says of each whole: its posts, and seconds."""
    rows = [json.loads(one) for one in (folder / "pictured" / "posts.jsonl").read_text().splitlines()]
    worded = sum(bool(row.get("text")) for row in rows)
    pictures = sum(len(row.get("images", [])) for row in rows)
    pool = sizes.worded + sizes.labelled
    return {
        "predict, words": (sizes.words, rates.predicting(sizes.words)),
        "run, words": (pool, rates.running(pool, pool)),
        "run, pictures": (len(rows), rates.running(len(rows), worded, pictures)),
        "run, features that cost nothing": (sizes.pool, rates.running(sizes.pool, 0)),
    }


def child(folder: Path, *work: str) -> dict[str, float]:
    """Return what a process of its own measures."""
    command = [sys.executable, "-m", "runs.bench.cost", str(folder), *work]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cores() -> float:
    """Return the seconds of a core that this process and its children have taken."""
    taken = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in taken)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a core that something takes."""
    began = cores()
    work()
    return cores() - began


def trained(folder: Path) -> Predictor:
    """Return the small model, warm."""
    from selftrain import load_predictor

    predictor = load_predictor(folder / "model" / "run")
    predictor.predict([Post("warm", "free prize")])
    return predictor


def measure_rates(folder: Path, n: int) -> dict[str, float]:
    """Return what a row, words and a picture cost."""
    from selftrain.data.manifest import read_manifest

    manifest, predictor = folder / f"{n}.jsonl", trained(folder)
    texts = [Post(**row) for row in map(json.loads, manifest.read_text(encoding="utf-8").splitlines())]
    drawn = folder / "pictured-small"
    found = read_manifest(drawn / "manifest.jsonl").posts
    pictured = [dataclasses.replace(post, text="") for post in found if post.images]
    write_out(folder, manifest, scale.Simulated())  # imports
    rows = [timed(lambda: write_out(folder, manifest, scale.Simulated())) for _ in range(5)]
    words = timed(lambda: predictor.predict(texts))
    pictures = timed(lambda: predictor.predict(pictured))
    return {
        "row": median(rows) / n,
        "words": words / n,
        "picture": pictures / sum(len(post.images) for post in pictured),
    }


def write_out(folder: Path, manifest: Path, predictor: Predictor) -> None:
    """Predict the posts of a manifest into a file, which is taken away."""
    from selftrain.cli.printing import write_predictions

    out = folder / "out.jsonl"
    write_predictions(str(out), ModelAtWork(predictor=predictor), manifest, done="scored")
    out.unlink()


def measure(folder: Path, work: str, what: str) -> dict[str, float]:
    """Return the rates, or the seconds of a whole; of a run all that its process took, imports too."""
    if work == "rates":
        return measure_rates(folder, int(what))
    # features of the repeat before would make this one cheaper
    place = folder / ("model" if work == "predict" else what)
    shutil.rmtree(place / "cache", ignore_errors=True)
    if work == "predict":
        predictor = trained(folder)
        return {"seconds": timed(lambda: write_out(folder, folder / what, predictor))}
    from selftrain.runs import start

    with tempfile.TemporaryDirectory(dir=folder) as out:
        rounds = list(start(place / "recipe.toml", Path(out) / "run").rounds())
    if len(rounds) != ROUNDS:
        raise AssertionError(f"{len(rounds)} rounds, expected {ROUNDS}")
    return {"seconds": cores()}


# ---- what is told --------------------------------------------------------------------------------------


WHOLES = ("what", "posts", "predicted", "measured", "predicted / measured")


def wholes(figures: Figures) -> Iterator[str]:
    """Yield a table: medians of the repeats, in seconds of a core, and how they stand to each other."""
    yield from table_head(*WHOLES)
    for method, n in dict.fromkeys((f.method, f.n) for f in figures.figures if f.metric == "measured"):
        predicted, taken = (figures.values(method, n, metric) for metric in ("predicted", "measured"))
        said, took = median(predicted.values()), median(taken.values())
        each = sorted(predicted[seed] / taken[seed] for seed in predicted)
        yield table_line(
            method, f"{n:,}", f"{said:,.0f}", f"{took:,.0f}",
            f"{said / took:.2f} ({', '.join(f'{one:.2f}' for one in each)})",
        )  # fmt: skip


def model_of(figures: Figures) -> Rates:
    """Return the medians of the repeats."""
    found = {
        name: median([f.value for f in figures.figures if (f.method, f.metric) == ("model", name)])
        for name in Rates._fields
    }
    return Rates(**found)


def hours(figures: Figures, posts: float) -> Iterator[str]:
    """Yield a table of what the model says of so many posts; no such number was ever run."""
    rates = model_of(figures)
    yield from table_head(f"{posts:,.0f} posts", "seconds of a core each", "hours of a core")
    said = {
        "`predict`: rows read, checked and written": rates.row,
        "`predict`: words encoded and scored": rates.words,
        "`predict`: one picture each read, encoded and scored": rates.picture,
        "`run`, two rounds: chosen among, their features apart": rates.pooled,
    }
    for what, each in said.items():
        yield table_line(what, f"{each:.2g}", f"{posts * each / HOUR:,.0f}")


def floors(posts: float) -> Iterator[str]:
    """Yield a table of what no GPU does faster: each prompt read once, nothing cached, nothing written.

    Two operations a weight and token, at the rate of large matrices. How much of it a server reaches was not
    measured.
    """
    yield from table_head(
        f"{posts:,.0f} prompts (arithmetic, nothing measured)", "tokens", "hours of a GPU, at least"
    )
    for what, tokens in {
        "160 words": WORD_TOKENS,
        "160 words and a picture": WORD_TOKENS + PICTURE_TOKENS,
    }.items():
        yield table_line(what, f"{tokens:,}", f"{posts * tokens * 2 * WEIGHTS / CARD / HOUR:,.0f}")


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        values = measure(Path(sys.argv[1]), *sys.argv[2:4])
    print(json.dumps(values))
