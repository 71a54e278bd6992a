"""``selftrain serve``: a trained model behind HTTP."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "serve",
        help="score posts over HTTP with a trained model",
        description="POST /score, GET /model, /metrics (Prometheus), /health and /ready. SIGTERM or Ctrl-C:"
        " what was taken is finished, then exit status 0.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a run folder, an AgentPS model's, or an .onnx file")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8080, help="0: one that is free (default: %(default)s)")
    add("--max-batch", type=_count, default=32, metavar="N", help="posts of one model call (%(default)s)")
    add(
        "--max-wait-ms", type=float, default=5.0, metavar="MS",
        help="how long a post waits for others to share its call (%(default)s)",
    )  # fmt: skip
    add("--max-queue", type=_count, default=1024, metavar="N", help="posts that may wait (%(default)s)")
    add("--max-body-mb", type=float, default=20.0, metavar="MB", help="size of a request (%(default)s)")
    add("--max-posts", type=_count, default=256, metavar="N", help="posts of a request (%(default)s)")
    add("--max-text", type=_count, default=20_000, metavar="N", help="characters of a text (%(default)s)")
    add("--max-image-mb", type=float, default=10.0, metavar="MB", help="size of an image file (%(default)s)")
    add("--max-pixels", type=_count, default=50_000_000, metavar="N", help="of an image (%(default)s)")
    add("--threads", type=_count, metavar="N", help="of the model (default: the cores this process may use)")
    add(
        "--key-variable", default="", metavar="NAME",
        help="environment variable with the key that clients must show as Authorization: Bearer KEY",
    )  # fmt: skip
    parser.set_defaults(handler=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Serves until it is told to end.

    Raises:
        ServingError: The port or the key cannot be had, or the model's folder holds none.
        SelftrainError, BackboneError: The model cannot be loaded.
    """
    from selftrain._util.printable import printable
    from selftrain.serving.open_scorer import open_scorer
    from selftrain.serving.server import Batching, compute_threads, serve
    from selftrain.serving.wire import RequestLimits
    from selftrain.web.http_server import quiet_logs

    key = _key(args.key_variable)
    quiet_logs()
    if args.host not in _LOOPBACK and not key:
        print("warning: other machines may reach this address, and no key is asked for: give --key-variable")
    threads = compute_threads(args.threads)
    ended = serve(
        lambda: open_scorer(args.model, threads=threads),
        host=args.host,
        port=args.port,
        batching=Batching(args.max_batch, args.max_wait_ms / 1000, args.max_queue),
        limits=RequestLimits(
            int(args.max_body_mb * 1e6),
            args.max_posts,
            args.max_text,
            int(args.max_image_mb * 1e6),
            args.max_pixels,
        ),
        key=key,
        tell=lambda line: print(printable(line), flush=True),
    )
    if not ended:
        sys.stderr.flush()
        os._exit(0)
    return 0


def _key(variable: str) -> str:
    from selftrain.errors import ServingError

    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ServingError(f"{variable} is not set, or empty: put the key there, or leave out --key-variable")
    return key


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected 1 or more")
    return value
