"""``selftrain export``: a run's best classifier as one ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's best classifier as an ONNX file",
        description="Backbone, head and calibration in one file, with classes, tokenizer and preprocessing;"
        " selftrain.models.onnx_scorer scores posts with it without torch. Needs the extra `onnx`.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--head-only", action="store_true",
        help="feature rows to probabilities alone, for backbones that are not exported (clip)",
    )  # fmt: skip
    parser.set_defaults(handler=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Writes the file and says what it takes and gives.

    Raises:
        ServingError: The model cannot be exported, or the extra is not installed.
        SelftrainError, BackboneError: The run cannot be opened.
    """
    from selftrain._util.printable import printable
    from selftrain.errors import ServingError
    from selftrain.models.onnx_export import export_onnx
    from selftrain.models.scorer import AGENTPS_FILE
    from selftrain.store.run_dir import RunFolder

    if (args.run / AGENTPS_FILE).is_file():
        raise ServingError(
            f"{args.run} is an AgentPS model; only a run's classifier is exported to ONNX. `selftrain serve`"
            " and `selftrain filter` take the folder as it is, and `selftrain agentps train ... --merge DIR`"
            " writes a whole checkpoint"
        )
    exported = export_onnx(RunFolder(args.run), args.onnx, head_only=args.head_only)
    size = args.onnx.stat().st_size / 1e6
    print(printable(f"{args.onnx}: {size:.1f} MB, {' + '.join(exported.inputs)} -> logits, probabilities"))
    return 0
