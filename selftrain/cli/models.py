"""``selftrain predict``, ``serve``, ``filter`` and ``export``: a trained model at work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from selftrain._util.printable import printable
from selftrain.cli.options import Columns, Manifest, MaxBadRows, MaxBadShare, Model, RunPath, read_columns
from selftrain.cli.printing import check_target, say, write_records
from selftrain.errors import ServingError
from selftrain.models.onnx_export import export_onnx
from selftrain.models.predictor import AGENTPS_FILE
from selftrain.serving.filtering import filter_posts
from selftrain.serving.load_predictor import load_predictor
from selftrain.serving.manifest_predictions import ManifestPredictions
from selftrain.serving.server import Batching, compute_threads
from selftrain.serving.server import serve as serve_predictor
from selftrain.serving.thresholds import MeasuredPosts, OperatingPoint, lowest_threshold, validation_scores
from selftrain.serving.wire import RequestLimits
from selftrain.web.http_server import quiet_logs

app = typer.Typer()

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOGETHER, LIMITS = "Requests that share model calls", "Limits on what comes in"


@app.command(
    help="Label other posts with a trained model.",
    epilog="Example: selftrain predict runs/mine new.jsonl --out predicted.jsonl",
)
def predict(
    model: Model,
    manifest: Manifest,
    *,
    out: Annotated[
        str,
        typer.Option(metavar="FILE", help="JSON lines, or CSV where it ends in .csv; -: standard output."),
    ],
    columns: Columns,
    max_bad_rows: MaxBadRows = None,
    max_bad_share: MaxBadShare = None,
) -> None:
    """Write one record a post; what was left out is said on standard error, and written beside.

    Raises:
        SelftrainError, or an error of a leaf's tree: `out` is as it was.
    """
    check_target(out)
    found = ManifestPredictions(
        model, manifest, progress=sys.stderr.isatty(), columns=read_columns(columns),
        max_bad_rows=max_bad_rows, max_bad_share=max_bad_share,
    )  # fmt: skip
    for hint in found.hints:
        print(printable(hint.strip()), file=sys.stderr)
    write_records(out, found.rows(), found.quarantine, "labelled")


@app.command(
    help="Answer over HTTP with a trained model.\n\n"
    "POST /score, GET /model, /metrics (Prometheus), /health and /ready. SIGTERM or Ctrl-C: what was"
    " taken is finished, then exit status 0. The vision-language model that the agents ask is another one:"
    " `selftrain agents serve` starts it.",
    epilog="Example: selftrain serve runs/mine --port 8080",
)
def serve(
    model: Model,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: one that is free.")] = 8080,
    key_variable: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Environment variable with the key that clients must show as Authorization: Bearer KEY.",
        ),
    ] = "",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the model; by default all cores it may use.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Posts of one model call.", rich_help_panel=TOGETHER)
    ] = 32,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            metavar="MS", help="How long a post waits for others to share its call.", rich_help_panel=TOGETHER
        ),
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Posts that may wait.", rich_help_panel=TOGETHER)
    ] = 1024,
    max_body_mb: Annotated[
        float, typer.Option(metavar="MB", help="Size of a request.", rich_help_panel=LIMITS)
    ] = 20.0,
    max_posts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Posts of a request.", rich_help_panel=LIMITS)
    ] = 256,
    max_text: Annotated[
        int, typer.Option(min=1, metavar="N", help="Characters of a text.", rich_help_panel=LIMITS)
    ] = 20_000,
    max_image_mb: Annotated[
        float, typer.Option(metavar="MB", help="Size of an image file.", rich_help_panel=LIMITS)
    ] = 10.0,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of an image.", rich_help_panel=LIMITS)
    ] = 50_000_000,
) -> None:
    """Serve until told to end.

    Raises:
        ServingError: The port or the key cannot be had, or the model's folder holds none.
        SelftrainError, BackboneError: The model cannot be loaded.
    """
    key = _key(key_variable)
    quiet_logs()
    if host not in _LOOPBACK and not key:
        say("warning: other machines may reach this address, and no key is asked for: give --key-variable")
    count = compute_threads(threads)
    ended = serve_predictor(
        lambda: load_predictor(model, threads=count),
        host=host, port=port, key=key, tell=say,
        batching=Batching(max_batch, max_wait_ms / 1000, max_queue),
        limits=RequestLimits(
            int(max_body_mb * 1e6), max_posts, max_text, int(max_image_mb * 1e6), max_pixels
        ),
    )  # fmt: skip
    if not ended:
        sys.stderr.flush()
        os._exit(0)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ServingError(f"{variable} is not set, or empty: put the key there, or leave out --key-variable")
    return key


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g}; expected a share above 0 and at most 1")
    return value


@app.command(
    "filter",
    help="Keep the posts of a stream that a model finds, by precision.\n\n"
    "Appends posts to SINK as it goes. Killed at any moment, the same command goes on without losing or"
    " repeating one; SINK.progress.json says how far it is.",
    epilog="Example: selftrain filter runs/mine --source posts.jsonl --sink found.jsonl --precision .8",
)
def filter_stream(
    model: Model,
    *,
    source: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSON lines, CSV or Parquet; -: JSON lines on standard input, from their beginning.",
        ),
    ],
    sink: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines: the posts that pass.")],
    precision: Annotated[
        float,
        typer.Option(
            metavar="P",
            callback=_share,
            help="At least this share of the validation posts that pass is positive, for instance .80.",
        ),
    ],
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Labelled posts to choose the threshold on; by default the model's own validation posts.",
        ),
    ] = None,
    columns: Columns,
    text_limit: Annotated[
        int,
        typer.Option(metavar="N", help="Characters; posts with more are set aside.", rich_help_panel=LIMITS),
    ] = 20_000,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Of an image.", rich_help_panel=LIMITS)
    ] = 50_000_000,
) -> None:
    """Print what the threshold does on validation posts, filter, and print what came of it.

    Raises:
        ServingError: No threshold reaches the precision; nothing was written.
        SelftrainError, BackboneError: See `selftrain.serving.filtering.filter_posts`.
    """
    predictor, named = load_predictor(model), read_columns(columns)
    measured = validation_scores(predictor, validation, named)
    point = lowest_threshold(measured.scores, precision)
    for line in _threshold_lines(point, measured, predictor.positive):
        say(line)
    tally = filter_posts(
        predictor, source, sink, threshold=point.threshold, text_limit=text_limit, max_pixels=max_pixels,
        columns=named, tell=say, progress=sys.stderr.isatty(),
    )  # fmt: skip
    say(f"read {tally.rows:,}, kept {tally.kept:,} in {sink}, failed {tally.failed:,}")
    if tally.failed:
        say(f"failures are listed in {sink}.quarantine.jsonl")


def _threshold_lines(point: OperatingPoint, measured: MeasuredPosts, positive: str) -> list[str]:
    lines = [
        f"posts pass from probability {point.threshold:.6f} of {positive!r} on",
        f"on {point.posts} validation posts, {point.positives} of them positive (95 % intervals):"
        f" precision {point.precision}, recall {point.recall}",
    ]
    if measured.left_out:
        lines.append(f"{measured.left_out} rows of the validation posts could not be read or scored")
    return lines


@app.command(
    help="Write a run's best classifier as an ONNX file.\n\n"
    "Backbone, head and calibration in one file, with classes, tokenizer and preprocessing;"
    " st.load_predictor scores posts with it without torch. Needs the extra `onnx`.",
    epilog="Example: selftrain export runs/mine --onnx model.onnx",
)
def export(
    run: RunPath,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    head_only: Annotated[
        bool,
        typer.Option(
            "--head-only",
            help="Feature rows to probabilities alone, for backbones that are not exported (clip).",
        ),
    ] = False,
) -> None:
    """Write the file and print what it takes and gives.

    Raises:
        ServingError: The model cannot be exported, or the extra is not installed.
        SelftrainError, BackboneError: The run cannot be opened.
    """
    if (run / AGENTPS_FILE).is_file():
        raise ServingError(
            f"{run} is an AgentPS model; only a run's classifier is exported to ONNX. `selftrain serve` and"
            " `selftrain filter` take the folder as it is, and `selftrain agentps train ... --merge DIR`"
            " writes a whole checkpoint"
        )
    exported = export_onnx(run, onnx, head_only=head_only)
    size = onnx.stat().st_size / 1e6
    say(f"{onnx}: {size:.1f} MB, {' + '.join(exported.inputs)} -> logits, probabilities")
