"""``selftrain filter``: posts that a model finds with a chosen precision, out of a stream."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selftrain.serving.thresholds import MeasuredPosts, OperatingPoint


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "filter",
        help="keep the posts of a stream that a model finds with a chosen precision",
        description="Appends posts to SINK as it goes. Killed at any moment, the same command goes on"
        " without losing or repeating one; SINK.progress.json says how far it is.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a run folder, an AgentPS model's, or an .onnx file")
    add(
        "--source", required=True, metavar="FILE",
        help="JSON lines, CSV or Parquet; -: JSON lines on standard input, from their beginning",
    )  # fmt: skip
    add("--sink", required=True, type=Path, metavar="FILE", help="JSON lines: the posts that pass")
    add(
        "--precision", required=True, type=_share, metavar="P",
        help="at least this share of the validation posts that pass is positive, for instance .80",
    )  # fmt: skip
    add(
        "--validation", type=Path, metavar="MANIFEST",
        help="labelled posts to choose the threshold on (default: the model's own validation posts)",
    )  # fmt: skip
    add(
        "--text-limit", type=int, default=20_000, metavar="N",
        help="characters; posts with more are set aside (%(default)s)",
    )  # fmt: skip
    add("--max-pixels", type=int, default=50_000_000, metavar="N", help="of an image (%(default)s)")
    parser.set_defaults(handler=run_filter)


def run_filter(args: argparse.Namespace) -> int:
    """Says what the threshold does on validation posts, filters, and says what came of it.

    Raises:
        ServingError: No threshold reaches the precision; nothing was written.
        SelftrainError, BackboneError: See `selftrain.serving.filtering.filter_posts`.
    """
    from selftrain._util.printable import printable
    from selftrain.serving.filtering import filter_posts
    from selftrain.serving.open_scorer import open_scorer
    from selftrain.serving.thresholds import lowest_threshold, validation_scores

    scorer = open_scorer(args.model)
    measured = validation_scores(scorer, args.validation)
    point = lowest_threshold(measured.scores, args.precision)
    for line in _threshold_lines(point, measured, scorer.positive):
        print(printable(line), flush=True)
    tally = filter_posts(
        scorer, args.source, args.sink, threshold=point.threshold, text_limit=args.text_limit,
        max_pixels=args.max_pixels, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(printable(f"read {tally.rows:,}, kept {tally.kept:,} in {args.sink}, failed {tally.failed:,}"))
    if tally.failed:
        print(printable(f"failures are listed in {args.sink}.quarantine.jsonl"))
    return 0


def _threshold_lines(point: OperatingPoint, measured: MeasuredPosts, positive: str) -> list[str]:
    lines = [
        f"posts pass from probability {point.threshold:.6f} of {positive!r} on",
        f"on {point.posts} validation posts, {point.positives} of them positive (95 % intervals):"
        f" precision {point.precision}, recall {point.recall}",
    ]
    if measured.left_out:
        lines.append(f"{measured.left_out} rows of the validation posts could not be read or scored")
    return lines


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g}; expected a share above 0 and at most 1")
    return value
