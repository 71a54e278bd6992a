"""The application for Ray Serve LLM: vLLM gets what `selftrain agents serve` gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agents.vllm.command import MOST_IMAGES, ServeOptions, serve_command
from agents.vllm.interpreter import Interpreter

APPLICATION = Path(__file__).parents[3] / "docs" / "ray_serve_llm.yaml"
GPU = Interpreter(Path("python"), "vllm", "0.32.0", "2.13.0", "cuda")
OF_THE_ENGINE = (
    "enable-prefix-caching", "enable-prompt-tokens-details", "max-logprobs", "structured-outputs-config",
    "generation-config",
)  # fmt: skip


@pytest.fixture(scope="module")
def application():
    return yaml.safe_load(APPLICATION.read_text())


def test_the_engine_has_what_the_agents_rely_on(application):
    argv = serve_command(GPU, "a/model", ServeOptions(port=8000)).argv
    (llm,) = application["applications"][0]["args"]["llm_configs"]
    given = dict(llm["engine_kwargs"])
    for flag in OF_THE_ENGINE:
        place = argv.index(f"--{flag}") + 1
        value = True if argv[place].startswith("--") else yaml.safe_load(argv[place])
        assert given.pop(flag.replace("-", "_")) == value
    assert given.pop("limit_mm_per_prompt")["image"] == MOST_IMAGES
    assert set(given) == {"max_model_len"}


def test_it_listens_to_this_machine_alone_and_routes_by_session(application):
    assert application["http_options"] == {"host": "127.0.0.1", "port": 8000}
    (llm,) = application["applications"][0]["args"]["llm_configs"]
    router = llm["deployment_config"]["request_router_config"]["request_router_class"]
    assert router == "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
