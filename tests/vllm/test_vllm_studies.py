"""The quick run of the agents' study, its parts that need a server."""

from __future__ import annotations

import json

import pytest

from runs.bench.__main__ import main

pytestmark = [pytest.mark.integration, pytest.mark.vllm]


@pytest.fixture
def measured(data_root, models, tmp_path):
    """What measures one part, and gives its figures by metric."""

    def measure(part, *given):
        file = tmp_path / "agents.jsonl"
        words = ["agents", "--quick", "--data", data_root, "--models", models, "--parts", part]
        assert main([*map(str, words), *given, "--json", str(file)]) == 0
        return {line["metric"]: line["value"] for line in map(json.loads, file.read_text().splitlines())}

    return measure


def test_answers_a_second_beside_a_bare_client(measured, smollm2_server):
    found = measured("throughput", "--text-server", smollm2_server.endpoint)
    assert found["ratio"] > 0


def test_the_share_of_the_prompt_that_was_cached(measured, small_vlm_server):
    found = measured("cache", "--image-server", small_vlm_server.endpoint)
    assert 0 < found["cached_share"] < 1
