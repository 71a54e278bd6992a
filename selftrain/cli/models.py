"""``selftrain predict``, ``serve``, ``filter`` and ``export``: a trained model at work."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from selftrain._util.deferred import deferred
from selftrain.cli import options
from selftrain.cli.options import LIMITS, option, several
from selftrain.cli.printing import check_target, echo, write_predictions
from selftrain.errors import ServingError

with deferred():
    from selftrain.engine import on_ray
    from selftrain.models import onnx_export, operating_points, predictor
    from selftrain.serving import load_predictor, server, streams, wire
    from selftrain.web import access, http_server

app = typer.Typer()

TOGETHER = "Requests that share model calls"

MaxPixels = Annotated[int, option("Of an image.", min=1, metavar="N", panel=LIMITS)]
MaxText = Annotated[int, option("Characters of a text.", min=1, metavar="N", panel=LIMITS)]


@app.command(epilog="Example: selftrain predict runs/mine new.jsonl --out predicted.jsonl")
@options.grouped
def predict(
    model: options.Model,
    manifest: options.Manifest,
    *,
    out: options.OutFile,
    rows_per_file: options.RowsPerFile = None,
    reading: options.Reading,
    workers: options.Workers,
) -> None:
    """Label other posts with a trained model.

    Killed, or stopped by too many bad rows, the same command goes on; until the end what there is lies in
    OUT.part, or in the folder that --rows-per-file fills.
    """
    check_target(out, model, manifest, rows_per_file)
    engine = workers.engine()
    pixels, usual = streams.limits_of(model)
    work = _at_work(
        model, engine, columns=reading.named, tolerance=reading.tolerance(usual), max_pixels=pixels
    )
    write_predictions(out, work, manifest, done="labelled", rows=rows_per_file)


def _at_work(model: Path, engine: on_ray.OnRay | None, **reading: Any) -> streams.ModelAtWork:  # noqa: ANN401
    """Open a model, here and wherever the engine needs it."""
    load = None
    if engine is not None:
        load = partial(load_predictor.load_predictor, model.absolute(), threads=int(engine.cpus))
    return streams.ModelAtWork(
        predictor=load_predictor.load_predictor(model), engine=engine, load=load,
        progress=sys.stderr.isatty(), **reading,
    )  # fmt: skip


class Together(NamedTuple):
    """How requests share model calls."""

    max_batch: Annotated[int, option("Posts of one model call.", min=1, metavar="N", panel=TOGETHER)] = 32
    max_wait_ms: Annotated[
        float,
        option(
            "How long a post waits for others to share its call.",
            min=0, max=60_000, metavar="MS", panel=TOGETHER,
        ),
    ] = 5.0  # fmt: skip
    max_queue: Annotated[int, option("Posts that may wait.", min=1, metavar="N", panel=TOGETHER)] = 1024


class Limits(NamedTuple):
    """What a request may bring."""

    max_body_mb: Annotated[float, option("Size of a request.", min=0.001, metavar="MB", panel=LIMITS)] = 20.0
    max_posts: Annotated[int, option("Posts of a request.", min=1, metavar="N", panel=LIMITS)] = 256
    max_text: MaxText = 20_000
    max_image_mb: Annotated[
        float, option("Size of an image file.", min=0.001, metavar="MB", panel=LIMITS)
    ] = 10.0
    max_pixels: MaxPixels = 50_000_000
    max_work: Annotated[
        int,
        option(
            "Of decoding all images of a request, in pixels of a grey PNG.", min=1, metavar="N", panel=LIMITS
        ),
    ] = 200_000_000

    def of_requests(self) -> wire.RequestLimits:
        """Return it in bytes."""
        body, image = int(self.max_body_mb * 1e6), int(self.max_image_mb * 1e6)
        return wire.RequestLimits(body, self.max_posts, self.max_text, image, self.max_pixels, self.max_work)


@app.command(epilog="Example: selftrain serve runs/mine --port 8080")
@options.grouped
def serve(
    model: options.Model,
    *,
    host: options.Host = "127.0.0.1",
    port: Annotated[int, option("0: one that is free.")] = 8080,
    key_variable: Annotated[
        str,
        option(
            "Environment variable with the key that clients must show as Authorization: Bearer KEY.",
            metavar="NAME",
            show_default=False,
        ),
    ] = "",
    threads: Annotated[
        int | None, option("Of the model; by default all cores it may use.", min=1, metavar="N")
    ] = None,
    together: Together,
    limits: Limits,
    allow_host: Annotated[
        list[str],
        several(
            "Name that clients may ask for, for instance a proxy's; addresses, localhost and this machine's"
            " names always are.",
            "--allow-host",
            metavar="NAME",
        ),
    ],
) -> None:
    """Answer over HTTP with a trained model.

    POST /score, GET /model, /metrics (Prometheus), /health, /ready and /openapi.json. SIGTERM or Ctrl-C: what
    was taken is finished, then exit status 0. The vision-language model that the agents ask is another one:
    `selftrain agents serve` starts it.
    """
    key = os.environ.get(key_variable, "") if key_variable else ""
    if key_variable and not key:
        raise ServingError(
            f"{key_variable} is not set, or empty: put the key there, or leave out --key-variable"
        )
    http_server.quiet_logs()
    if host not in access.LOOPBACK and not key:
        echo("warning: other machines may reach this address, and no key is asked for: give --key-variable")
    count = server.compute_threads(threads)
    ended = server.serve(
        lambda: load_predictor.load_predictor(model, threads=count),
        host=host, port=port, key=key, names=allow_host, tell=echo,
        max_batch=together.max_batch, max_wait=together.max_wait_ms / 1000, max_queue=together.max_queue,
        limits=limits.of_requests(),
    )  # fmt: skip
    if not ended:
        sys.stderr.flush()
        os._exit(0)


def _share(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g}; expected a share above 0 and at most 1")
    return value


class Passing(NamedTuple):
    """Which posts pass."""

    precision: Annotated[
        float | None,
        option(
            "At least this share of the validation posts that pass is positive, for instance .80. Without"
            " this and --recall, the threshold that was set with the model.",
            metavar="P",
            callback=_share,
        ),
    ] = None
    recall: Annotated[
        float | None,
        option("At least this share of the positive posts passes.", metavar="R", callback=_share),
    ] = None
    validation: Annotated[
        Path | None,
        option(
            "Labelled posts to choose the threshold on; by default the model's own validation posts.",
            metavar="MANIFEST",
            **options.TABLE,
        ),
    ] = None

    def check(self) -> None:
        """Refuse two ways to choose the threshold."""
        if self.precision is not None and self.recall is not None:
            raise ServingError("--precision and --recall are given; expected one of the two")

    def threshold(self, work: streams.ModelAtWork, text_limit: int) -> float:
        """Return from which probability on, and tell what validation posts say of it."""
        opened = work.predictor
        scores, left_out = streams.validation_scores(
            opened, self.validation, work.columns, text_limit=text_limit, max_pixels=work.max_pixels
        )
        point = self._point(opened, scores)
        echo(f"posts pass from probability {point.threshold:.6f} of {opened.positive!r} on")
        echo(
            f"on {point.posts} validation posts, {point.positives} of them positive (95 % intervals):"
            f" precision {point.precision}, recall {point.recall}"
        )
        if left_out:
            echo(f"{left_out} rows of the validation posts could not be read or scored")
        return point.threshold

    def _point(
        self, opened: predictor.Predictor, scores: predictor.ValidationScores
    ) -> operating_points.OperatingPoint:
        """Return what was asked for, or what was set with the model."""
        if self.recall is not None:
            return operating_points.find_threshold(scores, operating_points.Goal("recall", self.recall))
        if self.precision is not None:
            return operating_points.find_threshold(scores, operating_points.Goal("precision", self.precision))
        if opened.threshold is None:
            raise ServingError(f"no threshold was set with {opened.name}: give --precision or --recall")
        return operating_points.point_at(scores, opened.threshold)


@app.command(
    "filter",
    epilog="Example: selftrain filter runs/mine --source posts.jsonl --sink found.jsonl --precision .8",
)
@options.grouped
def filter_stream(
    model: options.Model,
    *,
    source: Annotated[
        Path,
        option(
            "JSON lines, CSV or Parquet, a path or s3://...; -: JSON lines on standard input, from their"
            " beginning.",
            metavar="FILE",
            **options.TABLE,
        ),
    ],
    sink: Annotated[Path, options.written("JSON lines: the posts that pass.")],
    passing: Passing,
    reading: options.Reading,
    text_limit: MaxText = 20_000,
    max_pixels: MaxPixels = 50_000_000,
    workers: options.Workers,
) -> None:
    """Keep the posts of a stream that a model finds, by precision or recall.

    Appends posts to SINK as it goes. Killed at any moment, the same command goes on without losing or
    repeating one; SINK.progress.json says how far it is.
    """
    passing.check()
    engine, tolerance = workers.engine(), reading.tolerance(streams.ANY_NUMBER)
    work = _at_work(model, engine, columns=reading.named, tolerance=tolerance, max_pixels=max_pixels)
    threshold = passing.threshold(work, text_limit)
    counts = streams.filter_posts(
        work, str(source), sink, threshold=threshold, text_limit=text_limit, tell=echo
    )
    echo(f"read {counts.rows:,}, kept {counts.kept:,} in {sink}, failed {counts.failed:,}")
    if counts.failed:
        echo(f"failures are listed in {sink}.quarantine.jsonl")


@app.command(epilog="Example: selftrain export runs/mine --onnx model.onnx")
def export(
    run: options.RunPath,
    onnx: Annotated[Path, options.written("The file to write.")],
    head_only: Annotated[
        bool,
        option(
            "Feature rows to probabilities alone, for backbones that are not exported (clip).", "--head-only"
        ),
    ] = False,
) -> None:
    """Write a run's best classifier as an ONNX file.

    Backbone, head and calibration in one file, with classes, tokenizer and preprocessing;
    st.load_predictor scores posts with it without torch. Needs the extra `onnx`.
    """
    if (run / predictor.AGENTPS_FILE).is_file():
        raise ServingError(
            f"{run} is an AgentPS model; only a run's classifier is exported to ONNX. `selftrain serve` and"
            " `selftrain filter` take the folder as it is, and `selftrain agentps train ... --merge DIR`"
            " writes a whole checkpoint"
        )
    inputs = onnx_export.export_onnx(run, onnx, head_only=head_only)
    size = onnx.stat().st_size / 1e6
    echo(f"{onnx}: {size:.1f} MB, {' + '.join(inputs)} -> logits, probabilities")
