"""`python -m runs.bench.bare_server FILE.onnx`: an exported classifier behind a server that checks nothing.

What `runs.bench bare` holds `selftrain serve` against: the same file in a bare onnxruntime session, behind
uvicorn and Starlette. Its port is told as `selftrain serve` tells it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from selftrain.models.onnx_predictor import METADATA_KEY


def scoring(file: Path) -> Starlette:
    """Return what answers POST /score with the probabilities of a post that has words and no pictures."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))  # more would wait for each other
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    tokenizer, side = Tokenizer.from_str(about["reading"]["tokenizer"]), about["reading"]["crop"]
    nothing = {
        "text_rows": np.zeros(1, np.int64), "pixels": np.zeros((0, 3, side, side), np.float32),
        "image_rows": np.zeros(0, np.int64), "size": np.array(1, np.int64),
    }  # fmt: skip

    def probabilities(text: str) -> list[float]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        found: list[float] = session.run(
            ["probabilities"], nothing | {"ids": ids, "mask": np.ones_like(ids)}
        )[0][0].tolist()
        return found

    async def score(request: Request) -> JSONResponse:
        post = json.loads(await request.body())
        found = await run_in_threadpool(probabilities, post["text"])
        return JSONResponse({"id": post["id"], "probabilities": found})

    return Starlette(routes=[Route("/score", score, methods=["POST"])])


def main() -> None:
    """Serve a file on a free port until a signal comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(scoring(Path(sys.argv[1])), log_level="warning"))
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\nready", flush=True)
        server.run([listener])


if __name__ == "__main__":
    main()
