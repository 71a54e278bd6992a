"""`python -m runs.bench pools`: seconds and peak memory of a whole run, as its pool grows.

Posts of drawn words, 400 of them labelled, a backbone that counts words and gives rows as wide as the default
encoder's, the agents that learn from the labels, two rounds. Each pool is measured in a process of its own:
the question is what stays in memory, not what the posts mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.base import Encodable, Encoded, FeatureLayout
from runs.bench import scale
from runs.bench.study import Figure, Figures, numbers
from selftrain._util.types import Float32Array

WORDS = scale.WORDS.split()
SPAM = frozenset(WORDS[:4])
LABELLED, WIDTH = 400, 384
CHOSEN = 200
RECIPE = f"""
[data]
manifest = "posts.jsonl"
task = "task.toml"
[backbone]
kind = "runs.bench.pools:WordCounts"
cache = "cache"
[classifier]
epochs = 5
[selection]
k = {CHOSEN}
[rounds]
max = 2
"""
TASK = """
name = "drawn-words"
positive = "spam"
policy = "Spam promises something for nothing."
[classes]
spam = "promises something"
ham = "promises nothing"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--n", type=numbers, default="10000,100000,1000000", help="pool sizes, by commas")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure each size in a child process, and print the table."""
    for size in args.n:
        if figures.has("pools", "ours", size, 0):
            continue
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
            write(Path(folder), size)
            command = [sys.executable, "-m", "runs.bench.pools", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        values = json.loads(done.stdout)
        figures.add([Figure("pools", "drawn words", "ours", size, 0, *item) for item in values.items()])
    print("\n".join(figures.table()))


def write(folder: Path, size: int, labelled: int = LABELLED) -> None:
    """Write recipe, task, and a manifest of `size` posts beside the labelled ones."""
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    write_posts(folder, size, labelled=labelled)


def write_posts(folder: Path, size: int, *, labelled: int) -> None:
    """Write task, and a manifest of `size` posts beside so many that have a label."""
    draw = random.Random(0)
    (folder / "task.toml").write_text(TASK, encoding="utf-8")
    with (folder / "posts.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(labelled + size):
            words = draw.choices(WORDS, k=draw.randint(8, 30))
            row = {"id": f"p{number}", "text": " ".join(words)}
            if number < labelled:
                # an error in ten, so that there is something to learn from rounds
                spam = (3 * sum(word in SPAM for word in words) > len(words)) != (draw.random() < 0.1)
                row["label"] = "spam" if spam else "ham"
            lines.write(json.dumps(row) + "\n")


class WordCounts:
    """A backbone that costs little: how often each word stands in a text, spread over a row, and noise.

    The noise hangs on the text; without it posts with nearly the same words would count as copies.
    """

    name, layout = "word counts", FeatureLayout(text_width=WIDTH, image_width=1)

    def __init__(self) -> None:
        self._spread = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)

    def fingerprint(self) -> str:
        """Return the digest of the words."""
        return hashlib.sha256(" ".join(WORDS).encode()).hexdigest()

    def encode(self, posts: Sequence[Encodable], **_: Any) -> Encoded:  # noqa: ANN401 -- batches and bars
        """Return rows [B, D]."""
        counts = np.array([[post.text.count(word) for word in WORDS] for post in posts], np.float32)
        rows = np.zeros((len(posts), self.layout.width), np.float32)
        found = counts @ self._spread
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        found += np.array([_noise(post.text) for post in posts]) / WIDTH**0.5
        rows[:, self.layout.text] = found / np.linalg.norm(found, axis=1, keepdims=True)
        rows[:, self.layout.has_text] = 1.0
        return Encoded(rows, ())


def _noise(text: str) -> Float32Array:
    """Draw [WIDTH] numbers by a text."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32)


def measure(folder: Path) -> dict[str, float]:
    """Return seconds and peak megabytes of a run."""
    from selftrain.runs import start

    began = time.perf_counter()
    rounds = list(start(folder / "recipe.toml", folder / "run").rounds())
    seconds = time.perf_counter() - began
    if len(rounds) != 3:
        raise AssertionError(f"{len(rounds)} rounds, expected 3")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "peak_rss_mb": round(peak, 1)}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
