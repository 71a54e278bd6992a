"""`python -m runs.bench selection`: peak memory of scoring and choosing from a pool, as the pool grows.

Each pool size is measured in a process of its own, on random features written to a real feature cache: the
question is what stays in memory, not what the features mean.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runs.bench.study import Figure, Figures

TEXT_WIDTH, K, CHUNK = 384, 500, 8192


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the study's options."""
    parser = subparsers.add_parser("selection", description=__doc__)
    parser.add_argument("--n", default="10000,100000,1000000", help="pool sizes, by commas")
    parser.add_argument("--json", type=Path, help="append the figures to this file, and go on from it")


def run(args: argparse.Namespace) -> int:
    """Measures each size in a child process, and prints the table."""
    figures = Figures(args.json)
    for size in map(int, args.n.split(",")):
        if figures.has("selection", "ours", size, 0):
            continue
        with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
            _fill(Path(folder), size)
            command = [sys.executable, "-m", "runs.bench.selection", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, peak = map(float, done.stdout.split())
        values = {"seconds": seconds, "peak_rss_mb": peak}
        figures.add([Figure("selection", "random", "ours", size, 0, *item) for item in values.items()])
    print("\n".join(figures.table()))
    return 0


def _fill(folder: Path, size: int) -> None:
    """A feature cache of `size` random rows."""
    import numpy as np

    from backbones.base import FeatureLayout
    from selftrain.data.feature_store import FeatureStore

    layout = FeatureLayout(TEXT_WIDTH, 0)
    store = FeatureStore(folder, "0" * 64, layout)
    random = np.random.default_rng(0)
    with store.writing():
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            rows = random.standard_normal((count, layout.width), dtype=np.float32)
            store.append([(start + i).to_bytes(32, "big") for i in range(count)], rows)


def measure(folder: Path) -> tuple[float, float]:
    """Seconds and peak resident megabytes of scoring every row and choosing the top k.

    Rows are read from the cache by number, chunk by chunk, as the loop reads them.
    """
    import numpy as np
    import torch

    from backbones.base import FeatureLayout
    from selftrain.data.feature_store import FeatureStore
    from selftrain.models.calibration import Calibration
    from selftrain.models.head import Head, HeadClassifier, HeadSettings, Scaling
    from selftrain.selection import TopK

    layout = FeatureLayout(TEXT_WIDTH, 0)
    store = FeatureStore(folder, "0" * 64, layout)
    width = layout.width
    scaling = Scaling(np.arange(width), np.zeros(width, np.float32), np.ones(width, np.float32))
    torch.manual_seed(0)
    head = Head(scaling, "mlp", 32, 0.3).eval()
    model = HeadClassifier(head, Calibration(), HeadSettings())
    total = (folder / "rows.f32").stat().st_size // (4 * width)
    began = time.perf_counter()
    chunks = (
        (part, model.logits(store.read(part)))
        for part in (np.arange(s, min(s + CHUNK, total)) for s in range(0, total, CHUNK))
    )
    chosen = TopK(K).select(chunks, most=None, classes=("negative", "positive"), seed=0)
    seconds = time.perf_counter() - began
    if len(chosen.positions) != K:
        raise AssertionError(f"{len(chosen.positions)} posts chosen of {total}, expected {K}")
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(*measure(Path(sys.argv[1])))
