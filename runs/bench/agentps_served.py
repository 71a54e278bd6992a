"""How fast: the language model on a vLLM server and the heads here, beside all of it in transformers.

Both have the same machine; on a CPU the server has the cores that transformers would have had.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agents.vllm.command import free_port
from agents.vllm.interpreter import Interpreter, find_interpreter
from agents.vllm.torchvision_shim import python_path
from runs.bench.agentps_speed import paired, spread
from selftrain.agentps.checkpoint import AgentPSModel, merge_adapters
from selftrain.agentps.dataset import Example
from selftrain.agentps.decisions import QuestionDecision
from selftrain.agentps.evaluate import score
from selftrain.agentps.model import Built, build
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.served import FLAGS, ServedModel
from selftrain.data.importers import hateful_memes as memes
from selftrain.data.importers.base import Record
from selftrain.errors import ServingError

POSTS, BATCH, START_SECONDS = 128, 32, 300


def served(data: Path) -> dict[str, float]:
    """Time of a served model over that of the same one in transformers, Hateful Memes' words, in turns."""
    texts = [r.text for r in memes.read(data / "fhm_text").records if isinstance(r, Record)][:POSTS]
    posts = [Example(str(i), text, (), ()) for i, text in enumerate(texts)]
    made = ModelSettings(rank=16, alpha=32)
    built = build(made, memes.TASK)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        merged = Path(folder) / "merged"
        about = {"architecture": made.model_dump(mode="json")}
        plain = tuple(QuestionDecision() for _ in built.questions.all)
        merge_adapters(AgentPSModel(Path(folder), memes.TASK, made, built, about, plain, ""), merged)
        with pooling_server(find_interpreter(), merged, Path(folder) / "log") as address:
            model = ServedModel(merged, address, batch=BATCH)
            ratios = paired(
                lambda who: _seconds(model if who == "served" else built, posts), "served", "transformers"
            )
    return spread("time ratio, served over transformers", ratios)


@contextmanager
def pooling_server(
    interpreter: Interpreter, folder: Path, log: Path, dtype: str = "float32"
) -> Iterator[str]:
    """The address of a vLLM server that gives a merged checkpoint's hidden states; ended with the context.

    Raises:
        ServingError: It ended, or does not answer in five minutes; its last words are told.
    """
    port = free_port()
    command = [
        str(interpreter.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", dtype,
        "--max-model-len", "1024", *FLAGS,
    ]  # fmt: skip
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH")),
    }  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=out, stderr=out, start_new_session=True
        )
        try:
            _wait(address, process, log)
            yield address
        finally:
            with suppress(ProcessLookupError):  # one that ended by itself, whose words are told
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if urllib.request.urlopen(f"{address}/health", timeout=2).status == 200:
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)  # not there yet
    raise ServingError(f"the vLLM server does not answer; it said last: {log.read_text()[-2000:]}")


def _seconds(who: ServedModel | Built, posts: list[Example]) -> float:
    begun = time.perf_counter()
    if isinstance(who, ServedModel):
        found = list(who.score(posts))
    else:
        found = list(score(who.model, who.collator, posts, batch_size=BATCH))
    assert len(found) == len(posts)
    return time.perf_counter() - begun
