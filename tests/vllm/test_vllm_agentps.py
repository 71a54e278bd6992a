"""Hidden states out of a vLLM server, un-normalised: heads beside it give the scores of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runs.bench.agentps_served import pooling_server
from selftrain.agentps.checkpoint import FORMAT, AgentPSModel, merge_adapters
from selftrain.agentps.dataset import Example
from selftrain.agentps.decisions import QuestionDecision, decided
from selftrain.agentps.evaluate import score
from selftrain.agentps.model import build
from selftrain.agentps.recipe import ModelSettings
from selftrain.agentps.served import ServedModel
from selftrain.data.importers.hateful_memes import TASK
from selftrain.errors import ServingError

pytestmark = pytest.mark.vllm
POSTS = [
    Example(str(i), text, (), ())
    for i, text in enumerate(
        ["you should all go home", "what a lovely cat", "when you see it " * 9, "", "<ans>"]
    )
]


@pytest.fixture
def merged(tmp_path):
    """An embedded model whose adapters were moved, merged; and what transformers says."""
    made = ModelSettings(rank=8, alpha=16)
    built = build(made, TASK)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in built.model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator) * 0.02)
    decisions = tuple(QuestionDecision(slope=0.5, threshold=0.4) for _ in built.questions.all)
    expected = [decided(decisions, one) for one in score(built.model, built.collator, POSTS)]
    about = {
        "format": FORMAT, "finished": True, "architecture": made.model_dump(mode="json"),
        "questions": {one.name: list(one.answers) for one in built.questions.all},
        "base_fingerprint": "", "best_epoch": 1, "precision": "float32", "decisions": {},
    }  # fmt: skip
    merge_adapters(AgentPSModel(tmp_path, TASK, made, built, about, decisions, ""), tmp_path / "merged")
    return tmp_path / "merged", expected


@pytest.mark.usefixtures("alone")
def test_scores_of_a_server_are_those_of_transformers(merged, interpreter, tmp_path):
    folder, expected = merged
    with pooling_server(interpreter, folder, tmp_path / "log") as address:
        served = list(ServedModel(folder, address, batch=2).score(POSTS))
    assert [one.example.id for one in served] == [one.id for one in POSTS]
    for one, other in zip(served, expected, strict=True):
        for a, b in zip(one.answers, other.answers, strict=True):
            assert np.abs(a - b).max() < 1e-4
    # posts differ, so that equal scores say something
    assert np.abs(expected[0].answers[-1] - expected[2].answers[-1]).max() > 1e-3
    with pytest.raises(ServingError, match="is it up"):
        ServedModel(folder, address, timeout=5)
