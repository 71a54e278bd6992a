"""Hidden states out of a vLLM server, un-normalised: heads beside it give the scores of transformers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.serving.command import free_port
from selftrain.agentps.architecture import Architecture, build
from selftrain.agentps.examples import Example
from selftrain.agentps.folder import Loaded
from selftrain.agentps.merging import merge_into
from selftrain.agentps.scoring import score
from selftrain.agentps.served import FLAGS, ServedModel
from selftrain.data.importers.hateful_memes import TASK
from selftrain.errors import ServingError

pytestmark = pytest.mark.vllm
SHIM = Path(__file__).parents[2] / "agents" / "torchvision_shim"
POSTS = [
    Example(str(i), text, (), ())
    for i, text in enumerate(
        ["you should all go home", "what a lovely cat", "when you see it " * 9, "", "<ans>"]
    )
]


@pytest.fixture
def merged(tmp_path):
    """An embedded model whose adapters were moved, merged; and what transformers says."""
    made = Architecture(rank=8, alpha=16)
    built = build(made, TASK)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in built.model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator) * 0.02)
    expected = list(score(built.model, built.collator, POSTS))
    about = {"architecture": made.as_json()}
    merge_into(Loaded(tmp_path, TASK, made, built, about, ""), tmp_path / "merged")
    return tmp_path / "merged", expected


@pytest.mark.usefixtures("alone")
def test_scores_of_a_server_are_those_of_transformers(merged, interpreter, tmp_path):
    folder, expected = merged
    port = free_port()
    command = [
        str(interpreter.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32",
        "--max-model-len", "1024", *FLAGS,
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": str(SHIM),
        "VLLM_NO_USAGE_STATS": "1",
    }
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(address, process, tmp_path / "log")
            served = list(ServedModel(folder, address, batch=2).score(POSTS))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [one.example.id for one in served] == [one.id for one in POSTS]
    for one, other in zip(served, expected, strict=True):
        for a, b in zip(one.answers, other.answers, strict=True):
            assert np.abs(a - b).max() < 1e-4
    # posts differ, so that equal scores say something
    assert np.abs(expected[0].answers[-1] - expected[2].answers[-1]).max() > 1e-3
    with pytest.raises(ServingError, match="is it up"):
        ServedModel(folder, address, timeout=5)


def _wait(address, process, log):
    for _ in range(600):
        try:
            if urllib.request.urlopen(f"{address}/health", timeout=2).status == 200:
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
