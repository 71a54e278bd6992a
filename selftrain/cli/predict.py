"""``selftrain predict``: a finished run labels other posts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("predict", help="label other posts with a run's best model")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines; - for standard output")
    parser.set_defaults(handler=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """Writes one record a post; what was left out is said on standard error, and written beside.

    Raises:
        SelftrainError, or an error of a leaf's tree: `--out` is as it was.
    """
    from selftrain.cli.printing import write_records
    from selftrain.models.prediction import Prediction
    from selftrain.store.run_dir import RunFolder

    prediction = Prediction(RunFolder(args.run), args.manifest, progress=sys.stderr.isatty())
    write_records(args.out, prediction.rows(), prediction.quarantine, "labelled")
    return 0
